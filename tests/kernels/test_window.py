"""Normalization by the statistics of a window: every path, layout, dtype and derivative."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from renorm import reference
from renorm.kernels import accumulation_dtype, cpu
from renorm.kernels.cpu import window as native
from renorm.kernels.window import moments, normalize
from renorm.reference.cross_iteration_2020 import (
    cross_iteration_norm,
    cross_iteration_norm_backward,
)
from support.tolerance import assert_close

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # from fine to coarse
SHARES = (0.0, 1 / 8, 1 / 3, 1.0)
EPS = 1e-3

# (N, C, *spatial) in float64; each of another kind of memory
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "2d": lambda: _noise(33, 20),
    "2d transposed": lambda: _noise(20, 33).t(),
    "3d": lambda: _noise(5, 6, 17),
    "3d transposed": lambda: _noise(5, 17, 6).transpose(1, 2),
    "4d": lambda: _noise(4, 8, 7, 7),
    "4d one channel": lambda: _noise(3, 1, 5, 9),
    "4d one value": lambda: _noise(1, 6, 1, 1),
    "4d channels_last": lambda: _noise(4, 7, 7, 8).permute(0, 3, 1, 2),
    "4d many channels_last": lambda: _noise(2, 3, 3, 130).permute(0, 3, 1, 2),
    "4d strided": lambda: _noise(4, 8, 6, 12)[..., ::2],
    "4d expanded": lambda: _noise(1, 8, 6, 5).expand(4, 8, 6, 5),
    "5d": lambda: _noise(2, 4, 3, 5, 5),
    "5d channels_last": lambda: _noise(2, 3, 5, 5, 4).permute(0, 4, 1, 2, 3),
    "negated": lambda: torch.ops.aten._neg_view(_noise(4, 3, 5)),
}


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _laid(layout: str, dtype: torch.dtype = torch.float64, offset: float = 0.0) -> Tensor:
    """Noise about an offset; its memory in any dtype is as it is in float64."""
    x = LAYOUTS[layout]()
    memory = ((x if x._base is None else x._base) + offset).to(dtype)
    moved = memory.as_strided(x.shape, x.stride(), x.storage_offset())
    return torch.ops.aten._neg_view(moved) if x.is_neg() else moved


@pytest.fixture(params=["c", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the code in C computes what it can, or torch's operations everything."""
    if request.param == "plain":
        monkeypatch.setattr(cpu, "MISSING", "it is not wanted here")
    elif cpu.MISSING is not None:
        pytest.skip(cpu.MISSING)
    return request.param


class Inputs(NamedTuple):
    x: Tensor
    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor
    r: Tensor | None
    d: Tensor | None
    dz: Tensor


def _inputs(
    x: Tensor, parameter_dtype: torch.dtype | None = None, *, corrected: bool = False
) -> Inputs:
    """x, and statistics as a window would have, in the dtype of statistics."""
    c, dtype, wide = x.shape[1], x.dtype, accumulation_dtype(x.dtype)
    weight, bias = (_noise(c).to(parameter_dtype or dtype) for _ in range(2))
    mean, var = x.double().mean() + 0.3 * _noise(c), _noise(c).exp()
    r, d = (_noise(c).div(4).exp(), _noise(c)) if corrected else (None, None)
    r, d = (None if t is None else t.to(wide) for t in (r, d))
    dz = torch.empty_like(x).copy_(_noise(*x.shape))
    return Inputs(x, mean.to(wide), var.to(wide), weight, bias, r, d, dz)


def _results(t: Inputs, share: float) -> list[Tensor]:
    """z and the gradients of x, weight and bias."""
    x, weight, bias = (v.detach().requires_grad_() for v in (t.x, t.weight, t.bias))
    z = normalize(x, t.mean, t.var, weight, bias, share=share, eps=EPS, r=t.r, d=t.d)
    return [z.detach(), *torch.autograd.grad(z, (x, weight, bias), t.dz)]


class Exact(NamedTuple):
    values: list[Tensor]  # z, dx, dweight and dbias
    scales: list[float]  # of each, or of the largest sum of magnitudes that are added to one


