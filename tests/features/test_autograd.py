"""Derivatives: gradcheck, double backward, forward mode, and repeated or reordered forwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from renorm import BatchRenorm1d, BatchRenorm2d, limits
from renorm.functional import batch_renorm
from renorm.nn import BatchRenorm
from renorm.nn.recomputation import Memory, Reference

KERNELS = ("aten", "composite")


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _function(kernel: str | None, **options: Any) -> Callable[..., Tensor]:
    C = 3
    mean, var = 0.3 * _double(C), _double(C).exp()

    def y(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_renorm(
            x, mean, var, weight, bias, r_max=1.2, d_max=0.3, kernel=kernel, **options
        )[0]  # type: ignore[arg-type]

    return y


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 2)], ids=str)
def test_gradcheck_in_the_batch_norm_phase(kernel: str, shape: tuple[int, ...]) -> None:
    # finite differences see r and d move; with limits (1, 0) they are constant and both agree
    x, w, b = _double(*shape).requires_grad_(), _double(3).requires_grad_(), _double(3)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def y(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return batch_renorm(x, mean, var, w, b, r_max=1, d_max=0, kernel=kernel)[0]

    inputs = (x, w, b.requires_grad_())
    assert torch.autograd.gradcheck(y, inputs)
    assert torch.autograd.gradgradcheck(y, inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck_where_every_correction_is_clipped(kernel: str) -> None:
    # clipped, r and d are the limits themselves and do not move with x: finite differences apply
    x = (3 + 5 * _double(6, 3)).requires_grad_()
    mean, var = torch.zeros(3, dtype=torch.float64), torch.full((3,), 0.01, dtype=torch.float64)

    def y(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return batch_renorm(x, mean, var, w, b, r_max=1.5, d_max=0.5, kernel=kernel)[0]

    inputs = (x, _double(3).requires_grad_(), _double(3).requires_grad_())
    assert torch.autograd.gradcheck(y, inputs)
    assert torch.autograd.gradgradcheck(y, inputs)


@pytest.mark.parametrize("options", [{"microbatch": 2}, {"mask": True}], ids=str)
def test_gradcheck_of_masks_and_microbatches(options: dict[str, Any]) -> None:
    x = (3 + 5 * _double(5, 3, 2)).requires_grad_()
    mean, var = torch.zeros(3, dtype=torch.float64), torch.full((3,), 0.01, dtype=torch.float64)
    if "mask" in options:
        options = {"mask": torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]]).bool()}

    def y(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return batch_renorm(x, mean, var, w, b, r_max=1.5, d_max=0.5, **options)[0]

    inputs = (x, _double(3).requires_grad_(), _double(3).requires_grad_())
    assert torch.autograd.gradcheck(y, inputs)
    assert torch.autograd.gradgradcheck(y, inputs)


def test_double_backward_is_the_same_in_both_kernels() -> None:
    x, w, b = _double(4, 3, 5), _double(3), _double(3)
    results = []
    torch.manual_seed(1)
    cotangents = _double(4, 3, 5), _double(4, 3, 5)
    for kernel in KERNELS:
        torch.manual_seed(2)
        f = _function(kernel)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        (dx,) = torch.autograd.grad(f(*leaves), leaves[0], cotangents[0], create_graph=True)
        results.append(torch.autograd.grad(dx, leaves[:2], cotangents[1]))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-11)


def test_r_and_d_carry_no_gradient() -> None:
    """Moving only the running statistics' inputs: no gradient reaches them."""
    mean, var = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    x = torch.randn(5, 3, requires_grad=True)
    for kernel in KERNELS:
        y, new_mean, new_var = batch_renorm(x, mean, var, r_max=3, d_max=5, kernel=kernel)
        assert new_mean is not None
        assert new_var is not None
        assert not new_mean.requires_grad
        assert not new_var.requires_grad
        y.backward(torch.randn_like(y))
    assert mean.grad is None
    assert var.grad is None


def test_forward_mode_differentiation() -> None:
    f = _function(None)
    x, w, b = _double(4, 3, 5).requires_grad_(), _double(3), _double(3)
    tangent, cotangent = _double(4, 3, 5), _double(4, 3, 5)
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(x.detach(), tangent), w, b)
        jvp = forward_ad.unpack_dual(y).tangent
    (dx,) = torch.autograd.grad(f(x, w, b), x, cotangent)
    assert jvp is not None
    torch.testing.assert_close((jvp * cotangent).sum(), (dx * tangent).sum())


def _net(kernel: str | None, **options: Any) -> nn.Sequential:
    torch.manual_seed(3)
    options = {"limits": limits.fixed(1.3, 0.4), "momentum": 0.3, "kernel": kernel, **options}
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        BatchRenorm2d(4, **options),  # type: ignore[arg-type]
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        BatchRenorm2d(3, **options),  # type: ignore[arg-type]
    )


