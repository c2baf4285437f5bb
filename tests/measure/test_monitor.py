"""When a monitor looks, what it leaves behind, what it logs and what it refuses."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import renorm
from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenormAct2d,
    CrossIterationBatchNorm1d,
    LazyBatchRenorm1d,
    limits,
)
from renorm.errors import ArgumentError
from renorm.measure import Monitor, Observation, calls
from support.networks import network, same, state


def a_model() -> Any:
    """Two convolutions; batch renorm with an activation, and plain batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchRenormAct2d(4, limits=limits.over(10), microbatch=2),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 2),
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def train(model: Any, steps: int, monitor: Monitor | None = None) -> list[torch.Tensor]:
    """Outputs and gradients of a training."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    found = []
    for _ in range(steps):
        y = model(torch.randn(6, 3, 7, 7) * 2 + 1)
        optimizer.zero_grad()
        y.backward(torch.randn_like(y))
        found += [y.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        if monitor is not None:
            monitor.step()
    return found


def test_nothing_about_the_training_changes() -> None:
    left = a_model()
    right = copy.deepcopy(left)
    torch.manual_seed(1)
    expected = train(left, 5)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with Monitor(right, every=2) as monitor:
        actual = train(right, 5, monitor)
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert same(state(left), state(right))
    assert torch.equal(torch.get_rng_state(), after)
    assert [one.step for one in monitor.observations] == [0, 0, 2, 2, 4, 4]


def test_hooks_are_there_in_observed_steps_alone() -> None:
    model = a_model()
    with Monitor(model, every=3) as monitor:
        there = []
        for _ in range(7):
            there.append(hooks(model))
            monitor.step()
        assert there == [2, 0, 0, 2, 0, 0, 2]
        for _ in range(2):
            monitor.step()
        assert hooks(model) == 2
    assert hooks(model) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_hook(error: type[BaseException]) -> None:
    model = a_model()

    def interrupted(monitor: Monitor) -> None:
        with monitor:
            train(model, 2, monitor)
            raise error

    monitor = Monitor(model, every=1)
    with pytest.raises(error):
        interrupted(monitor)
    assert hooks(model) == 0
    assert len(monitor.observations) == 4


def test_an_exception_of_the_log_leaves_no_hook() -> None:
    def log(step: int, figures: dict[str, float]) -> None:
        raise OSError("the disk is full")

    model = a_model()
    with pytest.raises(OSError, match="full"), Monitor(model, log=log) as monitor:
        train(model, 1, monitor)
    assert hooks(model) == 0


def test_a_failed_forward_leaves_the_monitor_usable() -> None:
    model = a_model()
    with Monitor(model, every=1) as monitor:
        with pytest.raises(ArgumentError, match="4-D"):
            model[1](torch.randn(3, 4))
        train(model, 1, monitor)
    assert len(monitor.observations) == 2


def test_a_step_that_is_not_done_is_not_observed() -> None:
    model = a_model()
    with Monitor(model) as monitor:
        train(model, 1)
    assert monitor.observations == []
    assert "step()" in str(monitor)


def test_closing_twice_is_fine_and_a_step_after_that_is_not() -> None:
    monitor = Monitor(a_model())
    monitor.close()
    monitor.close()
    with pytest.raises(ArgumentError, match="closed"):
        monitor.step()


def test_forwards_without_training_are_not_observed() -> None:
    model = nn.Sequential(
        BatchRenorm1d(3),
        BatchRenorm1d(3, track_running_stats=False),
        renorm.freeze(BatchRenorm1d(3)),
        nn.BatchNorm1d(3).eval(),
        nn.BatchNorm1d(3, track_running_stats=False),
        renorm.freeze(CrossIterationBatchNorm1d(3, compensation="none")),
    )
    with Monitor(model, every=1) as monitor:
        model.eval()
        model(torch.randn(4, 3))
        monitor.step()
        assert monitor.observations == []
        model.train()
        model[3].eval()
        model(torch.randn(4, 3))
        monitor.step()
    assert [one.layer for one in monitor.observations] == ["0"]


def test_gradient_accumulation_is_one_step() -> None:
    model: Any = nn.Sequential(BatchRenorm1d(3, limits=limits.fixed(3, 5), momentum=1.0))
    x = torch.randn(8, 3) * 3 + 1
    with Monitor(model, every=1) as monitor:
        for _ in range(2):
            with renorm.accumulate(model):
                for part in x.split(2):
                    model(part)
            monitor.step()
    first, second = monitor.observations
    assert first.r.shape == second.r.shape == (4, 3)
    expected = torch.stack([part.var(0, correction=0).add(1e-5).sqrt() for part in x.split(2)])
    deviation = (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(torch.from_numpy(second.r), (expected / deviation).clip(1 / 3, 3))


def test_activation_checkpointing_is_seen_once() -> None:
    from torch.utils.checkpoint import checkpoint

    model = a_model()
    x = torch.randn(6, 3, 7, 7)
    for reentrant in (False, True):
        with Monitor(model, every=1) as monitor:
            y: Any = checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
            y.backward(torch.randn_like(y))
            monitor.step()
        assert [one.r.shape for one in monitor.observations] == [(3, 4), (1, 4)]


def test_a_lazy_layer_is_observed_once_it_is_there() -> None:
    model = nn.Sequential(LazyBatchRenorm1d(limits=limits.fixed(3, 5)))
    with Monitor(model, every=1) as monitor:
        model(torch.randn(5, 3))
        monitor.step()
    assert monitor.observations[0].r.shape == (1, 3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_an_observed_model_is_not_observed(duplicate: Any) -> None:
    model = a_model()
    with Monitor(model, every=1) as monitor:
        train(duplicate(model), 1)
        monitor.step()
        assert monitor.observations == []


def test_torch_func_is_not_observed_and_not_disturbed() -> None:
    norm: Any = BatchRenorm1d(3, limits=limits.fixed(3, 5))
    x = torch.randn(4, 3)

    def loss(parameters: Any, buffers: Any) -> torch.Tensor:
        return torch.func.functional_call(norm, (parameters, buffers), (x,)).pow(3).sum()

    def gradient() -> Any:
        buffers = {name: t.clone() for name, t in norm.named_buffers()}
        return torch.func.grad(loss)(dict(norm.named_parameters()), buffers)

    expected = gradient()
    with Monitor(norm, every=1) as monitor:
        found = gradient()
        monitor.step()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert monitor.observations == []


def test_what_is_logged() -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    model = a_model()
    with Monitor(model, every=2, log=lambda *entry: logged.append(entry), start=10) as monitor:
        train(model, 3, monitor)
        assert monitor.steps == 13
    assert [step for step, _ in logged] == [10, 12]
    figures = logged[1][1]
    assert len(figures) == 11 + 7
    for one in monitor.observations[-2:]:
        for key, value in one.scalars().items():
            assert figures[f"{one.layer}/{key}"] == value


def test_what_comes_from_a_device_is_packed_and_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, found = torch.randn(6, 3, 7, 7), []
    model = nn.Sequential(a_model(), nn.Linear(2, 3), BatchRenorm1d(3))
    doubled = BatchRenorm1d(3, limits=limits.fixed(3, 5)).double()
    for on_host in (lambda t: True, lambda t: False):
        monkeypatch.setattr(calls, "_on_host", on_host)
        for module, given in ((copy.deepcopy(model), x), (copy.deepcopy(doubled), x[:, :, 0, 0])):
            with Monitor(module, every=1) as monitor:
                torch.manual_seed(1)  # of dropout
                module(given.to(next(module.parameters()).dtype))
                monitor.step()
            found.append(monitor.observations)
    for direct, packed in zip(found[:2], found[2:], strict=True):
        assert len(direct) == len(packed) > 0
        for one, other in zip(direct, packed, strict=True):
            assert one.r.tolist() == other.r.tolist()
            assert one.d.tolist() == other.d.tolist()
            assert one.scalars() == other.scalars()
            assert one.r.dtype == other.r.dtype


def test_layers_are_chosen_by_glob() -> None:
    model = network()
    for layers, expected in (("3.*", ["3.0.1"]), (["1", "4"], ["1", "4"]), (None, 3)):
        with Monitor(model, layers=layers, every=1) as monitor:
            model(torch.randn(2, 3, 9, 9))
            monitor.step()
        names = [one.layer for one in monitor.observations]
        assert names == expected or len(names) == expected


def test_memory_is_bounded() -> None:
    model = a_model()
    with Monitor(model, every=1, keep=2) as monitor:
        train(model, 5, monitor)
    assert [one.step for one in monitor.observations] == [3, 3, 4, 4]


def test_the_table_shows_the_latest_step() -> None:
    model: Any = nn.Sequential(BatchRenorm2d(1, limits=limits.fixed(3, 5)), nn.BatchNorm2d(1))
    with Monitor(model, every=1) as monitor:
        for _ in range(2):
            model(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
            monitor.step()
    titles, ours, plain = str(monitor).splitlines()[1:]
    assert str(monitor).startswith("step 1\n")
    assert titles.split() == (
        [
            "layer",
            "r",
            "5%",
            "50%",
            "95%",
            "d",
            "5%",
            "50%",
            "95%",
            "r_max",
            "d_max",
            "at",
            "r_max",
            "at",
            "d_max",
            "gap",
        ]
    )
    found, other = monitor.observations[-2:]
    r, d = float(found.r.squeeze()), float(found.d.squeeze())
    assert ours.split() == [
        "0",
        *[f"{r:.2f}"] * 3,
        *[f"{d:.2f}"] * 3,
        "3",
        "5",
        "0%",
        "0%",
        "0.000",
    ]
    assert plain.split()[-5:] == ["-", "-", "-", "-", f"{other.gap:.3f}"]


def test_schedules_by_layer() -> None:
    model: Any = nn.Sequential(
        BatchRenorm1d(2, limits=limits.over(10)),
        nn.BatchNorm1d(2),
        CrossIterationBatchNorm1d(2, compensation="none"),
        BatchRenorm1d(2, limits=limits.fixed(2, 1)),
    )
    with Monitor(model) as monitor:
        drawn = monitor.schedule(iter(range(0, 10, 2)))
    assert list(drawn) == ["0", "3"]
    assert drawn["0"].r_max.tolist() == [limits.over(10)(step)[0] for step in range(0, 10, 2)]
    assert drawn["3"].d_max.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every counts training steps, at least 1, got 0"),
        ({"every": 2.5}, "every"),
        ({"every": True}, "every"),
        ({"keep": 0}, "keep counts"),
        ({"start": -1}, "start counts training steps, at least 0"),
        ({"log": "wandb"}, "log is called"),
        ({"layers": "5.*"}, "'5.*'.*'1', '3.0.1', '4'"),
        ({"layers": [3]}, "like 3"),
        ({"layers": []}, r"at least one, got \[\]"),
        ({"layers": 3}, "at least one, got 3"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=words):
        Monitor(model, **arguments)
    assert hooks(model) == 0


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Linear has no batch norm"):
        Monitor(nn.Linear(2, 2))


def test_observations_compare_by_identity() -> None:
    model = a_model()
    with Monitor(model, every=1) as monitor:
        train(model, 1, monitor)
    one, other = monitor.observations
    assert isinstance(one, Observation)
    assert one != other