def _exact(t: Inputs, share: float) -> Exact:
    """The reference on the values as they are stored; r and d enter it as weight and bias."""
    x, dz = (reference.as_rows(_numbers(v)) for v in (t.x, t.dz))
    mean, var, weight, bias = map(_numbers, (t.mean, t.var, t.weight, t.bias))
    r = np.ones_like(mean) if t.r is None else _numbers(t.r)
    d = np.zeros_like(mean) if t.d is None else _numbers(t.d)
    k: Any = 1 / share if share else float("inf")
    z = cross_iteration_norm(x, mean, var, weight * r, weight * d + bias, EPS)
    dx, dweight, dbias = cross_iteration_norm_backward(dz, x, mean, var, k, weight * r, EPS)
    z_hat = (x - mean) / np.sqrt(var + EPS)
    size = np.abs(weight * r / np.sqrt(var + EPS))
    sums = np.abs(dz).sum(0), np.abs(dz * z_hat).sum(0)
    terms = np.abs(dz) + share * (sums[0] + np.abs(z_hat) * sums[1]) / len(x)
    scales = [
        float(v.max())
        for v in (
            np.abs(weight * r * z_hat) + np.abs(weight * d) + np.abs(bias),
            size * terms,
            np.abs(r) * sums[1] + np.abs(d) * sums[0],
            sums[0],
        )
    ]
    maps = (reference.as_maps(v, t.x.shape) for v in (z, dx))
    return Exact(
        [torch.from_numpy(np.array(v)) for v in (*maps, dweight * r + d * dbias, dbias)], scales
    )


def _numbers(t: Tensor) -> np.ndarray:
    return t.detach().double().resolve_neg().numpy()


def _compare(results: list[Tensor], exact: Exact, t: Inputs) -> None:
    dtypes = (t.x.dtype, t.x.dtype, t.weight.dtype, t.bias.dtype)
    names = ("z", "dx", "dweight", "dbias")
    for name, result, value, scale, dtype in zip(names, results, *exact, dtypes, strict=True):
        assert result.dtype is dtype
        assert_close(name, result, value, _tolerated(t.x.dtype, dtype), scale=scale)


def _tolerated(computed: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """Of the two the dtype that allows a larger error."""
    return max(computed, stored, key=FLOATS.index)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "r and d"])
@pytest.mark.parametrize("share", SHARES, ids="{:.3g}".format)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_the_reference(layout: str, share: float, corrected: bool) -> None:
    t = _inputs(_laid(layout), corrected=corrected)
    _compare(_results(t, share), _exact(t, share), t)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("parameters", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["2d", "4d", "4d channels_last", "4d strided"])
def test_every_dtype(layout: str, dtype: torch.dtype, parameters: torch.dtype) -> None:
    t = _inputs(_laid(layout, dtype), parameters, corrected=True)
    _compare(_results(t, 1 / 3), _exact(t, 1 / 3), t)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_offset_costs_no_accuracy(layout: str, dtype: torch.dtype) -> None:
    """The mean is given, so x - mean is as exact as x: no error grows with mean/std."""
    t = _inputs(_laid(layout, dtype, 1e4))
    _compare(_results(t, 1 / 8), _exact(t, 1 / 8), t)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mean_in_float64_loses_nothing(dtype: torch.dtype) -> None:
    t = _inputs(_laid("4d", dtype, 1e4))
    mean = 1e4 + 1e-4 + torch.rand(8, dtype=torch.float64) / 1e3  # float32 has steps of 1e-3
    t = t._replace(mean=mean, var=t.var.double())
    _compare(_results(t, 1 / 3), _exact(t, 1 / 3), t)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_as_the_input_does(layout: str) -> None:
    t = _inputs(_laid(layout, torch.float32))
    z, dx, *_ = _results(t, 0.5)
    assert z.stride() == dx.stride() == torch.empty_like(t.x).stride()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("cotangent", ["expanded", "other layout", "strided"])
@pytest.mark.parametrize("layout", ["4d", "4d channels_last"])
def test_gradients_of_other_layouts(layout: str, cotangent: str) -> None:
    t = _inputs(_laid(layout))
    n, c, h, w = t.x.shape
    dz = {
        "expanded": lambda: _noise(1, c, h, 1).expand(n, c, h, w),
        "other layout": lambda: _noise(w, h, n, c).permute(2, 3, 1, 0),
        "strided": lambda: _noise(n, c, h, 2 * w)[..., 1::2],
    }[cotangent]()
    t = t._replace(dz=dz)
    _compare(_results(t, 1 / 3), _exact(t, 1 / 3), t)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2), ()], ids=str)
