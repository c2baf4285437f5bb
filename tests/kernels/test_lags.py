"""The statistics of a window in C: those of torch's operations, on every processor and size."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import renorm
from renorm.kernels import cpu
from renorm.kernels.cpu import lags as native
from renorm.kernels.patches import Geometry, mean_patch, patches
from support.crossed import CASES, Case, drift, paired

IN_C = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
INSTRUCTIONS = ("baseline", "avx2", "avx512")
FUNCTIONS = ("mean_patch", "derived", "sampled", "combined", "keep", "sample", "gather", "track")
KINDS: list[dict[str, Any]] = [
    {"compensation": "none"},
    {"compensation": "first_order"},
    {"compensation": "exact"},
    {"compensation": "exact", "sample": 3},
    {"compensation": "first_order", "sample": 2},
    {"compensation": "exact", "sample": 1000},
    {"compensation": "first_order", "momentum": None, "follow": "batch"},
]
# relative to the largest value, after six steps of which each uses the results of the one before
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}

pytestmark = [IN_C, pytest.mark.filterwarnings("ignore:Using padding='same'")]


@pytest.fixture(autouse=True)
def all_instructions() -> Iterator[None]:
    yield
    any(cpu.native.use(name) for name in reversed(INSTRUCTIONS))


def steps(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, in_c: bool, **settings: Any
) -> dict[str, Tensor]:
    """All that six training steps of a layer give and leave."""
    torch.manual_seed(0)
    source, norm = paired(case, window=4, **settings)
    source, norm = source.to(dtype), norm.to(dtype)
    found: dict[str, Tensor] = {}
    with monkeypatch.context() as patch:
        if not in_c:
            patch.setattr(cpu, "MISSING", "it is not wanted here")
        for i in range(6):
            x = 2 * torch.randn(case.shape, dtype=torch.float64) + i
            z = norm(source(x.to(dtype)))
            (source.weight.grad,) = torch.autograd.grad(z, source.weight, torch.randn_like(z))
            found |= {f"z {i}": z.detach(), f"gradient {i}": source.weight.grad}
            drift(source)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    found |= {"running mean": norm.running_mean, "running var": norm.running_var}
    found["count"] = norm.num_batches_tracked.double()
    return found | {name: t.double() for name, t in norm._history.state().items()}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        error = float((found[name] - value).abs().max())
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_do_what_they_do_by_torch_operations(
    case: Case, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, tolerance in TOLERANCE.items():
        expected = steps(case, dtype, monkeypatch, in_c=False, **settings)
        for name in INSTRUCTIONS:
            if cpu.native.use(name):
                found = steps(case, dtype, monkeypatch, in_c=True, **settings)
                assert_alike(found, expected, tolerance)


def test_every_function_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    class Recording:
        def __getattr__(self, name: str) -> Any:
            called.add(name)
            return getattr(native_before, name)

    native_before = cpu.native
    monkeypatch.setattr(cpu, "native", Recording())
    case = next(c for c in CASES if c.name == "conv2d")
    steps(case, torch.float32, monkeypatch, in_c=True)
    steps(case, torch.float32, monkeypatch, in_c=True, compensation="exact", sample=3)
    assert set(FUNCTIONS) <= called


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("spatial", [(1, 1), (3, 3), (4, 5), (9, 7), (17, 16)], ids=str)
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_mean_patches_are_means_of_patches(
    examples: int, spatial: tuple[int, int], groups: int
) -> None:
    g = Geometry((3, 2), (1, 2), (1, 1), ((1, 1), (0, 1)), "zeros", groups)
    x = torch.randn(examples, 6, *spatial, dtype=torch.float64) + 3
    laid_otherwise = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(patches(x, g), patches(laid_otherwise, g))
    rows = torch.full((groups, 4, 36 // groups), 7.0, dtype=torch.float64)
    expected = patches(x, g).mean(1)
    for name in INSTRUCTIONS:
        if cpu.native.use(name):
            mean_patch(x, g, x.dtype, rows[:, 2])
            torch.testing.assert_close(rows[:, 2], expected, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(mean_patch(x, g, x.dtype), expected, rtol=1e-13, atol=1e-13)
    assert (rows[:, [0, 1, 3]] == 7).all()  # nothing was written beside it


@pytest.mark.parametrize("K", [1, 3, 8, 15, 16, 17, 64, 65, 1000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("L", [1, 2, 3, 4, 6, 7, 8, 13])
def test_derivatives_of_any_length(K: int, L: int, threads: int) -> None:
    C = 200
    t = {
        name: torch.randn(shape, dtype=torch.float64)
        for name, shape in {
            "W": (1, C, K), "bias": (C,), "mean_patch": (1, L + 1, K), "derivative": (C, L, K),
            "offset": (C, L + 1), "rest": (C, L), "inverse_var": (C, L),
        }.items()
    }  # fmt: skip
    W, before = t["W"][0], torch.get_num_threads()
    expected_mean = W @ t["mean_patch"][0].t() + t["offset"] + t["bias"].unsqueeze(1)
    covariance = (W.unsqueeze(1) * t["derivative"]).sum(2)
    expected_var = (covariance + t["rest"]).square() * t["inverse_var"]
    try:
        torch.set_num_threads(threads)
        for name in INSTRUCTIONS:
            if cpu.native.use(name):
                mean, var = native.derived(**t)
                torch.testing.assert_close(mean, expected_mean, rtol=1e-11, atol=1e-11)
                torch.testing.assert_close(var, expected_var, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_num_threads(before)


def test_variances_stay_at_least_zero_and_nan_stays() -> None:
    zeros = torch.zeros(3, 2)
    rest = torch.tensor([[-1.0], [0.5], [float("nan")]])
    _, var = native.sampled(torch.zeros(3, 4), None, None, zeros, rest, None)
    torch.testing.assert_close(var, rest.clamp(min=0), equal_nan=True)


def test_whether_a_window_is_finite_is_said() -> None:
    mean, var = torch.zeros(5), torch.ones(5)
    assert native.combined(mean, var, None, None)[2]
    for value in (float("nan"), float("inf"), -float("inf")):
        for poisoned in (mean, var):
            poisoned[3] = value
            assert not native.combined(mean, var, None, None)[2]
            poisoned[3] = 0


def test_running_statistics_that_are_moved_are_known_as_changed() -> None:
    layers = nn.Conv2d(2, 3, 1), renorm.CrossIterationBatchNorm2d(3)
    layers[1].attach(layers[0])
    assert layers[1].running_mean is not None
    before = layers[1].running_mean._version
    layers[1](layers[0](torch.randn(2, 2, 3, 3)))
    assert layers[1].running_mean._version > before


def test_what_cannot_be_read_is_not_given_to_it() -> None:
    x = torch.ones(2, 3)
    assert native.usable(x)
    assert native.readable(x.dtype, x, None, nn.Parameter(x))
    others = [x.double(), x.half(), x.t(), x.to("meta"), torch.ops.aten._neg_view(x), x.to_sparse()]
    assert not any(native.readable(torch.float32, other) for other in others)
    assert not native.usable(x.half())
    assert not native.usable(x.to("meta"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_that_do_not_go_together_are_refused(name: str) -> None:
    function = getattr(cpu.native, name)
    with pytest.raises(TypeError, match="arguments"):
        function()
    x = torch.ones(2, 2)
    sizes = {
        "mean_patch": (x, x, x, x, 0, 1, 1, 1, 1, 1),
        "derived": (x, x, x, x, x, None, 2, 1, x, x, x, 0, 1),
        "sampled": (x, x, x, x, None, None, 2, 1, x, x, 1),
        "combined": (x, x, x, None, None, x, 2, 1, 1, 1),
        "keep": (x, x, None, x, x, None, x, 2, 1, 1, 0),
        "sample": (x, x, x, x, None, x, x, x, x, 2, 1, 1, 1, 1, 2, 0, 1, 1, 1, 1),
        "gather": (x, x, x, x, 2, 1, 1, 1, 1, 1),
        "track": (x.half(), x, x, x, None, 2, 0.1, 1.0),
    }[name]
    with pytest.raises(ValueError, match=r"no code|do not go together"):
        function(*sizes)
    if name != "track":
        with pytest.raises(ValueError, match="no code"):
            function(x.half(), *sizes[1:])
    with pytest.raises(TypeError):
        function(x, *["?"] * (len(sizes) - 1))


def test_memory_that_was_freed_is_noticed() -> None:
    mean, var = torch.zeros(5), torch.ones(5)
    mean.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="freed"):
        native.combined(mean, var, None, None)
