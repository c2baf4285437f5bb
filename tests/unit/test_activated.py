"""Norm, residual and activation in one layer: fused where nothing can notice, else called."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

import renorm
from renorm import (
    BatchRenorm2d,
    BatchRenormAct1d,
    BatchRenormAct2d,
    BatchRenormAct3d,
    LazyBatchRenormAct2d,
    limits,
)
from renorm.errors import ArgumentError
from renorm.kernels import cpu
from renorm.nn import BatchRenormAct

SHAPES = {BatchRenormAct1d: (6, 4, 5), BatchRenormAct2d: (4, 4, 3, 3),
          BatchRenormAct3d: (2, 4, 2, 3, 3), BatchRenormAct: (3, 4, 2, 2, 2, 2)}  # fmt: skip
OPEN = limits.fixed(1.5, 0.5)


def made(cls: Any = BatchRenormAct2d, **options: Any) -> Any:
    torch.manual_seed(1)
    layer = cls(4, limits=OPEN, **options)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def results(layer: Any, residual: bool = False, steps: int = 2) -> list[Tensor]:
    """Outputs, gradients and state of a few training steps and an inference."""
    g = torch.Generator().manual_seed(2)
    found: list[Tensor] = []
    shape = SHAPES.get(type(layer), (4, 4, 3, 3))
    x = other = torch.empty(shape)
    for _ in range(steps):
        x, other, dy = (torch.randn(shape, generator=g) for _ in range(3))
        leaves = [x.requires_grad_(), *([other.requires_grad_()] if residual else [])]
        y = layer(x, residual=other) if residual else layer(x)
        y.backward(dy)
        found += [y.detach(), *(t.grad for t in leaves if t.grad is not None)]
    layer.eval()
    found.append(layer(x, residual=other) if residual else layer(x))
    return [*found, layer.weight.grad, layer.bias.grad, *layer.buffers()]


def nothing(*_: Any) -> None:
    return None


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("cls", SHAPES, ids=lambda c: c.__name__)
def test_fused_and_composed_agree(cls: type, residual: bool) -> None:
    fused, composed = made(cls), made(cls)
    composed.act.register_forward_hook(nothing)
    assert (fused.fused, composed.fused) == (True, False)
    assert_equal(results(fused, residual), results(composed, residual))


def test_relu_is_the_default_and_identity_is_none() -> None:
    x = torch.randn(4, 4, 3, 3)
    norm = BatchRenorm2d(4)(x)
    assert torch.equal(BatchRenormAct2d(4)(x), norm.relu())
    assert torch.equal(BatchRenormAct2d(4, act=nn.Identity())(x), norm)


def test_order_is_norm_drop_residual_act() -> None:
    class Third(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 3

    x, other = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)
    layer = BatchRenormAct2d(4, act=nn.SiLU(), drop=Third())
    expected = nn.functional.silu(BatchRenorm2d(4)(x) / 3 + other)
    torch.testing.assert_close(layer(x, residual=other), expected)


def test_settings_come_by_position_too() -> None:
    layer = BatchRenormAct2d(4, 1e-3, 0.2, False)
    assert (layer.eps, layer.momentum, layer.affine) == (1e-3, 0.2, False)


class Mine(nn.ReLU):
    pass


def replaced() -> nn.Module:
    act = nn.ReLU()
    act.forward = act.forward
    return act


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"act": nn.ReLU(inplace=True)}, True),
        ({"drop": nn.Dropout(0.0)}, True),
        ({"drop": nn.Dropout2d(0.5).eval()}, True),
        ({"drop": nn.Dropout(0.5)}, False),
        ({"drop": nn.AlphaDropout(0.0)}, False),
        ({"act": nn.SiLU()}, False),
        ({"act": nn.ReLU6()}, False),
        ({"act": Mine()}, False),
        ({"act": replaced()}, False),
        ({"act": nn.Identity()}, False),
    ],
    ids=str,
)
def test_fused_where_the_activation_is_a_plain_relu(options: dict, fused: bool) -> None:
    assert BatchRenormAct2d(4, **options).fused is fused


REGISTER = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("where", ["act", "drop"])
@pytest.mark.parametrize("register", REGISTER)
def test_a_hook_has_the_modules_called(register: str, where: str, mode: bool) -> None:
    layer = made().train(mode)
    calls: list[nn.Module] = []
    handle = getattr(getattr(layer, where), register)(lambda m, *_: calls.append(m))
    x = torch.randn(4, 4, 3, 3, requires_grad=True)
    layer(x).backward(torch.randn(x.shape))
    assert calls == [getattr(layer, where)]
    assert not layer.fused
    handle.remove()
    assert layer.fused


def test_hooks_see_what_is_before_and_behind_the_activation() -> None:
    layer = made(act=nn.ReLU())
    seen: list[Tensor] = []
    layer.act.register_forward_hook(lambda _, args, y: seen.extend((*args, y)))
    x, other = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)
    plain: Any = BatchRenorm2d(4, limits=OPEN)
    plain.load_state_dict(layer.state_dict())
    y = layer(x, residual=other)
    before = plain(x) + other
    torch.testing.assert_close(seen, [before, before.relu()])
    assert torch.equal(y, seen[1])


def test_a_hook_on_all_modules_has_them_called() -> None:
    layer, seen = made(), []
    handle = register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        layer(torch.randn(4, 4, 3, 3))
    finally:
        handle.remove()
    assert seen == [nn.Identity, nn.ReLU, BatchRenormAct2d]
    assert layer.fused


def test_hooks_of_the_layer_itself_see_the_end() -> None:
    layer, seen = made(), []
    layer.register_forward_hook(lambda _, args, y: seen.append(y))
    assert torch.equal(layer(torch.randn(4, 4, 3, 3)), seen[0])
    assert layer.fused
    assert (seen[0] >= 0).all()


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()], ids=str)
@pytest.mark.parametrize(
    "residual",
    [torch.zeros(4, 4, 1, 1), torch.zeros(4, 4, 3, 3).double()],
    ids=["shape", "dtype"],
)
def test_a_residual_unlike_the_input_is_refused(
    residual: Tensor, act: nn.Module, mode: bool
) -> None:
    layer = BatchRenormAct2d(4, act=act).train(mode)
    with pytest.raises(ArgumentError, match="must be like x"):
        layer(torch.randn(4, 4, 3, 3), residual=residual)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6()], ids=str)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_padding_is_the_activated_residual(act: nn.Module, mode: bool) -> None:
    layer = BatchRenormAct1d(4, act=act).train(mode)
    x, other, mask = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.rand(3, 5) < 0.6
    mask[0] = True
    y = layer(x, mask, other)
    padding = ~mask.unsqueeze(1).expand(x.shape)
    assert torch.equal(y[padding], other[padding].relu())


def test_state_repr_copies_and_pickles() -> None:
    layer = made(act=nn.ReLU(inplace=True))
    plain = BatchRenorm2d(4, limits=OPEN)
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict(), strict=True)
    assert layer.extra_repr() == plain.extra_repr()
    assert "(act): ReLU(inplace=True)" in repr(layer)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    first = results(layer)
    for other in copies:
        assert all(torch.equal(a, b) for a, b in zip(results(other), first, strict=True))


def test_lazy_layer_becomes_the_plain_one() -> None:
    act = nn.SiLU()
    layer = LazyBatchRenormAct2d(limits=OPEN, momentum=0.2, act=act, drop=nn.Dropout(0.3))
    x = torch.randn(4, 7, 3, 3)
    layer(x, residual=x)
    assert type(layer) is BatchRenormAct2d
    assert (layer.num_features, layer.momentum, layer.limits) == (7, 0.2, OPEN)
    assert layer.act is act
    assert isinstance(layer.drop, nn.Dropout)
    assert renorm.LazyBatchRenormAct1d().fused


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointing_gives_the_gradient_of_the_run_without(reentrant: bool) -> None:
    plain = made(momentum=0.5)
    kept = copy.deepcopy(plain)
    x, other, dy = (torch.randn(4, 4, 3, 3) for _ in range(3))
    gradients = []
    for layer in (plain, kept):
        leaves = [x.clone().requires_grad_(), other.clone().requires_grad_()]
        if layer is plain:
            y: Any = layer(leaves[0], None, leaves[1])
        else:
            y = checkpoint(layer, leaves[0], None, leaves[1], use_reentrant=reentrant)
        y.backward(dy)
        gradients.append([*(t.grad for t in leaves), layer.weight.grad, *layer.buffers()])
    torch.testing.assert_close(*gradients)


def test_frozen_layer_still_activates() -> None:
    layer = made()
    layer(torch.randn(4, 4, 3, 3))
    x = torch.randn(4, 4, 3, 3)
    expected = copy.deepcopy(layer).eval()(x)
    assert torch.equal(renorm.freeze(layer).train()(x), expected)
    assert (expected >= 0).all()


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU()], ids=str)
def test_compiles_to_one_graph(act: nn.Module, mode: bool) -> None:
    torch._dynamo.reset()
    eager = made(act=act).train(mode)
    compiled: Any = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    for n in (4, 6):
        x, other = torch.randn(n, 4, 3, 3), torch.randn(n, 4, 3, 3)
        torch.testing.assert_close(compiled(x, residual=other), eager(x, residual=other))
        torch.testing.assert_close(compiled(x), eager(x))


def test_exports_in_eval_to_native_operations_alone() -> None:
    layer, x = made().eval(), torch.randn(4, 4, 3, 3)
    program = torch.export.export(layer, (x,), {"residual": x})
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.batch_norm.default", "aten.add.Tensor", "aten.relu.default"]
    torch.testing.assert_close(program.module()(x, residual=x), layer(x, residual=x))


def test_symbolic_trace_keeps_the_activation_as_a_module() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), made()).eval()
    graph = fx.symbolic_trace(net)
    assert "1.act" in [node.target for node in graph.graph.nodes]
    x = torch.randn(4, 4, 3, 3)
    assert torch.equal(graph(x), net(x))


@pytest.mark.skipif(
    not cpu.FUSES or cpu.MISSING is not None,
    reason="no C kernel, or none that does residual and ReLU itself",
)
def test_backward_keeps_the_input_and_nothing_else_of_its_size() -> None:
    saved: list[Tensor] = []
    x = torch.randn(4, 4, 8, 8, requires_grad=True)

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        made(kernel="cpu")(x)
    per_channel = 8 * 4  # a mask of x in bits has four times as many bytes
    assert [t.data_ptr() for t in saved if t.numel() > per_channel] == [x.data_ptr()]