def test_any_part_of_the_gradient(wanted: tuple[int, ...]) -> None:
    t = _inputs(_laid("4d"), corrected=True)
    whole = _results(t, 1 / 3)
    leaves = [v.detach().requires_grad_(i in wanted) for i, v in enumerate((t.x, t.weight, t.bias))]
    x, weight, bias = leaves
    z = normalize(x, t.mean, t.var, weight, bias, share=1 / 3, eps=EPS, r=t.r, d=t.d)
    assert torch.equal(z, whole[0])
    assert z.requires_grad == bool(wanted)
    if wanted:
        part = torch.autograd.grad(z, [leaves[i] for i in wanted], t.dz)
        assert all(torch.equal(whole[1 + i], g) for i, g in zip(wanted, part, strict=True))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("r", [False, True])
@pytest.mark.parametrize("d", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_none_is_neutral(r: bool, d: bool, weighted: bool, biased: bool) -> None:
    t = _inputs(_laid("3d"), corrected=True)
    ones, zeros = torch.ones_like(t.mean), torch.zeros_like(t.mean)
    t = t._replace(
        r=t.r if r else ones,
        d=t.d if d else zeros,
        weight=t.weight if weighted else ones,
        bias=t.bias if biased else zeros,
    )
    x = t.x.clone().requires_grad_()
    z = normalize(
        x, t.mean, t.var, t.weight if weighted else None, t.bias if biased else None,
        share=1 / 3, eps=EPS, r=t.r if r else None, d=t.d if d else None,
    )  # fmt: skip
    expected = _results(t, 1 / 3)
    for a, b in zip((z, *torch.autograd.grad(z, x, t.dz)), expected, strict=False):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4), (5, 0, 2)], ids=str)
def test_without_values(shape: tuple[int, ...]) -> None:
    t = _inputs(torch.empty(shape, dtype=torch.bfloat16), torch.float32)
    t = t._replace(mean=torch.zeros(shape[1]), var=torch.ones(shape[1]))
    z, dx, dweight, dbias = _results(t, 1 / 3)
    assert z.shape == dx.shape == shape
    assert torch.equal(dweight, torch.zeros(shape[1]))
    assert torch.equal(dbias, torch.zeros(shape[1]))
    x, weight = t.x.requires_grad_(), t.weight.requires_grad_()
    z = normalize(x, t.mean, t.var, weight, t.bias, share=1 / 3, eps=EPS)
    (dweight,) = torch.autograd.grad(z, weight, t.dz, create_graph=True)
    assert torch.equal(dweight, torch.zeros(shape[1]))
    assert all(torch.equal(v, torch.zeros(shape[1])) for v in moments(t.x))


def _step(x: Tensor, weight: Tensor, bias: Tensor, k: int, corrected: bool) -> Tensor:
    """The whole construction: borrowed moments that x moves a part of, and constants r and d."""
    c = x.shape[1]
    mean, var = moments(x)
    borrowed = torch.linspace(-0.5, 1, c).double(), torch.linspace(2, 3, c).double()
    mean_bar = (mean + (k - 1) * borrowed[0]) / k
    nu_bar = (var + mean**2 + (k - 1) * borrowed[1]) / k
    r, d = torch.linspace(0.7, 1.2, c).double(), torch.linspace(-0.4, 0.6, c).double()
    return normalize(
        x, mean_bar, nu_bar - mean_bar**2, weight, bias, share=1 / k, eps=EPS,
        r=r if corrected else None, d=d if corrected else None,
    )  # fmt: skip


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "r and d"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("layout", ["2d", "4d", "4d channels_last"])
def test_derivatives_are_those_of_finite_differences(layout: str, k: int, corrected: bool) -> None:
    x = _laid(layout)[:4, :2]
    x = x if x.dim() == 2 else x[:2, :, :2, :3]
    leaves = [v.clone().requires_grad_() for v in (x, _noise(2), _noise(2))]

    def z(*leaves: Tensor) -> Tensor:
        return _step(*leaves, k=k, corrected=corrected)

    assert torch.autograd.gradcheck(z, leaves)
    assert torch.autograd.gradgradcheck(z, leaves)


