"""Input, settings and calls that no one should make, and that some do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import renorm
from cross_iteration.networks import batches, network, norms, optimizer_of, trained
from renorm.errors import ArgumentError

INF = float("inf")


def pair(source: Any, **settings: Any) -> tuple[Any, Any]:
    of_rank = {nn.Linear: "1d", nn.Conv1d: "1d", nn.Conv2d: "2d", nn.Conv3d: "3d"}
    cls = getattr(renorm, f"CrossIterationBatchNorm{of_rank[type(source)]}")
    dtype = source.weight.dtype
    norm = cls(source.weight.shape[0], window=3, dtype=dtype, **settings)
    norm.attach(source)
    return source, norm


def recovers(source: Any, norm: Any, shape: tuple[int, ...], within: int = 1) -> bool:
    """Whether outputs are of unit size again after so many iterations."""
    y = torch.empty(0)
    for _ in range(within):
        y = norm(source(torch.randn(shape)))
    return bool(y.isfinite().all()) and float(y.detach().std()) > 0.1


@pytest.mark.parametrize(
    ("source", "shape", "layout"),
    [
        (nn.Conv2d(3, 16, 3, padding=1), (2, 3, 16, 16), torch.channels_last),
        (nn.Conv2d(3, 2, (5, 1)), (3, 3, 9, 9), torch.channels_last),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 9), torch.channels_last),
        (nn.Conv3d(3, 8, 3, padding=1), (2, 3, 6, 6, 6), torch.channels_last_3d),
    ],
    ids=["conv2d", "conv2d_5x1", "grouped", "conv3d"],
)
def test_many_positions_of_channels_last(
    source: Any, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    source, norm = pair(source)
    expected: dict[str, Tensor] = {}
    for format in (torch.contiguous_format, layout):
        norm.reset_running_stats()
        source.to(memory_format=format)
        torch.manual_seed(0)
        for _ in range(3):
            norm(source(torch.randn(shape).contiguous(memory_format=format)))
        found = {name: t.clone() for name, t in norm._history.tensors.items()}
        for name, t in expected.items():
            torch.testing.assert_close(found[name], t, rtol=1e-4, atol=1e-4)
        expected = found


def test_a_first_value_that_is_not_finite_is_not_remembered() -> None:
    source, norm = pair(nn.Linear(3, 4))
    norm(source(torch.full((1, 3), INF)))
    assert norm._history.empty
    assert recovers(source, norm, (4, 3))


@pytest.mark.parametrize("compensation", ["first_order", "exact"])
def test_values_that_no_filter_reads_may_be_anything(compensation: str) -> None:
    source, norm = pair(nn.Conv2d(2, 4, 1, stride=2), compensation=compensation)
    x = torch.randn(2, 2, 6, 6)
    x[0, 0, 1, 1] = INF
    assert norm(source(x)).isfinite().all()
    assert recovers(source, norm, (2, 2, 6, 6))


def test_lags_that_are_not_finite_at_other_weights_leave_the_window() -> None:
    source, norm = pair(nn.Linear(2, 3))
    with torch.no_grad():
        source.weight[:, 1] = 0
        norm(source(torch.randn(4, 2) * torch.tensor([1.0, 1e30])))
        source.weight[:, 1] = 1
    before = norm.running_var.clone()
    norm(source(torch.randn(4, 2)))
    assert torch.equal(norm.running_var, before)
    assert recovers(source, norm, (16, 2), within=3)
    assert not torch.equal(norm.running_var, before)


def test_an_iteration_of_enormous_values_leaves_the_window() -> None:
    source, norm = pair(nn.Linear(5, 4))
    norm(source(torch.randn(8, 5)))
    norm(source(1e11 * torch.randn(8, 5)))
    assert recovers(source, norm, (16, 5), within=4)
    assert norm.running_var.isfinite().all()


def test_a_window_may_begin_in_inference_mode() -> None:
    model = network()
    with torch.inference_mode():
        model(torch.randn(3, 2, 7, 7))
    trained(model, optimizer_of(model), batches(3))
    assert all(norm._history.position == 4 for norm in norms(model))


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (nn.Linear(3, 4), (3,)),
        (nn.Linear(3, 4), (2, 5, 3)),
        (nn.Conv1d(3, 4, 2), (3, 6)),
        (nn.Conv2d(3, 4, 2), (3, 6, 6)),
    ],
    ids=["linear_of_one", "linear_of_sequences", "conv1d_of_one", "conv2d_of_one"],
)
def test_a_source_still_takes_every_input_that_it_took(source: Any, shape: tuple[int, ...]) -> None:
    source, norm = pair(source)
    y = source(torch.randn(shape))
    assert y.isfinite().all()
    assert norm._seen is None


def test_a_norm_behind_transposed_sequences_is_refused_by_name() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.linear(x).transpose(1, 2))

    model = renorm.convert(Transposed(), to="cross_iteration")
    with pytest.raises(ArgumentError, match=r"bn \(.*normalizes the output of linear"):
        model(torch.randn(2, 5, 3))


def test_a_model_that_trained_can_be_emptied_on_the_meta_device() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(2))
    model.to("meta").to_empty(device="cpu")
    assert all(norm._history.empty for norm in norms(model))
    for t in (*model.parameters(), *model.buffers()):
        nn.init.ones_(t)
    model(torch.randn(3, 2, 7, 7))


def test_saved_history_is_loaded_to_the_dtype_and_device_of_the_layer() -> None:
    model = network(history="save")
    trained(model, optimizer_of(model), batches(3))
    other = network(seed=5, history="save").double()
    other.load_state_dict(model.state_dict())
    x, dy = next(batches(1))
    other(x.double()).backward(dy.double())
    assert all(norm._history.position == 4 for norm in norms(other))
    assert all(sum(n > 0 for n in norm._history.counts) == 3 for norm in norms(other))
    history, there = other[1]._history, torch.empty(0, device="meta")
    history.load(model[1]._history.state(), there)
    assert all(t.is_meta for t in history.tensors.values())


def test_a_layer_of_impossible_momentum_leaves_all_as_they_were() -> None:
    norm = nn.BatchNorm1d(3, momentum=1.5)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), norm)
    with pytest.raises(ArgumentError, match="momentum"):
        renorm.convert(model, to="cross_iteration")
    assert [type(m) for m in model] == [nn.Linear, nn.BatchNorm1d] * 2
    assert not any(m._forward_hooks for m in model)
    renorm.convert(model, to="cross_iteration", momentum=0.1)


def test_new_settings_leave_no_hook_behind() -> None:
    source, norm = pair(nn.Linear(3, 4))
    norm.configure(window=5)
    assert norm.source is None
    assert not source._forward_hooks
    source(torch.randn(2, 3))


@pytest.mark.parametrize("compensation", ["first_order", "none"])
def test_a_repeated_forward_in_float64_loses_no_digits(compensation: str) -> None:
    """A third, the share in a window of three, is not the same number in float32."""
    gradients = []
    for repeated in (False, True):
        torch.manual_seed(0)
        model: Any = network(window=3, compensation=compensation).double()
        for _ in range(4):
            x = torch.randn(3, 2, 7, 7, dtype=torch.float64, requires_grad=True)
            y = checkpoint(model, x, use_reentrant=True) if repeated else model(x)
            dy = torch.randn_like(y)
            model.zero_grad()
            y.backward(dy)
        gradients.append([p.grad.clone() for p in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
