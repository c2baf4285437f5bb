"""The kernel in C as operators of torch: right by torch's own checks, and what a compiler runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, library, nn

import renorm
from renorm.errors import RenormError
from renorm.kernels import cpu
from support.cases import CASES, EPILOGUES, Case, case, inputs
from support.subjects import CPU, OURS, fill, step

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

SOME = [
    *map(case, ("2d", "4d channels_last", "4d strided", "2d transposed", "no affine", "no bias")),
    *map(case, ("microbatch ragged", "masked microbatch", "4d bfloat16", "4d float64")),
    *(c for c in EPILOGUES if c.id.startswith(("4d +", "masked channels_last +", "2d float16 +"))),
]


def _arguments(case: Case) -> tuple[Any, ...]:
    t = inputs(case)
    x, residual, weight, bias = (
        None if v is None else v.detach().requires_grad_()
        for v in (t.x, t.residual, t.weight, t.bias)
    )
    settings = (torch.tensor(v) for v in (*case.limits, case.momentum))
    statistics = (t.running_mean, t.running_var)
    return (x, *statistics, weight, bias, residual, t.mask, *settings, case.eps, case.microbatch,
            case.relu)  # fmt: skip


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_torch_finds_nothing_wrong(case: Case) -> None:
    library.opcheck(torch.ops.renorm.forward.default, _arguments(case))


def test_torch_finds_nothing_wrong_without_statistics() -> None:
    x, _, _, *rest = _arguments(case("4d"))
    library.opcheck(torch.ops.renorm.forward.default, (x, None, None, *rest))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_the_operator_gives_what_the_layer_gives(case: Case) -> None:
    arguments, t = _arguments(case), inputs(case)
    y, _, new_mean, new_var, counted = torch.ops.renorm.forward(*arguments)
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(y, leaves, t.dy)
    plain = renorm.functional.batch_renorm(
        *(arguments[i] for i in (0, 1, 2, 3, 4)), r_max=case.limits[0], d_max=case.limits[1],
        momentum=case.momentum, eps=case.eps, mask=t.mask, microbatch=case.microbatch,
        residual=arguments[5], relu=case.relu, kernel="cpu",
    )  # fmt: skip
    expected = [*plain, *torch.autograd.grad(plain[0], leaves, t.dy)]
    narrow = (new_mean.to(t.running_mean.dtype), new_var.to(t.running_var.dtype))
    assert bool(counted)
    for a, b in zip([y, *narrow, *gradients], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def _nodes(model: nn.Module, x: Tensor) -> list[str]:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(model, backend=backend, fullgraph=True)(x)
    assert len(graphs) == 1
    return [str(node.target) for node in graphs[0].graph.nodes]


@pytest.mark.parametrize("kernel", [None, "cpu"])
def test_a_compiled_layer_runs_it(kernel: str | None) -> None:
    layer = renorm.BatchRenorm2d(3, kernel=kernel)
    assert "renorm.forward" in _nodes(layer, torch.randn(4, 3, 5, 5))


def test_an_exported_program_is_free_of_it() -> None:
    program = torch.export.export(renorm.BatchRenorm2d(3), (torch.randn(4, 3, 5, 5),))
    assert "renorm.forward" not in str(program.graph)


def test_a_transform_inside_compiled_code_is_served_by_plain_operations() -> None:
    layer = renorm.BatchRenorm1d(3, track_running_stats=False)

    def one(x: Tensor) -> Tensor:
        return layer(x)  # vmap would print the layer itself, which dynamo cannot

    def ensemble(x: Tensor) -> Tensor:
        return torch.vmap(one)(x)

    x = torch.randn(2, 8, 3)
    compiled = torch.compile(ensemble, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), ensemble(x))


@pytest.mark.parametrize("name", ["2d", "4d channels_last", "masked 4d", "microbatch ragged"])
def test_compiled_training_is_eager_training(name: str) -> None:
    one: Case = case(name)
    t = inputs(one)
    eager, compiled = (fill(OURS[len(one.shape)](one.shape[1]), t) for _ in range(2))
    graph: Any = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        results = zip(step(eager, t), step(graph, t), strict=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in results)
    for a, b in zip(eager.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_second_derivative_through_the_operator_is_refused() -> None:
    arguments = _arguments(case("4d"))
    y = torch.ops.renorm.forward(*arguments)[0]
    (dx,) = torch.autograd.grad(y, arguments[0], torch.randn_like(y), create_graph=True)
    with pytest.raises(RenormError, match="differentiated twice"):
        torch.autograd.grad(dx, arguments[0], torch.randn_like(dx))


def test_every_kind_of_case_is_among_those_checked() -> None:
    taken = {c.layout for c in SOME} | {c.dtype for c in SOME}
    assert taken >= {"contiguous", "channels_last", "strided"} | {c.dtype for c in CASES}
    assert CPU.missing is None