@pytest.mark.usefixtures("path")
def test_constant_statistics_have_second_derivatives_too() -> None:
    t = _inputs(_laid("3d")[:2, :2, :3], corrected=True)
    leaves = [v.clone().requires_grad_() for v in (t.x, t.weight[:2], t.bias[:2])]

    def z(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalize(x, t.mean, t.var, weight, bias, share=0.0, eps=EPS, r=t.r, d=t.d)

    assert torch.autograd.gradcheck(z, leaves)
    assert torch.autograd.gradgradcheck(z, leaves)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_backwards_agree(layout: str) -> None:
    """The one of few operations, and the one that can be differentiated again."""
    t = _inputs(_laid(layout), corrected=True)
    x, weight, bias = (v.detach().requires_grad_() for v in (t.x, t.weight, t.bias))
    z = normalize(x, t.mean, t.var, weight, bias, share=1 / 3, eps=EPS, r=t.r, d=t.d)
    again = torch.autograd.grad(z, (x, weight, bias), t.dz, create_graph=True)
    for a, b in zip(_results(t, 1 / 3)[1:], again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_transforms(wanted: int) -> None:
    """Reverse and forward mode, and a batch of gradients: what autograd has, and nothing else."""
    t = _inputs(_laid("4d"), corrected=True)
    whole = _results(t, 1 / 3)

    def z(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalize(x, t.mean, t.var, weight, bias, share=1 / 3, eps=EPS, r=t.r, d=t.d)

    leaves = (t.x, t.weight, t.bias)
    backward = torch.func.vjp(z, *leaves)[1]
    torch.testing.assert_close(backward(t.dz)[wanted], whole[1 + wanted])
    tangents = tuple(torch.randn_like(v) * (i == wanted) for i, v in enumerate(leaves))
    tangent = torch.func.jvp(z, leaves, tangents)[1]
    torch.testing.assert_close((tangent * t.dz).sum(), (whole[1 + wanted] * tangents[wanted]).sum())
    required = [v.clone().requires_grad_() for v in leaves]
    batch = torch.stack([t.dz, 2 * t.dz])
    (many,) = torch.autograd.grad(z(*required), required[wanted], batch, is_grads_batched=True)
    for factor, each in zip((1, 2), many, strict=True):
        torch.testing.assert_close(each, factor * whole[1 + wanted])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments(layout: str, dtype: torch.dtype, offset: float) -> None:
    x = _laid(layout, dtype, offset).requires_grad_()
    mean, var = moments(x)
    assert not any(t.requires_grad for t in (mean, var))
    assert mean.dtype is var.dtype is accumulation_dtype(dtype)
    dims = [0, *range(2, x.dim())]
    exact_var, exact_mean = torch.var_mean(x.detach().double(), dims, correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=1e-12)


@pytest.mark.usefixtures("path")
def test_moments_of_what_plain_operations_alone_can_read() -> None:
    x = _laid("4d channels_last", torch.float32, 1e4)
    batched = torch.func.vmap(moments)(torch.stack([x, x]))
    for a, b in zip(batched, moments(x), strict=True):
        torch.testing.assert_close(a[0], b, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("path")
def test_shapes_alone() -> None:
    x = torch.empty(4, 3, 5, 5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    mean, var = moments(x)
    assert mean.shape == var.shape == (3,)
    z = normalize(x, mean, var, None, None, share=0.5, eps=EPS)
    (dx,) = torch.autograd.grad(z, x, torch.empty_like(z))
    assert (z.dtype, z.shape, dx.shape) == (x.dtype, x.shape, x.shape)


@pytest.mark.usefixtures("path")
def test_strided_vectors() -> None:
    t = _inputs(_laid("3d"), corrected=True)
    spread = [None if v is None else torch.stack([v, v], 1)[:, 0] for v in t[1:7]]
    assert all(v is not None and not v.is_contiguous() for v in spread)
    strided = Inputs(t.x, *spread, t.dz)  # type: ignore[arg-type]
    for a, b in zip(_results(strided, 1 / 3), _results(t, 1 / 3), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("path")
def test_statistics_may_change_before_the_backward() -> None:
    """Whoever keeps a window moves its tensors on, and may do so before the backward.

    What is saved is a copy where the code in C ran; elsewhere autograd says what has changed.
    """
    t = _inputs(_laid("4d"))
    x = t.x.clone().requires_grad_()
    mean = t.mean.clone()
    z = normalize(x, mean, t.var, t.weight, t.bias, share=0.5, eps=EPS)
    mean.add_(1)
    if cpu.MISSING is None:
        (dx,) = torch.autograd.grad(z, x, t.dz)
        assert torch.equal(dx, _results(t, 0.5)[1])
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(z, x, t.dz)


@pytest.mark.usefixtures("path")
def test_hooks_on_saved_tensors_may_change_the_layout() -> None:
    t = _inputs(_laid("4d"), corrected=True)

    def unpack(v: Tensor) -> Tensor:
        return v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v

    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, unpack):
        hooked = _results(t, 1 / 3)
    for a, b in zip(hooked, _results(t, 1 / 3), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("path")
def test_compiled() -> None:
    t = _inputs(_laid("4d"), corrected=True)

    def step(x: Tensor) -> Tensor:
        mean, var = moments(x)
        return normalize(x, mean, var, t.weight, t.bias, share=0.5, eps=EPS, r=t.r, d=t.d)

    results = []
    for f in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        x = t.x.clone().requires_grad_()
        z = f(x)
        results.append([z.detach(), *torch.autograd.grad(z, x, t.dz)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_cuda(layout: str, dtype: torch.dtype) -> None:
    t = _inputs(_laid(layout, dtype), corrected=True)
    moved = Inputs(*(None if v is None else v.cuda() for v in t))  # type: ignore[arg-type]
    _compare([v.cpu() for v in _results(moved, 1 / 3)], _exact(t, 1 / 3), t)
    for own, others in zip(moments(moved.x), moments(t.x), strict=True):
        torch.testing.assert_close(own.cpu(), others, rtol=1e-5, atol=1e-6)


INSTRUCTIONS = ("baseline", "avx2", "avx512")
IN_C = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@IN_C
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_code_in_c_takes_what_lies_together(layout: str) -> None:
    t = _inputs(_laid(layout), corrected=True)
    apart = layout in ("4d strided", "4d expanded", "negated")
    assert (native.sizes(*t[:-1]) is None) == apart


@IN_C
def test_the_code_in_c_leaves_the_rest_alone() -> None:
    t = _inputs(_laid("4d"))
    others = [
        t._replace(x=t.x[:0]),
        t._replace(x=t.x.flatten()),
        t._replace(x=t.x.to(torch.float8_e5m2)),
        t._replace(mean=t.mean[:-1]),
        t._replace(mean=t.mean.to("meta")),
        t._replace(var=t.var.view(-1, 1)),
        t._replace(weight=t.weight.int()),
    ]
    assert [native.sizes(*other[:-1]) for other in others] == [None] * len(others)


@pytest.fixture
def all_instructions() -> Iterator[None]:
    yield
    any(cpu.native.use(name) for name in reversed(INSTRUCTIONS))


@IN_C
@pytest.mark.usefixtures("all_instructions")
@settings(max_examples=200)
@given(
    n=st.integers(1, 40),
    c=st.integers(1, 40),
    s=st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 49, 63, 64, 65, 127, 130, 300, 4099]),
    dtype=st.sampled_from(FLOATS),
    channels_last=st.booleans(),
    corrected=st.booleans(),
    name=st.sampled_from(INSTRUCTIONS),
)
def test_sizes_around_lanes_and_blocks(
    n: int, c: int, s: int, dtype: torch.dtype, channels_last: bool, corrected: bool, name: str
) -> None:
    if n * c * s > 100_000:
        return
    x = _noise(n, s, c).transpose(1, 2) if channels_last else _noise(n, c, s)
    t = _inputs(x.to(dtype), torch.float32, corrected=corrected)
    cpu.native.use(name)
    _compare(_results(t, 1 / 3), _exact(t, 1 / 3), t)


@IN_C
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 40_000), (64, 5, 300), (3, 33, 1700)], ids=str)
def test_threads_change_results_by_rounding_alone(
    shape: tuple[int, ...], channels_last: bool
) -> None:
    x = _noise(*shape)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    t = _inputs(x, corrected=True)
    exact, before = _exact(t, 1 / 3), torch.get_num_threads()
    try:
        for threads in (1, 2, 7):  # few channels are cut into parts, rows into ranges
            torch.set_num_threads(threads)
            _compare(_results(t, 1 / 3), exact, t)
    finally:
        torch.set_num_threads(before)


@IN_C
def test_large_outputs_are_those_of_small_ones_to_the_bit() -> None:
    """From 16 MiB on they are written past the caches."""
    for x in (_noise(5, 3, 2053).float(), _noise(5, 63, 33).float().transpose(1, 2)):
        t = _inputs(x)
        copies = 2**24 // x.nbytes + 1
        many = t._replace(x=torch.cat([x] * copies))
        assert native.sizes(many.x) is not None
        small, large = (normalize(each.x, *t[1:5], share=0.5, eps=EPS) for each in (t, many))
        assert all(torch.equal(small, part) for part in large.split(5))
