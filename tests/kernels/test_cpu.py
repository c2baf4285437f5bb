"""The kernel in C beyond the contract: every instruction set, thread count, layout and size."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contract.checks import CHECKS, Check
from contract.trial import Trial
from renorm import kernels
from renorm.functional import batch_renorm
from renorm.kernels import Averages, Call, cpu
from renorm.kernels.layout import sizes as layout_of
from support.cases import CASES, Case, inputs
from support.oracle import expected, groups
from support.subjects import CPU
from support.tolerance import assert_close, bound

pytestmark = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))

INSTRUCTIONS = ("baseline", "avx2", "avx512")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [(1, 2, 40_000), (64, 5, 300), (2, 3, 128, 129), (700, 65), (3, 2, 9, 41, 41)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    if not cpu.native.use(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    any(cpu.native.use(name) for name in reversed(INSTRUCTIONS))


def _call(x: Tensor, **options: Any) -> Call:
    g, c, dtype = torch.Generator().manual_seed(1), x.shape[1], kernels.accumulation_dtype(x.dtype)

    def vector() -> Tensor:
        return torch.randn(c, generator=g, dtype=dtype)

    call = Call(x, vector(), vector().exp(), vector(), vector(), 1.5, 0.5, 0.1, 1e-5)
    return call._replace(**options)


def _results(call: Call, dy: Tensor, kernel: str = "cpu") -> list[Tensor]:
    """Everything a training step gives: y, statistics and all gradients."""
    assert call.weight is not None
    assert call.bias is not None
    leaves = [t.detach().requires_grad_() for t in (call.x, call.weight, call.bias)]
    outcome = kernels.run(call._replace(x=leaves[0], weight=leaves[1], bias=leaves[2]), kernel)
    gradients = torch.autograd.grad(outcome.y, leaves, dy)
    return [t.detach() for t in (*outcome, *gradients) if t is not None]


@pytest.mark.parametrize("case", list(filter(CPU.takes, CASES)), ids=lambda case: case.id)
def test_every_instruction_set_keeps_the_contract(case: Case, instructions: str) -> None:
    def applies(check: Check) -> bool:
        return check.id.endswith(("the_reference", "large_offset", "leaves_the_statistics"))

    trial = Trial(CPU, case)
    for check in CHECKS:
        if applies(check) and check.when(CPU, case):
            check.run(trial)


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(1, 40),
    c=st.integers(1, 40),
    s=st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 49, 63, 64, 65, 127, 130, 300, 4099]),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["contiguous", "channels_last"]),
    name=st.sampled_from(INSTRUCTIONS),
    microbatch=st.sampled_from([None, None, 1, 3, 16]),
    masked=st.booleans(),
    residual=st.booleans(),
    relu=st.booleans(),
    backward=st.sampled_from(["batch", "batch", "moving"]),
)
def test_sizes_around_lanes_and_blocks(
    n: int, c: int, s: int, dtype: torch.dtype, layout: Any, name: str, **what: Any
) -> None:
    if n * s == 1 or n * c * s > 100_000:
        return
    case = Case("any", (n, c, 1, s), dtype, layout=layout, parameter_dtype=torch.float32, **what)
    t = inputs(case)
    if case.backward == "moving" and any(len(rows) < 2 for rows in groups(case, t)):
        return  # the oracle's moving averages are of groups with a spread
    leaves = {"x": t.x, "weight": t.weight, "bias": t.bias, "residual": t.residual}
    leaves = {name: v.detach().requires_grad_() for name, v in leaves.items() if v is not None}
    mean, var = t.running_mean, t.running_var
    r_max, d_max = case.limits
    call = Call(leaves["x"], mean, var, leaves["weight"], leaves["bias"], r_max, d_max,
                case.momentum, case.eps, t.mask, case.microbatch, leaves.get("residual"),
                case.relu, averages=_first_averages(case))  # fmt: skip
    cpu.native.use(name)
    try:
        outcome = kernels.run(call, "cpu")
        y, new_var = outcome.y, outcome.new_var
        y.backward(t.dy)
    finally:
        any(cpu.native.use(each) for each in reversed(INSTRUCTIONS))
    exact = expected(case, t)
    offset = max(exact.offset, exact.group_offset)
    size = max(1.0, float(exact.y.abs().max()))  # a ReLU may leave small values alone
    assert_close("y", y, exact.y, dtype, scale=size, offset=offset)
    if exact.margin <= bound(torch.float32, size, offset):
        return  # rounding decides whether a gradient passes
    dx_scale = max(exact.dx_scale, float(exact.dx.abs().max()))
    scales = {"x": dx_scale, "weight": exact.dweight_scale, "bias": exact.dbias_scale}
    for name, leaf in leaves.items():
        stored = dtype if name in ("x", "residual") else torch.float32
        value = getattr(exact, f"d{name}")
        assert_close(f"d{name}", leaf.grad, value, stored, scale=scales.get(name), offset=offset)
    assert_close("running_var", new_var, exact.new_var, torch.float32)


def _first_averages(case: Case) -> Averages | None:
    """Those of no pass yet, if the case is one of moving averages."""
    if case.backward == "batch":
        return None
    dtype = kernels.accumulation_dtype(case.dtype)
    return Averages(torch.zeros(2, case.shape[1], dtype=dtype), torch.zeros((), dtype=dtype), 0.1)


def _large(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, dy = 3 + torch.randn(shape), torch.randn(shape)
    if layout == "channels_last" and len(shape) > 3:
        memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
        x, dy = (t.contiguous(memory_format=memory_format) for t in (x, dy))
    return x.to(dtype), dy.to(dtype)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_repeatable_to_the_bit(shape: tuple[int, ...], layout: str) -> None:
    x, dy = _large(shape, layout, torch.float32)
    first = _results(_call(x), dy)
    for _ in range(5):
        again = _results(_call(x), dy)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_results_by_rounding_alone(shape: tuple[int, ...], layout: str) -> None:
    x, dy = _large(shape, layout, torch.float64)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 7):  # few channels are cut into parts, rows into ranges
        torch.set_num_threads(threads)
        results.append(_results(_call(x), dy))
    torch.set_num_threads(before)
    for other in (*results[1:], _results(_call(x), dy, "aten")):
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("microbatch", [1, 4, 20])
def test_groups_side_by_side_are_repeatable_to_the_bit(microbatch: int, layout: str) -> None:
    x, dy = _large((37, 6, 40, 31), layout, torch.float32)
    mask = torch.rand(37, 40, 31) < 0.7
    call = _call(x, microbatch=microbatch, mask=mask, relu=True)
    first = _results(call, dy)
    for _ in range(3):
        again = _results(call, dy)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("two_threads")
def test_calls_from_many_threads_agree() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, dy = _large((64, 5, 300), "contiguous", torch.float32)
    exact = _results(_call(x), dy)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: _results(_call(x), dy), range(16)):
            for a, b in zip(exact, result, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("far", [1e3, -1e5])
@pytest.mark.parametrize("shape", [(64, 8, 16, 16), (512, 8)], ids=str)
def test_first_values_that_are_unlike_the_rest_cost_no_accuracy(
    far: float, shape: tuple[int, ...]
) -> None:
    """The sums are taken about the first values: all others are far from those here."""
    x = far + torch.randn(shape)
    x[0] = 0
    if len(shape) == 2:
        x[:16] = 0
    outcome = kernels.run(_call(x), "cpu")
    dims = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.double(), dims, correction=0)
    call = _call(x)
    assert call.running_var is not None
    assert call.running_mean is not None
    sigma = (call.running_var.double() + 1e-5).sqrt()
    step_of_sigma = 0.1 * ((var + 1e-5).sqrt() - sigma)
    assert outcome.new_var is not None
    assert outcome.batch_mean is not None
    torch.testing.assert_close(
        outcome.new_var.double(), (sigma + step_of_sigma).square() - 1e-5, rtol=2e-5, atol=0
    )
    torch.testing.assert_close(outcome.batch_mean[0].double(), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(9, 5, 33), (33, 20)], ids=str)
def test_storage_offsets_need_no_alignment(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    exact = _results(_call(x), dy)
    for offset in (1, 3):
        moved = []
        for t in (x, dy):
            buffer = torch.full((t.numel() + offset,), float("nan"), dtype=dtype)
            moved.append(buffer[offset:].view(shape).copy_(t))
        for a, b in zip(exact, _results(_call(moved[0]), moved[1]), strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 1, 2053), (5, 33, 7, 9)], ids=["large planes", "small"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_outputs_are_those_of_small_ones_to_the_bit(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, instructions: str
) -> None:
    """From 16 MiB on they are written past the caches; of odd sizes, so at most addresses they
    cannot be."""
    x, dy = _large(shape, layout, dtype)
    copies, sizes = 2**24 // x.nbytes + 1, layout_of(x)
    assert sizes is not None
    y, *_, dx, _, _ = _results(_call(x, microbatch=5), dy)
    many = [torch.cat([t] * copies) for t in (x, dy)]
    assert layout_of(many[0]) == (layout == "channels_last", 5 * copies, *sizes[2:])
    ys, *_, dxs, _, _ = _results(_call(many[0], microbatch=5), many[1])
    assert ys.nbytes >= 2**24
    for one, all_of_them in ((y, ys), (dx, dxs)):
        assert all(torch.equal(one, each) for each in all_of_them.split(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_round_as_torch_does(dtype: torch.dtype, instructions: str) -> None:
    """Every pattern of 16 bits goes in, and comes out as torch converts it."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = patterns[patterns.isfinite() & (patterns.float().abs() < 200)].view(1, -1)
    x = x[:, : x.shape[1] // 2 * 2].view(2, -1)
    call = _call(x, running_mean=None, running_var=None)
    wide = kernels.run(call._replace(x=x.float()), "cpu").y
    narrow = kernels.run(call, "cpu").y
    assert torch.equal(narrow, wide.to(dtype))
    for scale in (1e-7, 1e-5, 1e-3, 1e3, 1e5, float("inf"), float("nan")):
        weight = torch.full((x.shape[1],), scale)
        zeros = torch.zeros_like(weight)
        wide = kernels.run(call._replace(x=x.float(), weight=weight, bias=zeros), "cpu").y
        narrow = kernels.run(call._replace(weight=weight, bias=zeros), "cpu").y
        torch.testing.assert_close(narrow, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(12, 10).t(),
        lambda: torch.randn(4, 9, 6).transpose(1, 2),
        lambda: torch.randn(4, 6, 1, 1).contiguous(memory_format=torch.channels_last),
        lambda: torch.randn(4, 1, 5, 7),
    ],
)
def test_layouts_that_are_taken_as_they_lie_are_kept(make: Any) -> None:
    x = make()
    dy = torch.randn(x.shape)
    ours = _results(_call(x), dy)
    theirs = _results(_call(x), dy, "composite")
    assert ours[0].stride() == x.stride()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(4, 6, 8)[:, :, ::2],
        lambda: torch.randn(1, 6, 8).expand(4, 6, 8),
        lambda: torch.randn(8, 4, 6).permute(1, 2, 0)[:, ::2],
        lambda: torch.randn(4, 6, 3, 2, 2, 2).transpose(1, 4),
        lambda: torch.ops.aten._neg_view(torch.randn(4, 6, 8)),
    ],
)
def test_any_other_layout_gives_the_same_numbers(make: Any) -> None:
    x = make()
    dy = torch.ops.aten._neg_view(torch.randn(x.shape)) if x.is_neg() else torch.randn(x.shape)
    for a, b in zip(_results(_call(x), dy), _results(_call(x), dy, "composite"), strict=True):
        torch.testing.assert_close(a, b)


