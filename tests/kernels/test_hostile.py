"""Input that is not what it seems: an error or a right result, never a crash or quiet nonsense."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from renorm import BatchRenorm1d, kernels
from renorm.functional import batch_renorm
from renorm.kernels import cpu
from support.tolerance import bound

BUILT = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


def _freed(t: Tensor) -> Tensor:
    """As sharding and offloading leave a parameter that is not in use."""
    t.untyped_storage().resize_(0)
    return t


@BUILT
@pytest.mark.parametrize("name", ["x", "weight", "bias", "running_mean", "running_var"])
def test_freed_memory_is_refused(name: str) -> None:
    layer, x = BatchRenorm1d(4), torch.randn(64, 4)
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != name}
    _freed(x if name == "x" else getattr(layer, name).data)
    with pytest.raises(RuntimeError, match="its memory was freed"):
        layer(x)
    state = layer.state_dict()
    assert all(torch.equal(value, state[k]) for k, value in before.items())


@BUILT
def test_a_weight_freed_before_the_backward_is_refused() -> None:
    weight, x = torch.full((4,), 5.0, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    y, _, _ = batch_renorm(x, None, None, weight, r_max=1, d_max=0)
    _freed(weight.data)
    with pytest.raises(RuntimeError, match="its memory was freed"):
        torch.autograd.grad(y, x, torch.randn_like(y))


def test_zeros_without_memory_are_zeros() -> None:
    zeros: Tensor = torch.ops.aten._efficientzerotensor((6, 4))
    layer, plain = BatchRenorm1d(4), BatchRenorm1d(4)
    assert torch.equal(layer(zeros), plain(torch.zeros(6, 4)))
    assert torch.equal(layer.running_var, plain.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["composite", pytest.param("cpu", marks=BUILT)])
def test_a_microbatch_beyond_all_sizes_is_the_batch(kernel: str) -> None:
    x, dy = torch.randn(2, 64, 4).unbind()
    results = []
    for microbatch in (None, sys.maxsize):
        layer = BatchRenorm1d(4, microbatch=microbatch, kernel=kernel)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append([y.detach(), *torch.autograd.grad(y, leaf, dy), *layer.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", [k for k in kernels.names() if k != "cuda"])
def test_an_empty_batch_passes_through_a_checkpoint(kernel: str) -> None:
    if kernel == "cpu" and cpu.MISSING:
        pytest.skip(cpu.MISSING)
    layer = BatchRenorm1d(4, kernel=kernel)
    x = torch.empty(0, 4, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    assert isinstance(y, Tensor)
    y.backward(torch.empty(0, 4))
    assert x.grad is not None
    assert x.grad.shape == (0, 4)
    assert int(layer.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_new_statistics_of_an_empty_batch_are_new() -> None:
    mean, var = torch.zeros(4), torch.ones(4)
    _, new_mean, new_var = batch_renorm(torch.empty(0, 4), mean, var, r_max=3, d_max=5)
    assert new_mean is not mean
    assert new_var is not var
    assert torch.equal(new_var, var)  # type: ignore[arg-type]


@BUILT
def test_a_masked_group_of_one_value_has_no_slope_without_a_reference() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    mask = torch.tensor([True, False, False])
    y, _, _ = batch_renorm(x, None, None, r_max=1, d_max=0, mask=mask)
    for create_graph in (True, False):
        (dx,) = torch.autograd.grad(
            y, x, torch.randn_like(y), create_graph=create_graph, retain_graph=True
        )
        assert dx.abs().max() <= bound(torch.float32, 316 * 3)  # 1 / sqrt(eps), and dy


@BUILT
def test_what_a_relu_stops_is_stopped_and_nan_goes_on() -> None:
    x = torch.tensor([[1.0, float("nan")], [3, 0], [-5, 0]], requires_grad=True)
    residual = torch.zeros(3, 2, requires_grad=True)
    dy = torch.tensor([[1.0, 1], [1, 1], [float("inf"), 1]])
    y, _, _ = batch_renorm(
        x, torch.zeros(2), torch.ones(2), r_max=1, d_max=0, residual=residual, relu=True
    )
    for create_graph in (True, False):
        (dresidual,) = torch.autograd.grad(
            y, residual, dy, create_graph=create_graph, retain_graph=True
        )
        assert torch.equal(dresidual, torch.tensor([[1.0, 1], [1, 1], [0, 1]]))


def test_a_batch_that_is_not_counted_keeps_wider_statistics_to_the_bit() -> None:
    layer: Any = BatchRenorm1d(4)
    layer.running_mean = torch.full((4,), 0.1, dtype=torch.float64)
    layer.running_var = torch.full((4,), 0.3, dtype=torch.float64)
    x = torch.randn(6, 4)
    x[0, 0] = float("nan")
    layer(x)
    assert torch.equal(layer.running_mean, torch.full((4,), 0.1, dtype=torch.float64))
    assert torch.equal(layer.running_var, torch.full((4,), 0.3, dtype=torch.float64))
    _, mean, _ = batch_renorm(x, layer.running_mean, layer.running_var, r_max=3, d_max=5)
    assert torch.equal(mean, layer.running_mean)  # type: ignore[arg-type]


def test_a_subclass_may_check_its_input() -> None:
    class Strict(BatchRenorm1d):
        def _check_input_dim(self, input: Tensor) -> None:
            raise ValueError("nothing is good enough")

    with pytest.raises(ValueError, match="good enough"):
        Strict(4)(torch.randn(6, 4))


@BUILT
def test_hooks_may_change_how_saved_statistics_lie() -> None:
    x, dy = torch.randn(2, 6, 4).unbind()
    results = []
    for unpack in (lambda t: t, lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y, _, _ = batch_renorm(leaf, torch.zeros(4), torch.ones(4), r_max=1.2, d_max=0.3)
            results.append(torch.autograd.grad(y, leaf, dy)[0])
    torch.testing.assert_close(*results)


@BUILT
def test_a_counter_elsewhere_is_not_counted_here() -> None:
    layer: Any = BatchRenorm1d(4)
    call = kernels.Call(
        torch.randn(6, 4), layer.running_mean, layer.running_var, None, None, 1.0, 0.0, 0.1, 1e-5,
        counter=torch.zeros((), dtype=torch.int64, device="meta"), in_place=True,
    )  # fmt: skip
    assert kernels.run(call, "cpu").new_mean is not None
    assert kernels.at_once(call) is None
