"""The Triton kernel beyond the contract: parts, in place, ramps, saved tensors, compilation.

On the cpu, in Triton's interpreter, where there is no CUDA device.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from renorm import BatchRenorm1d, kernels, limits
from renorm.errors import ArgumentError
from renorm.functional import batch_renorm
from renorm.kernels import Call, cuda
from renorm.kernels.cuda import launch
from renorm.limits import Ramp
from renorm.nn import batch_renorm as layers
from support.cases import CASES, EPILOGUES, HALF, Case, inputs
from support.oracle import expected
from support.subjects import CUDA
from support.tolerance import assert_close

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MISSING = cuda.unavailable(DEVICE)
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# small tiles in few parts: there is something to merge, and loops run more than once
IN_PARTS = launch.Settings(whole=0, tile=64, part_tiles=1, part_share=1, programs=100, merge=64)
SETTINGS = {"whole": launch.SETTINGS, "parts": IN_PARTS}
LAYOUTS = ["contiguous", "channels_last"]


@pytest.fixture(params=list(SETTINGS))
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _use(monkeypatch, request.param)
    return request.param


def _use(monkeypatch: pytest.MonkeyPatch, name: str, **others: int) -> None:
    monkeypatch.setattr(launch, "SETTINGS", replace(SETTINGS[name], **others))
    if name == "parts":
        monkeypatch.setattr(cuda, "_processors", lambda device: 1)


def _call(x: Tensor, **options: Any) -> Call:
    g, c, dtype = torch.Generator().manual_seed(1), x.shape[1], kernels.accumulation_dtype(x.dtype)

    def vector() -> Tensor:
        return torch.randn(c, generator=g, dtype=dtype).to(DEVICE)

    call = Call(x, vector(), vector().exp(), vector(), vector(), 1.5, 0.5, 0.1, 1e-5)
    return call._replace(**options)


def _random(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    x = 3 + torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def _results(call: Call, dy: Tensor, kernel: str = "cuda") -> list[Tensor]:
    """Everything a training step gives: y, statistics and all gradients."""
    named = {name: getattr(call, name) for name in ("x", "weight", "bias", "residual")}
    leaves = {k: t.detach().requires_grad_() for k, t in named.items() if t is not None}
    outcome = kernels.run(call._replace(**leaves), kernel)
    gradients = torch.autograd.grad(outcome.y, list(leaves.values()), dy)
    return [t.detach() for t in (*outcome, *gradients) if t is not None]


def _assert_alike(ours: list[Tensor], theirs: list[Tensor], **tolerance: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# one case of every kind of tensor: settings make no difference to parts
SPLIT = list({(c.shape, c.layout, c.cotangent, c.dtype, c.offset): c for c in reversed(CASES)
              if CUDA.takes(c) and c.layout in LAYOUTS and c.affine}.values())  # fmt: skip
SPLIT += [c for c in EPILOGUES if c.id.split(" + ")[0] in ("2d", "4d channels_last", "4d bfloat16")]


@pytest.mark.parametrize("case", SPLIT, ids=lambda case: case.id)
def test_parts_match_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    t = inputs(case)
    _use(monkeypatch, "parts", tile=launch.power(max(128, t.x.numel() // 32)))
    exact = expected(case, t)
    named = {"x": t.x, "weight": t.weight, "bias": t.bias, "residual": t.residual}
    leaves = {k: v.to(DEVICE).requires_grad_() for k, v in named.items() if v is not None}
    y, mean, var = batch_renorm(
        running_mean=t.running_mean.to(DEVICE), running_var=t.running_var.to(DEVICE),
        r_max=case.limits[0], d_max=case.limits[1], momentum=case.momentum, eps=case.eps,
        relu=case.relu, kernel="cuda", **leaves,
    )  # fmt: skip
    y.backward(t.dy.to(DEVICE))
    assert_close("y", y.cpu(), exact.y, case.dtype, offset=exact.offset)
    stored = case.parameter_dtype or case.dtype
    assert mean is not None
    assert var is not None
    assert_close("mean", mean.cpu(), exact.new_mean, stored)
    assert_close("var", var.cpu(), exact.new_var, stored)
    for name, leaf in leaves.items():
        scale, dtype = getattr(exact, f"d{name}_scale", None), leaf.dtype
        assert leaf.grad is not None
        assert_close(
            f"d{name}", leaf.grad.cpu(), getattr(exact, f"d{name}"), dtype,
            scale=scale, offset=exact.offset,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_change_results_by_rounding_alone(
    dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, residual, dy = (_random(4, 3, 5, 6, dtype=dtype, layout=layout) for _ in range(3))
    results = []
    for name in SETTINGS:
        _use(monkeypatch, name)
        call = _call(x, residual=residual, relu=True)
        results.append(_results(call, dy))
        assert all(torch.equal(*pair) for pair in zip(results[-1], _results(call, dy), strict=True))
    close = 2e-2 if dtype in HALF else 2e-5
    _assert_alike(*results, rtol=close, atol=close)


@pytest.mark.parametrize("far", [1e3, -1e5])
@pytest.mark.parametrize("shape", [(16, 3, 8, 8), (64, 8)], ids=str)
@pytest.mark.usefixtures("settings")
def test_first_values_that_are_unlike_the_rest_cost_no_accuracy(
    far: float, shape: tuple[int, ...]
) -> None:
    x = far + torch.randn(shape, device=DEVICE)
    x[0] = 0
    outcome = kernels.run(_call(x, momentum=1.0), "cuda")
    dims = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.double(), dims, correction=0)
    assert outcome.new_var is not None
    torch.testing.assert_close(outcome.new_var.double(), var, rtol=1e-5, atol=0)
    assert outcome.batch_mean is not None
    torch.testing.assert_close(outcome.batch_mean[0].double(), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("settings")
def test_batch_mean_is_that_of_a_run(layout: str) -> None:
    call = _call(100 + _random(4, 3, 5, 6, layout=layout))
    mean = kernels.run(call, "cuda").batch_mean
    assert mean is not None
    assert torch.equal(kernels.batch_mean(call, "cuda"), mean)


RAMPS = (Ramp(1.0, 1.7, 5, 9), Ramp(0.0, 0.9, 4, 4))


@pytest.mark.parametrize("step", [0, 4, 5, 6, 9, 10**10])
@pytest.mark.parametrize(
    "ramps", [RAMPS, (Ramp(1.3, 1.3), Ramp(0.2, 0.2)), limits.fixed(float("inf"), 9)]
)
def test_ramps_are_evaluated_at_the_counter(step: int, ramps: Any) -> None:
    if isinstance(ramps, limits.Limits):
        ramps = (ramps.r_max, ramps.d_max)
    x, dy = _random(4, 5, 6), _random(4, 5, 6)
    counter = torch.tensor(step, device=DEVICE)
    call = _call(x, r_max=ramps[0], d_max=ramps[1], counter=counter)
    numbers = call._replace(r_max=float(ramps[0](step)), d_max=float(ramps[1](step)))
    _assert_alike(_results(call, dy), _results(numbers, dy))
    assert int(counter) == step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_and_momentum_may_be_tensors(dtype: torch.dtype) -> None:
    x, dy = _random(4, 5, 6, dtype=dtype), _random(4, 5, 6, dtype=dtype)
    call = _call(x, r_max=1.25, d_max=0.75, momentum=0.125)
    names = ("r_max", "d_max", "momentum")
    tensors = {name: torch.tensor(getattr(call, name), device=DEVICE) for name in names}
    ours, theirs = _results(call, dy), _results(call._replace(**tensors), dy)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _written(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    assert call.running_mean is not None
    assert call.running_var is not None
    assert call.counter is not None
    return call.running_mean, call.running_var, call.counter


@pytest.mark.usefixtures("settings")
def test_statistics_and_counter_are_written_in_place() -> None:
    x = _random(4, 5, 6, 7)
    counter = torch.tensor(6, device=DEVICE)
    call = _call(x, r_max=RAMPS[0], d_max=RAMPS[1], counter=counter)
    pure = kernels.run(call, "cuda")
    assert bool(pure.counted)
    versions = [t._version for t in _written(call)]
    outcome = kernels.run(call._replace(in_place=True), "cuda")
    assert outcome[2:5] == (None, None, None)
    assert torch.equal(outcome.y, pure.y)
    mean, var, count = _written(call)
    assert torch.equal(mean, pure.new_mean)  # type: ignore[arg-type]
    assert torch.equal(var, pure.new_var)  # type: ignore[arg-type]
    assert int(count) == 7
    assert [t._version for t in _written(call)] == [v + 1 for v in versions]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.usefixtures("settings")
def test_a_batch_with_a_non_finite_statistic_changes_nothing(bad: float, in_place: bool) -> None:
    x = _random(4, 10, 6)
    x[1, 7, 2] = bad
    call = _call(x, counter=torch.tensor(6, device=DEVICE), in_place=in_place)
    before = [t.clone() for t in _written(call)]
    outcome = kernels.run(call, "cuda")
    after = list(_written(call))
    if not in_place:
        assert outcome.new_mean is not None
        assert outcome.new_var is not None
        assert not bool(outcome.counted)
        after[:2] = outcome.new_mean, outcome.new_var
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not outcome.y[:, 7].isfinite().any()
    assert outcome.y[:, :7].isfinite().all()


@pytest.mark.parametrize(
    "option",
    [
        {"counter": None},
        {"running_var": torch.ones(10)[::2]},
        {"running_mean": torch.ones(5).half()},
    ],
    ids=["no counter", "strided", "other dtype"],
)
def test_what_cannot_be_written_in_place_is_returned(option: dict[str, Any]) -> None:
    option = {k: None if v is None else v.to(DEVICE) for k, v in option.items()}
    counter = torch.tensor(6, device=DEVICE)
    call = _call(_random(4, 5, 6), **{"counter": counter, "in_place": True, **option})
    outcome = kernels.run(call, "cuda")
    assert outcome.new_mean is not None
    assert bool(outcome.counted)
    assert int(counter) == 6


def test_many_channels_are_committed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SETTINGS", launch.Settings(commit=32))
    call = _call(_random(6, 70), counter=torch.tensor(0, device=DEVICE))
    ours, theirs = kernels.run(call, "cuda"), kernels.run(call, "composite")
    _assert_alike(list(ours[:4]), list(theirs[:4]))  # type: ignore[arg-type]
    call.x[0, 69] = float("nan")
    outcome = kernels.run(call, "cuda")
    assert torch.equal(outcome.new_mean, call.running_mean)  # type: ignore[arg-type]


def test_a_layer_leaves_the_schedule_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_RAMPS_IN_KERNEL", DEVICE.type)
    schedule = limits.over(4)
    both = [
        BatchRenorm1d(5, limits=schedule, momentum=0.3, device=DEVICE, kernel=kernel)
        for kernel in ("cuda", "composite")
    ]
    calls: list[Call] = []
    run = cuda.run

    def recorded(call: Call) -> Any:
        calls.append(call)
        return run(call)

    monkeypatch.setattr(cuda, "run", recorded)
    for _ in range(6):
        x, dy, results = _random(8, 5, 4), _random(8, 5, 4), []
        for layer in both:
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append([y.detach(), *torch.autograd.grad(y, leaf, dy), *layer.buffers()])
        _assert_alike(*results)
    assert int(both[0].num_batches_tracked) == 6  # type: ignore[arg-type]
    assert all(call.in_place and call.r_max is schedule.r_max for call in calls)


def _saved(call: Call) -> list[int]:
    """Addresses of the input-sized tensors kept for backward."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = kernels.run(call, "cuda").y
    return [t.data_ptr() for t in saved if t.numel() >= y.numel()]