def test_strided_parameters_of_other_dtypes() -> None:
    x = torch.randn(6, 5, 4)
    for dtype in FLOATS:
        wide = torch.rand(4, 10).to(dtype) + 0.5
        mean, var, weight, bias = (row[::2] for row in wide)
        options = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
        for a, b in zip(
            kernels.run(_call(x, **options), "cpu"),
            kernels.run(_call(x, **options), "composite"),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("microbatch", [None, 1, 3])
def test_batch_mean_is_that_of_a_run(microbatch: int | None) -> None:
    for shape in SHAPES:
        call = _call(100 + torch.randn(shape), microbatch=microbatch)
        mean = kernels.run(call, "cpu").batch_mean
        assert mean is not None
        assert torch.equal(kernels.batch_mean(call, "cpu"), mean)


def _leaves() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(5, 3, 4), (3,), (3,)]
    return [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]


def _y(leaves: list[Tensor], kernel: str, limits: tuple[float, float] = (1.2, 0.3)) -> Tensor:
    mean, var = torch.full((3,), 0.2).double(), torch.full((3,), 0.7).double()
    r_max, d_max = limits
    return batch_renorm(*_first(leaves, mean, var), r_max=r_max, d_max=d_max, kernel=kernel)[0]


def _first(leaves: list[Tensor], mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
    return leaves[0], mean, var, leaves[1], leaves[2]


def _leaf(t: Tensor | None) -> Any:
    return None if t is None else t.clone().requires_grad_()


SECOND = [
    {},
    {"relu": True},
    {"microbatch": 2},
    {"microbatch": 2, "masked": True, "relu": True},
    {"masked": True},
    {"residual": True, "relu": True},
]


@pytest.mark.parametrize("what", SECOND, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives_are_those_of_the_composition(what: dict, layout: Any) -> None:
    case = Case("any", (5, 3, 4, 2), torch.float64, layout=layout, **what)
    t = inputs(case)
    ddx = torch.randn(case.shape, dtype=torch.float64)
    results = []
    for kernel in ("cpu", "composite"):
        x, weight, bias, residual = map(_leaf, (t.x, t.weight, t.bias, t.residual))
        leaves = [v for v in (x, weight, bias, residual) if v is not None]
        dy = t.dy.clone().requires_grad_()
        r_max, d_max = case.limits
        y, _, _ = batch_renorm(
            x, t.running_mean, t.running_var, weight, bias, r_max=r_max, d_max=d_max,
            mask=t.mask, microbatch=case.microbatch, residual=residual, relu=case.relu,
            kernel=kernel,
        )  # fmt: skip
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        second = torch.autograd.grad(first[0], [x, weight, dy], ddx)
        results.append([v.detach() for v in (*first, *second)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    def y(*leaves: Tensor) -> Tensor:
        return _y(list(leaves), "cpu", (1.0, 0.0))  # r and d are constant: differences apply

    assert torch.autograd.gradcheck(y, _leaves())
    assert torch.autograd.gradgradcheck(y, _leaves())


def test_batched_gradients() -> None:
    cotangents = torch.randn(4, 5, 3, 4, dtype=torch.float64)
    results = []
    for kernel in ("cpu", "aten"):
        leaves = _leaves()
        y = _y(leaves, kernel)
        results.append(torch.autograd.grad(y, leaves, cotangents, is_grads_batched=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [1, 2], [0, 2]], ids=str)
def test_any_part_of_the_gradient(wanted: list[int]) -> None:
    leaves = _leaves()
    whole = torch.autograd.grad(_y(leaves, "cpu").sin().sum(), leaves)
    part = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    got = torch.autograd.grad(_y(part, "cpu").sin().sum(), [part[i] for i in wanted])
    assert all(torch.equal(whole[i], g) for i, g in zip(wanted, got, strict=True))


def test_only_the_input_is_saved_for_backward() -> None:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x = torch.randn(8, 4, 9, 9, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kernels.run(_call(x), "cpu")
    assert [t.data_ptr() for t in saved if t.numel() > 4 * 6] == [x.data_ptr()]


def test_hooks_on_saved_tensors_may_change_the_layout() -> None:
    x, dy = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    plain = _results(_call(x), dy)

    def unpack(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        hooked = _results(_call(x), dy)
    for a, b in zip(plain, hooked, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_positions_are_counted_in_64_bits(layout: str) -> None:
    """More than 2^31 values; pages that nobody has written are all one page of zeros."""
    last = 2**30 + 64
    x = torch.from_numpy(np.zeros(2 * last, np.int16)).view(torch.bfloat16)  # torch's own write
    x[-1] = 2**20
    if layout == "contiguous":
        x = x.view(1, 2, last, 1)
    else:
        x = x.view(1, last, 1, 2).permute(0, 3, 1, 2)
    assert layout_of(x) == (layout == "channels_last", 1, 2, last)
    mean = kernels.batch_mean(_call(x), "cpu")
    torch.testing.assert_close(mean, torch.tensor([[0.0, 2**20 / last]]))


def test_large_sizes_are_counted_in_64_bits() -> None:
    """The sizes alone: values to go with them would take 12 GiB."""
    assert layout_of(torch.empty(1).expand(2, 3, 2**30)) is None  # would be copied
    assert layout_of(torch.empty(2, 3, 2**30, device="meta")) == (False, 2, 3, 2**30)
