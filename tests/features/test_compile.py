"""torch.compile, torch.export and ONNX: one graph in training, only native operations in eval."""

import copy
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, library, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from renorm import BatchRenorm1d, BatchRenorm2d, RenormError, kernels, limits

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="inductor compiles with a C++ compiler, and none is installed",
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def _net(**options: Any) -> Any:
    torch.manual_seed(0)
    options = {"limits": limits.over(4), "momentum": 0.3, **options}
    return nn.Sequential(nn.Conv2d(3, 5, 3), BatchRenorm2d(5, **options), nn.ReLU())  # type: ignore[arg-type]


def _train(net: Any, sizes: list[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    results: list[Tensor] = []
    for size in sizes:
        x = torch.randn(size, 3, 6, 6, generator=g)
        y = net(x)
        y.backward(torch.randn(y.shape, generator=g))
        results.append(y.detach())
    return results + [p.grad for p in net.parameters() if p.grad is not None] + list(net.buffers())


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"microbatch": 2}, {"track_running_stats": False}],
    ids=str,
)
def test_training_compiles_to_one_graph_of_dynamic_shape(options: dict) -> None:
    net = _net(**options)
    eager = copy.deepcopy(net)
    counter = CompileCounter()
    compiled: Any = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    sizes = [4, 6, 8, 10]
    for ours, plain in zip(_train(compiled, sizes), _train(eager, sizes), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@needs_compiler
def test_inductor_trains_like_eager() -> None:
    net = _net()
    eager = copy.deepcopy(net)
    compiled: Any = torch.compile(net, fullgraph=True, dynamic=True)
    sizes = [4, 6, 6, 8, 4]
    for ours, plain in zip(_train(compiled, sizes), _train(eager, sizes), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), eager.eval()(x), rtol=1e-4, atol=1e-5)


def test_eval_compiles_to_one_graph() -> None:
    net = _net().eval()
    counter = CompileCounter()
    compiled: Any = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for size in (4, 6, 8):
        x = torch.randn(size, 3, 6, 6)
        assert torch.equal(compiled(x), net(x))
    assert counter.frame_count == 1


def test_mask_compiles_to_one_graph() -> None:
    layer = BatchRenorm1d(4, limits=limits.fixed(1.2, 0.4))
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for size in (5, 7):
        x, mask = torch.randn(size, 4, 6), torch.rand(size, 6) < 0.6
        torch.testing.assert_close(compiled(x, mask), eager(x, mask))


@pytest.mark.parametrize("order", ["compile of checkpoint", "checkpoint of compiled"])
def test_compiled_checkpoint_is_refused_not_wrong(order: str) -> None:
    """Plain torch gives a wrong gradient for any layer that reads and writes a buffer here."""
    net = _net()
    if order == "compile of checkpoint":
        run = torch.compile(lambda x: checkpoint(net, x, use_reentrant=False), backend="aot_eager")
    else:
        compiled = torch.compile(net, backend="aot_eager")
        run = lambda x: checkpoint(compiled, x, use_reentrant=False)  # noqa: E731
    y = run(torch.randn(4, 3, 6, 6, requires_grad=True))
    assert isinstance(y, Tensor)
    with pytest.raises(RenormError, match=r"torch\.compiler\.disable"):
        y.backward(torch.randn_like(y))


def test_checkpoint_of_compiled_code_around_the_norm_is_exact() -> None:
    """What that refusal advises."""
    net = _net()
    eager = copy.deepcopy(net)
    net[1].forward = torch.compiler.disable(net[1].forward)  # type: ignore[method-assign]
    compiled = torch.compile(net, backend="aot_eager")
    x, dy = torch.randn(4, 3, 6, 6, requires_grad=True), torch.randn(4, 5, 4, 4)
    y = checkpoint(compiled, x, use_reentrant=False)
    assert isinstance(y, Tensor)
    y.backward(dy)
    eager(x.detach()).backward(dy)
    torch.testing.assert_close(net[0].weight.grad, eager[0].weight.grad, rtol=1e-4, atol=1e-5)
    assert int(net[1].num_batches_tracked) == 1  # type: ignore[arg-type]


def test_snapshot_op_is_registered_completely() -> None:
    tensors = (torch.randn(3), torch.rand(3), torch.tensor(4))
    library.opcheck(torch.ops.renorm.snapshot.default, tensors)
    assert all(torch.equal(a, b) for a, b in zip(kernels.snapshot(*tensors), tensors, strict=True))


def test_export_in_eval_holds_native_batch_norm_alone() -> None:
    net = _net().eval()
    x = torch.randn(4, 3, 6, 6)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.conv2d.default", "aten.batch_norm.default", "aten.relu.default"}
    torch.testing.assert_close(program.module()(x), net(x))


def test_symbolic_trace_in_eval() -> None:
    net = _net().eval()
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="ONNX export needs onnx, onnxscript and onnxruntime",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_export_folds_the_norm_into_the_convolution(tmp_path: Path) -> None:
    import onnxruntime

    net = _net()
    _train(net, [8, 8])
    net.eval()
    x = torch.randn(4, 3, 6, 6)
    theirs = nn.Sequential(net[0], nn.BatchNorm2d(5), nn.ReLU())
    theirs[1].load_state_dict(net[1].state_dict())
    operators = []
    for i, model in enumerate((net, theirs.eval())):
        path = tmp_path / f"{i}.onnx"
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        assert program is not None
        program.optimize()
        program.save(path)
        operators.append(sorted(node.op_type for node in program.model.graph))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), net(x).detach(), rtol=1e-4, atol=1e-5)
    assert operators[0] == operators[1] == ["Conv", "Relu"]


def test_conv_and_norm_fuse_by_torch_itself() -> None:
    net = _net()
    _train(net, [8, 8])
    net.eval()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1])  # type: ignore[arg-type]
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(fused(x), net[:2](x), rtol=1e-4, atol=1e-5)
