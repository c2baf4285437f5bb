"""What fixes are tried on: code that can be pasted, odd models and batches, and refusals."""

import copy
import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm import BatchRenorm1d, convert
from renorm.doctor.trying import AS_IT_IS, DEFAULT, FIXES, FURTHER, Trials, try_fixes
from renorm.doctor.trying.fixes import AFTER
from renorm.doctor.trying.splitting import in_order, shares
from renorm.errors import ArgumentError
from renorm.measure.records import FixTrial


def net(**options: Any) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, **options), nn.ReLU(), nn.Linear(4, 2)
        )


def pairs(count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn((size, 3), generator=generator) for _ in range(count)]
    return [(x, x[:, :2].cumsum(1)) for x in xs]


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(output, batch[1])


def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05)


def by_name(found: Trials) -> dict[str, FixTrial]:
    return {trial.fix: trial for trial in found}


def pasted(code: str, model: nn.Module, batches: list) -> nn.Module:
    names = {"model": model, "batches": batches}
    exec(code, names)
    return names["model"]  # type: ignore[return-value]


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("momentum", [0.1, 0.99])
def test_the_code_does_what_was_tried(name: str, momentum: float) -> None:
    model, batches, held_out = net(momentum=momentum), pairs(8), pairs(2, 5)
    found = by_name(
        try_fixes(
            model, batches, loss, optimizer=sgd, held_out=held_out, fixes=name, steps=30, seeds=1
        )
    )
    code, _, afterwards = found[name].code.partition(AFTER)
    own = pasted(code, copy.deepcopy(model), batches)
    if found[name].steps:
        optimizer = sgd(list(own.parameters()))
        for batch in in_order(batches, found[name].steps, (0, 0)):
            optimizer.zero_grad()
            loss(own.train()(batch[0]), batch).backward()
            optimizer.step()
    own = pasted(f"import renorm\n{afterwards}", own, batches)
    with torch.no_grad():
        losses = [float(loss(own.eval()(batch[0]), batch)) for batch in held_out]
    assert found[name].losses == (pytest.approx(sum(losses) / 2, rel=1e-6),)
    assert found[name].losses != found[AS_IT_IS].losses


def test_layers_with_momenta_of_their_own() -> None:
    model = nn.Sequential(net(momentum=0.1), net(momentum=0.001), net(momentum=0.95))
    model = nn.Sequential(*(module for part in model for module in (part, nn.Linear(2, 3))), net())
    found = by_name(try_fixes(model, pairs(8), loss, fixes="longer_ema", steps=30, seeds=1))
    own = pasted(found["longer_ema"].code, model, [])
    momenta = [m.momentum for m in own.modules() if isinstance(m, nn.BatchNorm1d)]
    assert momenta == [0.0645, 0.001, 0.0645, 0.0645]


def test_batches_of_other_forms() -> None:
    @dataclasses.dataclass
    class Batch:
        x: Tensor
        y: Tensor

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.inner(x)}

    plain = try_fixes(net(), pairs(8), loss, steps=3, seeds=2)
    mapped = try_fixes(
        Named(),
        ({"x": x, "y": y} for x, y in pairs(8)),
        lambda output, batch: F.mse_loss(output["y"], batch["y"]),
        steps=3,
        seeds=2,
        forward=lambda model, batch: model(batch["x"]),
    )
    classes = try_fixes(
        net(),
        [Batch(*pair) for pair in pairs(8)],
        lambda output, batch: F.mse_loss(output, batch.y),
        steps=3,
        seeds=2,
        forward=lambda model, batch: model(batch.x),
    )
    assert by_name(mapped)["calibrate"].code.endswith("batches, forward=forward)")
    losses = {fix: trial.losses for fix, trial in by_name(plain).items()}
    assert {fix: trial.losses for fix, trial in by_name(mapped).items()} == losses
    assert {fix: trial.losses for fix, trial in by_name(classes).items()} == losses


