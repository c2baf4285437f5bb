"""torch.func: grad, vmap over an ensemble, functional_call, batch norm without running stats."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from renorm import BatchRenorm1d, limits

Tensors = dict[str, Tensor]


def _net() -> nn.Sequential:
    options = {"limits": limits.fixed(1.3, 0.4), "momentum": 0.3}
    return nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4, **options), nn.Linear(4, 2)).double()


def _loss(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return (net(x) - target).square().sum()


def test_grad_of_a_functional_call_equals_backward() -> None:
    net = _net()
    x, target = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def loss(parameters: Tensors, buffers: Tensors) -> Tensor:
        y = functional_call(net, (parameters, buffers), (x,))
        return (y - target).square().sum()

    parameters = {k: v.detach() for k, v in net.named_parameters()}
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    gradients = grad(loss)(parameters, buffers)
    _loss(net, x, target).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_functional_call_updates_the_buffers_it_is_given() -> None:
    net = _net()
    before = {k: v.clone() for k, v in net.named_buffers()}
    given = {k: v.clone() for k, v in net.named_buffers()}
    functional_call(net, (dict(net.named_parameters()), given), (torch.randn(6, 3).double(),))
    assert int(given["1.num_batches_tracked"]) == 1
    assert not torch.equal(given["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_vmap_over_an_ensemble_trains_like_a_loop() -> None:
    nets = [_net() for _ in range(3)]
    parameters, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    shell = copy.deepcopy(nets[0])
    x, target = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def loss(parameters: Tensors, buffers: Tensors) -> Tensor:
        y = functional_call(shell, (parameters, buffers), (x,))
        return (y - target).square().sum()

    gradients = vmap(grad(loss))(parameters, buffers)
    for i, net in enumerate(nets):
        _loss(net, x, target).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name][i], parameter.grad)
        for name, buffer in net.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer)


def test_replace_all_batch_norm_modules_leaves_plain_batch_statistics() -> None:
    net = _net()
    theirs = nn.BatchNorm1d(4, track_running_stats=False).double()
    torch.func.replace_all_batch_norm_modules_(net)
    assert net[1].running_mean is None
    x = torch.randn(6, 4, dtype=torch.float64)
    for mode in (True, False):
        torch.testing.assert_close(net[1].train(mode)(x), theirs.train(mode)(x))

    def per_sample(sample: Tensor) -> Tensor:
        return net[1](sample).square().sum()

    assert vmap(grad(per_sample))(torch.randn(5, 6, 4, dtype=torch.float64)).isfinite().all()