def _gradients_and_state(net: nn.Module, runs: list[tuple[Tensor, Tensor]], mode: str) -> list:
    """Forward all inputs, then backward all, as accumulation over a pipeline does."""
    outputs = []
    for x, _ in runs:
        x = x.clone().requires_grad_()
        if mode == "plain":
            outputs.append(net(x))
        else:
            outputs.append(checkpoint(net, x, use_reentrant=mode == "reentrant"))
    for y, (_, dy) in zip(outputs, runs, strict=True):
        y.backward(dy)
    return [p.grad for p in net.parameters()] + [b.clone() for b in net.buffers()]


@pytest.mark.parametrize("options", [{}, {"microbatch": 2}], ids=["batch", "microbatch"])
@pytest.mark.parametrize("kernel", [None, "composite"])
@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_activation_checkpointing_changes_nothing(
    mode: str, kernel: str | None, options: dict[str, Any]
) -> None:
    runs = [(torch.randn(4, 2, 7, 7) + i, torch.randn(4, 3, 3, 3)) for i in range(3)]
    plain = _gradients_and_state(_net(kernel, **options), runs, "plain")
    checkpointed = _gradients_and_state(_net(kernel, **options), runs, mode)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_nested_checkpointing_changes_nothing(mode: str) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net(None)

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.net[:3], x, use_reentrant=mode == "reentrant")
            assert isinstance(h, Tensor)
            return self.net[3:](h)

    run = [(torch.randn(4, 2, 7, 7), torch.randn(4, 3, 3, 3))]
    plain = _gradients_and_state(_net(None), run, "plain")
    nested = _gradients_and_state(Nested(), run, mode)
    assert all(torch.equal(a, b) for a, b in zip(plain, nested, strict=True))


def test_training_forward_inside_a_backward_pass_is_a_step_of_its_own() -> None:
    layer = BatchRenorm1d(3)
    x = torch.randn(6, 3)
    with torch.no_grad():
        layer(torch.randn(6, 3))  # remembered, since a checkpoint could repeat it
    probe = torch.ones(1, requires_grad=True)
    probe.register_hook(lambda grad: layer(x).new_zeros(1))
    probe.backward(torch.ones(1))
    assert int(layer.num_batches_tracked) == 2  # type: ignore[arg-type]


def test_two_training_forwards_before_one_backward() -> None:
    layer = BatchRenorm(3, limits=limits.fixed(1.2, 0.3), momentum=0.5).double()
    a, b = _double(5, 3).requires_grad_(), (2 + _double(5, 3)).requires_grad_()
    start = {k: v.clone() for k, v in layer.state_dict().items()}
    dy = _double(5, 3)
    first, second = layer(a), layer(b)
    together = torch.autograd.grad([first, second], [a, b], [dy, dy])
    layer.load_state_dict(start)
    apart = torch.autograd.grad(layer(a), a, dy) + torch.autograd.grad(layer(b), b, dy)
    assert all(torch.equal(p, q) for p, q in zip(together, apart, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_input_is_saved_for_backward(kernel: str) -> None:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x = torch.randn(8, 4, 9, 9, requires_grad=True)
    layer = BatchRenorm2d(4, kernel=kernel)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    large = {t.data_ptr() for t in saved if t.numel() >= x.numel()}
    if kernel == "aten":
        assert large == {x.data_ptr()}
    else:
        assert large  # the composition keeps what autograd needs


def test_repeated_forward_is_told_from_others_by_its_statistics() -> None:
    """A memory of many forwards, a bad batch among them, returns the right one or none."""
    memory, g = Memory(), torch.Generator().manual_seed(0)
    means = [torch.randn(1, 3, generator=g) for _ in range(10)]
    means.insert(4, torch.full((1, 3), float("nan")))
    for i, mean in enumerate(means):
        memory.keep(mean, Reference(torch.full((3,), float(i)), torch.ones(3), torch.tensor(i)))
    now = Reference(torch.full((3,), 99.0), torch.ones(3), torch.tensor(99))
    for i, mean in enumerate(means):
        reference, found = memory.find(mean, now)
        expected = 99 if mean.isnan().any() else i
        assert bool(found) == (expected != 99)
        assert int(reference.step) == expected
        assert torch.equal(reference.mean, torch.full((3,), float(expected)))
    unknown, found = memory.find(torch.randn(1, 3, generator=g), now)
    assert not found
    assert int(unknown.step) == 99
    assert not memory.find(means[0].double(), now)[1]  # another dtype: another forward