def test_a_stream_is_read_once_and_a_sample_of_it_kept() -> None:
    read = []

    def stream() -> Any:
        for batch in pairs(400, 64):
            read.append(len(batch[0]))
            yield batch

    found = try_fixes(net(), stream(), loss, fixes="frozen", steps=3, seeds=1)
    assert len(read) == 400
    assert (found.training, found.held_out) == (12, 4)  # of 1,024 examples


def test_what_is_held_out() -> None:
    batches = list(range(10))
    first, second, *_ = shares(batches, None, 5)
    assert (first.held_out, second.held_out) == ([0, 4, 8], [1, 5, 9])
    assert first.training == [1, 2, 3, 5, 6, 7, 9]
    assert [one.held_out for one in shares(batches, [1, 2, 3], 2)] == [[1, 3], [2]]
    dealt = [one.held_out for one in shares(batches, [torch.arange(5)], 2)]
    assert [[t.tolist() for t in part] for part in dealt] == [[[0, 2, 4]], [[1, 3]]]
    assert [one.held_out for one in shares(batches, ["text"], 2)] == [["text"], ["text"]]
    order = list(in_order(batches, 25, (0, 1)))
    assert sorted(order[:10]) == sorted(order[10:20]) == batches
    assert order != list(in_order(batches, 25, (0, 2)))


def test_a_compiled_model_is_tried_uncompiled() -> None:
    model = net()
    found = try_fixes(torch.compile(model), pairs(8), loss, steps=3, seeds=1)  # type: ignore[arg-type]
    assert (
        by_name(found)["frozen"].losses
        == by_name(try_fixes(model, pairs(8), loss, steps=3, seeds=1))["frozen"].losses
    )


def test_a_model_of_ddp_is_tried_alone(tmp_path: Path) -> None:
    model, meeting = net(), f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        given = torch.optim.SGD(wrapped.parameters(), lr=0.05)
        found = try_fixes(wrapped, pairs(8), loss, optimizer=given, steps=3, seeds=1)
    finally:
        torch.distributed.destroy_process_group()
    alone = try_fixes(model, pairs(8), loss, optimizer=sgd, steps=3, seeds=1)
    losses = {fix: trial.losses for fix, trial in by_name(alone).items()}
    assert {fix: trial.losses for fix, trial in by_name(found).items()} == losses


def test_there_is_one_copy_at_a_time() -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        alive.add(model)
        most.append(len(alive))
        return model(batch[0])

    try_fixes(net(), pairs(8), loss, forward=forward, fixes=FIXES, steps=2, seeds=2)
    assert set(most) == {1}


def test_the_groups_of_an_optimizer_are_kept() -> None:
    model = net()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.0},
        {"params": list(model[1].parameters()), "lr": 0.0},
        {"params": list(model[3].parameters()), "lr": torch.tensor(0.1)},
    ]
    given = torch.optim.AdamW(groups, foreach=False)
    found = try_fixes(model, pairs(8), loss, optimizer=given, fixes="frozen", steps=5, seeds=1)
    assert found.optimizer == "AdamW"
    none = torch.optim.AdamW([{**group, "lr": 0.0} for group in groups])
    still = try_fixes(model, pairs(8), loss, optimizer=none, fixes="frozen", steps=5, seeds=1)
    head = torch.optim.AdamW(model[3].parameters(), lr=0.1)
    same = try_fixes(model, pairs(8), loss, optimizer=head, fixes="frozen", steps=5, seeds=1)
    assert by_name(found)["frozen"].losses == by_name(same)["frozen"].losses
    assert by_name(found)["frozen"].losses != by_name(still)["frozen"].losses


def test_one_value_a_channel_stops_only_what_needs_more() -> None:
    found = try_fixes(net(), pairs(20, 1), loss, steps=3, seeds=2)
    trials = by_name(found)
    assert "Expected more than 1 value" in trials[FURTHER].failure
    assert trials["batch_renorm"].failure.startswith("ArgumentError")
    assert trials["frozen"].failure == ""
    assert None not in trials["frozen"].losses
    assert None not in trials["frozen"].gains
    assert trials["frozen"] in found[:2]


