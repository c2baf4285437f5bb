"""Statistics that the kernel in C moves where they are: the same numbers, never half of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm2d, functional
from renorm.kernels import Call, Outcome, cpu
from support.cases import CASES, Case, inputs
from support.subjects import CPU, fill, step

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def _state(layer: nn.Module) -> list[Tensor]:
    return [t.clone() for t in layer.state_dict().values()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_same_as_copied_back(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for written in (True, False):
        if not written:
            monkeypatch.setattr(cpu, "_may_be_written", lambda call, dtype: False)
        t = inputs(case)
        layer = fill(CPU.build(case), t)
        y, dx = step(layer, t)
        states.append([y, dx, *_state(layer)])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_nothing_is_copied_in_a_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Outcome] = []
    apply = functional.apply

    def watched(call: Call, kernel: str | None = None) -> Outcome:
        outcomes.append(apply(call, kernel))
        return outcomes[-1]

    monkeypatch.setattr(functional, "apply", watched)
    layer: Any = BatchRenorm2d(3)
    layer(torch.randn(4, 3, 5, 5))
    assert outcomes == []  # not even looked at
    assert int(layer.num_batches_tracked) == 1
    layer(torch.randn(4, 3, 5, 5), mask=torch.ones(4, 5, 5).bool())
    assert [o.new_mean for o in outcomes] == [None]
    assert int(layer.num_batches_tracked) == 2
    layer.half()
    layer.weight, layer.bias = None, None
    layer(torch.randn(4, 3, 5, 5))  # narrow statistics are kept wide until they are stored
    assert outcomes[1].new_mean is not None
    assert int(layer.num_batches_tracked) == 3


def test_versions_tell_autograd_of_the_change() -> None:
    layer: Any = BatchRenorm2d(3)
    before = [b._version for b in layer.buffers()]
    layer(torch.randn(4, 3, 5, 5))
    assert [b._version for b in layer.buffers()] == [v + 1 for v in before]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("shape", [(4, 200, 5, 5), (4, 3, 64, 64), (64, 200, 1, 1)], ids=str)
def test_one_bad_channel_leaves_all_of_them(shape: tuple[int, ...], bad: float) -> None:
    layer: Any = BatchRenorm2d(shape[1])
    layer(torch.randn(shape))
    before = _state(layer)
    x = torch.randn(shape)
    x[0, -1, 0, 0] = bad
    assert not layer(x)[:, -1].isfinite().all() or bad == 1e30
    assert all(torch.equal(a, b) for a, b in zip(before, _state(layer), strict=True))


def test_a_layer_that_only_reads_its_statistics_leaves_them() -> None:
    layer: Any = BatchRenorm2d(3)
    layer.track_running_stats = False
    before = _state(layer)
    layer(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(a, b) for a, b in zip(before, _state(layer), strict=True))


def test_without_a_counter_the_layer_writes() -> None:
    layer: Any = BatchRenorm2d(3)
    layer.num_batches_tracked = None
    before = layer.running_mean.clone()
    layer(2 + torch.randn(4, 3, 5, 5))
    assert not torch.equal(before, layer.running_mean)


def test_statistics_of_inference_mode_are_written_there_alone() -> None:
    with torch.inference_mode():
        layer: Any = BatchRenorm2d(3, affine=False)
        layer(2 + torch.randn(4, 3, 5, 5))
        assert int(layer.num_batches_tracked) == 1
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        layer(torch.randn(4, 3, 5, 5))


@pytest.mark.parametrize("how", ["strided", "float64", "shared"])
def test_buffers_of_another_kind_are_served(how: str) -> None:
    t = 2 + torch.randn(4, 3, 5, 5)
    layer: Any = BatchRenorm2d(3)
    plain = BatchRenorm2d(3)
    made: dict[str, Any] = {
        "strided": lambda b: b.repeat_interleave(2)[::2],
        "float64": lambda b: b.double(),
        "shared": lambda b: b.clone().share_memory_(),
    }
    for name in ("running_mean", "running_var"):
        setattr(layer, name, made[how](getattr(layer, name)))
    layer(t)
    plain(t)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        ours, theirs = getattr(layer, name), getattr(plain, name)
        torch.testing.assert_close(ours.to(theirs.dtype), theirs)