@pytest.mark.usefixtures("settings")
def test_only_the_input_is_saved_for_backward() -> None:
    x, residual = _random(4, 3, 5, 6).requires_grad_(), _random(4, 3, 5, 6)
    assert _saved(_call(x)) == [x.data_ptr()]
    assert _saved(_call(x, relu=True)) == [x.data_ptr()]
    assert _saved(_call(x, residual=residual)) == [x.data_ptr()]
    assert len(_saved(_call(x, residual=residual, relu=True))) == 2


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_second_derivatives_are_those_of_plain_operations(relu: bool, with_residual: bool) -> None:
    options: dict[str, Any] = {"dtype": torch.float64, "device": DEVICE}
    dy, ddx = torch.randn(2, 5, 3, 4, **options).unbind()
    values = [torch.randn(s, **options) for s in ((5, 3, 4), (3,), (3,), (5, 3, 4))]
    results = []
    for kernel in ("cuda", "composite"):
        leaves = [v.clone().requires_grad_() for v in values]
        residual = leaves[3] if with_residual else None
        call = _call(leaves[0], weight=leaves[1], bias=leaves[2], residual=residual, relu=relu)
        first = leaves if with_residual else leaves[:3]
        y = kernels.run(call, kernel).y
        gradients = torch.autograd.grad(y, first, dy, create_graph=True)
        second = torch.autograd.grad(gradients[0], leaves[:2], ddx)
        results.append([t.detach() for t in (*gradients, *second)])
    _assert_alike(*results)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [1, 2], [0, 3]], ids=str)