def test_what_diverges_is_last() -> None:
    model, batches = net(), pairs(20)
    with torch.no_grad():
        model[1].running_var.fill_(1e-30)  # type: ignore[union-attr]

    def huge(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=1e4)

    found = try_fixes(model, batches, loss, optimizer=huge, fixes=["frozen", "calibrate"], seeds=2)
    frozen = by_name(found)["frozen"]
    assert (frozen.losses, frozen.failure, frozen.cost) == ((None, None), "", None)
    assert found[0].fix == "calibrate"


def test_layers_that_are_ours_already() -> None:
    model = convert(net())
    trials = by_name(try_fixes(model, pairs(8), loss, fixes=FIXES, steps=3, seeds=1))
    assert "already" in trials["batch_renorm"].failure
    assert "already" in trials["cross_iteration"].failure
    assert trials["frozen"].failure == trials["group_norm"].failure == ""
    assert isinstance(model[1], BatchRenorm1d)


def test_without_parameters_to_train_only_statistics_can_be_set() -> None:
    trials = by_name(try_fixes(net().requires_grad_(False), pairs(8), loss, steps=3, seeds=1))
    assert (trials[AS_IT_IS].steps, trials[AS_IT_IS].gains) == (0, (0.0,))
    assert trials["calibrate"].failure == ""
    assert all("no parameter" in trials[name].failure for name in DEFAULT if name != "calibrate")


def test_progress_counts_every_step() -> None:
    seen = []
    try_fixes(net(), pairs(8), loss, steps=3, seeds=2, progress=lambda *told: seen.append(told))
    assert {stage for stage, _, _ in seen} == {"fixes"}
    # as it is, trained and not, calibrate, and four that train
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1][1:] == (34, 34)


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.generator = (i for i in range(3))


class Sharded(nn.Sequential):
    pass


Sharded.__name__, Sharded.__module__ = "FSDPModule", "torch.distributed.fsdp"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": None}, "judged by a loss"),
        ({"steps": 0}, "steps is a whole number of at least 1, got 0"),
        ({"seeds": 1.5}, "seeds is a whole number"),
        ({"fixes": "layer_norm"}, "fixes are among calibrate, .*got 'layer_norm'"),
        ({"fixes": []}, "fixes are among"),
        ({"batches": []}, "batches are at least 4"),
        ({"batches": pairs(3)}, "got 3. Give more, or some of their own"),
        ({"batches": torch.ones(3, 3)}, r"give \[batch\]"),
        ({"held_out": []}, "held_out are at least 1"),
        ({"loss": lambda output, batch: output}, r"shape \(6, 2\)"),
        ({"loss": lambda output, batch: None}, "got NoneType"),
        ({"loss": lambda output, batch: output.sum().item()}, "training can go by"),
        ({"loss": lambda output, batch: output.detach().sum()}, "without a gradient"),
        ({"optimizer": "adam"}, "optimizer is a torch optimizer"),
        ({"optimizer": lambda parameters: None}, "made None"),
        ({"optimizer": sgd([nn.Parameter(torch.ones(1))])}, "1 parameters that Sequential has not"),
        ({"optimizer": torch.optim.LBFGS}, "several times a step"),
        ({"forward": 3}, "forward is called"),
        ({"model": nn.Sequential(nn.Linear(3, 2))}, "no normalization layer"),
        ({"model": nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))}, "no shape yet"),
        ({"model": Uncopied()}, "copy.deepcopy of Uncopied fails"),
        ({"model": Sharded(nn.BatchNorm1d(3))}, "FSDP"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    given = {"model": net(), "batches": pairs(8), "loss": loss, **changes}
    with pytest.raises(ArgumentError, match=message):
        try_fixes(**given)


def test_calibrate_alone_needs_no_gradient() -> None:
    found = try_fixes(
        net(), pairs(8), lambda output, batch: float(loss(output, batch)), fixes="calibrate"
    )
    assert [trial.steps for trial in found] == [0, 0]
    assert found.optimizer == ""


def test_an_error_of_the_progress_is_the_callers_own() -> None:
    def full(stage: str, done: int, total: int | None) -> None:
        if done == 5:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        try_fixes(net(), pairs(8), loss, steps=3, seeds=2, progress=full)
