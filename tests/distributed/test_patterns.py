"""How people train: target networks, joint forwards, adversaries, converted models in DDP."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import renorm
from renorm import limits
from renorm.distributed import sync_running
from renorm.nn import BatchRenorm
from support.ranks import Ranks

C = 3


def critic(**settings: Any) -> Any:
    torch.manual_seed(1)
    settings = {"momentum": 0.1, "limits": limits.fixed(2, 1)} | settings
    return nn.Sequential(nn.Linear(C, 4), BatchRenorm(4, **settings), nn.ReLU(), nn.Linear(4, 1))


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_target_network_copies_the_statistics_of_that_moment() -> None:
    online = critic()
    online(torch.randn(8, C))
    target = copy.deepcopy(online).requires_grad_(False)
    before = statistics(target)
    for _ in range(3):
        online(torch.randn(8, C))
        target.eval()(torch.randn(8, C))
    assert same(statistics(target), before)
    assert not same(statistics(online), before)


def test_average_of_weights_averages_the_statistics_if_told_so() -> None:
    online = critic()
    average = {
        use: AveragedModel(online, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use)
        for use in (False, True)
    }
    before = {}
    for _ in range(2):  # the first update copies
        online(torch.randn(8, C))
        before = statistics(average[True].module)
        for model in average.values():
            model.update_parameters(online)
    now = statistics(online)
    assert same(statistics(average[False].module), now)  # else they are those of the source
    mean = (now["1.running_mean"] + before["1.running_mean"]) / 2
    torch.testing.assert_close(statistics(average[True].module)["1.running_mean"], mean)


def test_joint_forward_normalizes_both_batches_alike() -> None:
    """CrossQ: (s, a) and (s', a') in one forward, which is one step of the statistics."""
    model = critic()
    apart = copy.deepcopy(model)
    now, then = torch.randn(8, C), torch.randn(8, C) + 2
    joint = model(torch.cat([now, then]))
    assert int(model[1].num_batches_tracked) == 1
    with renorm.accumulate(apart):
        y = torch.cat([apart(now), apart(then)])
    assert int(apart[1].num_batches_tracked) == 1
    for name, value in statistics(model).items():  # the same step, from other normalizations
        torch.testing.assert_close(statistics(apart)[name], value)
    assert (joint - y).abs().max() > 1e-2


def test_adversary_meets_one_reference_for_real_and_fake() -> None:
    model = critic()
    real, fake = torch.randn(8, C), torch.randn(8, C) + 2
    alone = [copy.deepcopy(model)(x) for x in (real, fake)]
    with renorm.accumulate(model):
        scores = [model(x) for x in (real, fake)]
        (scores[0].mean() - scores[1].square().mean()).backward()
    assert all(torch.equal(a, b) for a, b in zip(scores, alone, strict=True))
    assert int(model[1].num_batches_tracked) == 1


def test_training_forward_without_gradient_updates_as_batch_norm_does() -> None:
    for layer in (BatchRenorm(C), nn.BatchNorm1d(C)):
        before = statistics(layer)
        with torch.no_grad():
            layer(torch.randn(8, C))
        assert int(statistics(layer)["num_batches_tracked"]) == 1
        assert not same(statistics(layer), before)
        layer.eval()
        with torch.no_grad():
            after = statistics(layer)
            layer(torch.randn(8, C))
        assert same(statistics(layer), after)


def test_eval_between_two_training_forwards_and_their_backward() -> None:
    model = critic()
    first = model(torch.randn(8, C))
    value = model.eval()(torch.randn(8, C))
    second = model.train()(torch.randn(8, C))
    (first.mean() + value.mean() + second.mean()).backward()  # no buffer of a graph was written
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def converted_in_ddp(rank: int, group: Any, sync: Any) -> Any:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    ddp: Any = DistributedDataParallel(model, process_group=group)
    options = {} if sync is None else {"sync": sync, "process_group": group}
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(rank))
    renorm.convert(ddp, momentum=0.1, **options)(x).square().mean().backward()
    assert isinstance(model[1], renorm.BatchRenorm2d)
    grad = ddp.module[0].weight.grad.clone()
    found = {n: t.clone() for n, t in ddp.state_dict().items() if "running" in n}
    renorm.to_batchnorm(ddp)(x).square().mean().backward()
    assert type(ddp.module[1]) is nn.BatchNorm2d
    return grad, found


def test_model_is_converted_inside_its_wrapper(ranks: Ranks) -> None:
    for sync in (None, "running", "batch"):
        (grad, found), (other_grad, others) = ranks.run(converted_in_ddp, sync)
        assert torch.equal(grad, other_grad)
        assert grad.abs().sum() > 0
        assert same(found, others) == (sync is not None)


def target_in_ddp(rank: int, group: Any) -> Any:
    online = sync_running(critic(), group)
    ddp = DistributedDataParallel(online, process_group=group)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    x = torch.randn(3, 8, C, generator=torch.Generator().manual_seed(rank))
    target = copy.deepcopy(online).requires_grad_(False)
    for batch in x:
        with torch.no_grad():
            value = target(batch)  # in training mode: it tracks, and shares, its own statistics
        optimizer.zero_grad()
        (ddp(batch) - value - 1).square().mean().backward()
        optimizer.step()
    return online.state_dict(), target.state_dict()


def test_online_and_target_network_share_each_among_the_ranks(ranks: Ranks) -> None:
    (online, target), (other_online, other_target) = ranks.run(target_in_ddp)
    assert same(online, other_online)
    assert same(target, other_target)
    assert int(target["1.num_batches_tracked"]) == 3
    assert not torch.equal(online["0.weight"], target["0.weight"])