@pytest.mark.usefixtures("settings")
def test_any_part_of_the_gradient(wanted: list[int]) -> None:
    values = [_random(5, 3, 4, 4), _random(3), _random(3), _random(5, 3, 4, 4)]
    dy = _random(5, 3, 4, 4)

    def gradients(chosen: list[int]) -> list[Tensor]:
        leaves = [v.clone().requires_grad_(i in chosen) for i, v in enumerate(values)]
        x, weight, bias, residual = leaves
        call = _call(x, weight=weight, bias=bias, residual=residual, relu=True)
        y = kernels.run(call, "cuda").y
        return list(torch.autograd.grad(y, [leaves[i] for i in chosen], dy))

    whole = gradients([0, 1, 2, 3])
    assert all(torch.equal(whole[i], g) for i, g in zip(wanted, gradients(wanted), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("settings")
def test_offsets_of_64_bits_give_the_same(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy = (_random(4, 3, 5, 6, layout=layout) for _ in range(2))
    narrow = _results(_call(x), dy)
    monkeypatch.setattr(cuda, "_NARROW", 0)
    wide = _results(_call(x), dy)
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def test_large_tensors_get_offsets_of_64_bits() -> None:
    """A tile far behind 2^32, by its offsets alone: values to go with them would take 48 GB."""
    tl = pytest.importorskip("triton.language")
    from support import tiles

    x = torch.empty(2, 3, 2**31, device="meta")
    sizes = (2, 3, 2**31)
    _, constants = cuda._cut(launch.plan(sizes, 132), sizes, x)
    assert constants["INDEX"] is tl.int64
    found = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    tiles.store_offsets[(1,)](found, 1, 2, 2**31 - 2, *sizes)
    assert found.tolist() == [6 * 2**31 - 2, 6 * 2**31 - 1]


@pytest.mark.parametrize("processors", [1, 16, 132])
@pytest.mark.parametrize(
    "sizes", [(32, 64, 3136), (1, 1, 10**9), (10**7, 8, 1), (4, 2048, 49), (1, 4096, 2)], ids=str
)
def test_plans_cover_the_values_and_fill_the_device(sizes: Any, processors: int) -> None:
    n, c, s = sizes
    plan = launch.plan(sizes, processors)
    bn, bc, bs = plan.tile
    assert all(power & (power - 1) == 0 for power in plan.tile)
    assert plan.blocks * bc >= c
    if plan.parts == 0:
        assert bn >= n
        assert bs >= s
        assert bn * bc * bs <= launch.SETTINGS.whole
    else:
        assert plan.parts == -(-n // plan.n_part) * -(-s // plan.s_part)
        assert plan.n_part % bn == plan.s_part % bs == 0
        wanted = max(1, launch.SETTINGS.programs * processors // plan.blocks)
        assert plan.parts <= wanted
        assert plan.parts * bc <= launch.SETTINGS.merge
        assert plan.parts >= min(wanted, launch.SETTINGS.merge // bc) / 2


def test_every_program_compiles_for_a_device(tmp_path: Path) -> None:
    """The interpreter is no compiler: for real, without a device to run on."""
    names = [str(dtype).removeprefix("torch.") for dtype in FLOATS[:3]]
    command = [sys.executable, "-m", "support.compiled", str(tmp_path), *names]
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


REFUSED = [
    ({"x": torch.ones(4, 3, 5).to(torch.float8_e5m2)}, "it has no code for torch.float8_e5m2"),
    ({"bias": torch.ones(3, dtype=torch.int64)}, "a parameter or statistic is not a plain"),
    ({"microbatch": 2}, "microbatches need statistics per group"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_asked_for_what_it_does_not_take_it_raises(options: dict[str, Any], reason: str) -> None:
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    call = _call(_random(4, 3, 5))._replace(**moved)
    with pytest.raises(ArgumentError, match=f"'cuda' was asked for, but {reason}"):
        kernels.choose(call, "cuda")


def test_recorded_operations_are_left_to_kernels_made_of_them() -> None:
    with FlopCounterMode(display=False):
        assert "being recorded" in str(cuda.obstacle(_call(_random(4, 3, 5))))


def test_devices_it_was_not_made_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    unfit, device = cuda._unfit.__wrapped__, torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability (8, 0), cuda:0 has (7, 5)" in str(unfit(device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert unfit(device) is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in str(unfit(device))
    assert cuda.unavailable(torch.device("meta")) == "it computes on cuda devices"


def test_on_the_cpu_it_is_for_tests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    call = _call(torch.randn(4, 3, 5))
    if DEVICE.type == "cpu":
        assert kernels.choose(call).kernel != "cuda"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu_call = call._replace(x=call.x.cpu())
    with pytest.raises(ArgumentError, match="'cuda' was asked for, but it computes on cuda"):
        kernels.choose(cpu_call, "cuda")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    call = _call(_random(4, 3, 5))
    for absent, said in ((None, "Triton is not installed"), (ImportError("no"), "not load: no")):
        with monkeypatch.context() as patch:
            if absent is None:
                patch.setattr("importlib.util.find_spec", lambda name: None)
                patch.setattr(cuda, "MISSING", cuda._absence())
            else:
                patch.setattr("importlib.import_module", _raising(absent))
                cuda._programs.cache_clear()
            with pytest.raises(ArgumentError, match=said):
                kernels.choose(call, "cuda")
            assert kernels.choose(call).kernel != "cuda"
        cuda._programs.cache_clear()


def _raising(error: Exception) -> Any:
    def raises(name: str) -> None:
        raise error

    return raises
