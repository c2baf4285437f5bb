"""Properties that hold for any input, searched for counterexamples."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from renorm.functional import batch_renorm
from support.cases import Case, inputs
from support.oracle import expected
from support.subjects import AUTO, COMPOSITE, fill, step
from support.tolerance import assert_close

sizes = st.integers(1, 5)
limits = st.tuples(st.floats(1, 4), st.floats(0, 6))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spatial = draw(st.lists(sizes, max_size=3))
    n = draw(st.integers(2, 7))
    microbatch = draw(st.none() | st.integers(2, 8))
    masked = bool(spatial) and draw(st.booleans())
    if microbatch is not None and n % microbatch == 1 and math.prod(spatial) == 1:
        microbatch = None  # a ragged group of one value
    return Case(
        "drawn",
        (n, draw(sizes), *spatial),
        dtype=torch.float64,
        offset=draw(st.floats(-100, 100)),
        spread=draw(st.floats(0.01, 100)),
        masked=masked,
        microbatch=microbatch,
        affine=draw(st.booleans()),
        limits=draw(limits),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.1])),
        momentum=draw(st.floats(0, 1)),
        seed=draw(st.integers(0, 1000)),
    )


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_any_case_matches_the_reference(case: Case) -> None:
    for subject in (AUTO, COMPOSITE):
        t = inputs(case)
        layer = fill(subject.build(case), t)
        exact = expected(case, t)
        y, dx = step(layer, t)
        worst = exact.group_offset  # few values may lie close together
        assert_close("y", y, exact.y, case.dtype, offset=worst)
        assert_close("dx", dx, exact.dx, case.dtype, scale=exact.dx_scale, offset=worst)
        for name, value in (("running_mean", exact.new_mean), ("running_var", exact.new_var)):
            assert_close(name, getattr(layer, name), value, case.dtype, offset=worst)


def _draw(seed: int, n: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, generator=g, dtype=torch.float64)
    mean = torch.randn(channels, generator=g, dtype=torch.float64)
    var = torch.rand(channels, generator=g, dtype=torch.float64) + 0.1
    return x, mean, var


@given(st.integers(0, 999), st.integers(2, 9), limits, limits)
@settings(max_examples=60, deadline=None)
def test_wider_limits_come_no_further_from_inference(
    seed: int, n: int, a: tuple[float, float], b: tuple[float, float]
) -> None:
    """The distance of r and d from unclipped ones never grows with the limits."""
    x, mean, var = _draw(seed, n, 3)
    batch_var, batch_mean = torch.var_mean(x, 0, correction=0)
    sigma = (var + 1e-5).sqrt()
    x_hat = (x - batch_mean) / (batch_var + 1e-5).sqrt()
    narrow, wide = (min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]), max(a[1], b[1]))

    def corrections(r_max: float, d_max: float) -> tuple[Tensor, Tensor]:
        y = batch_renorm(x, mean, var, r_max=r_max, d_max=d_max)[0]
        d = y.mean(0)  # x_hat has mean 0
        r = ((y - d) * x_hat).mean(0) / x_hat.square().mean(0)
        return r, d

    exact = (batch_var + 1e-5).sqrt() / sigma, (batch_mean - mean) / sigma
    for near, far, goal in zip(corrections(*wide), corrections(*narrow), exact, strict=True):
        assert ((near - goal).abs() <= (far - goal).abs() + 1e-9).all()


@given(st.integers(0, 999), st.integers(2, 9), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_statistics_lie_between_the_old_and_the_batch(seed: int, n: int, momentum: float) -> None:
    x, mean, var = _draw(seed, n, 3)
    _, new_mean, new_var = batch_renorm(x, mean, var, r_max=1, d_max=0, momentum=momentum)
    assert new_mean is not None
    assert new_var is not None
    batch_var, batch_mean = torch.var_mean(x, 0, correction=0)
    for old, new, batch in ((mean, new_mean, batch_mean), (var, new_var, batch_var)):
        low, high = torch.minimum(old, batch), torch.maximum(old, batch)
        assert ((low - 1e-12 <= new) & (new <= high + 1e-12)).all()


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 4), limits)
@settings(max_examples=60, deadline=None)
def test_masked_values_are_as_if_absent(
    seed: int, kept: int, padded: int, bounds: tuple[float, float]
) -> None:
    kept += 1
    x, mean, var = _draw(seed, kept + padded, 3)
    x = x.t().unsqueeze(0)  # one example (1, 3, L), its last positions padding
    mask = torch.arange(kept + padded).unsqueeze(0) < kept
    whole = batch_renorm(x, mean, var, r_max=bounds[0], d_max=bounds[1], mask=mask)
    cut = batch_renorm(x[..., :kept], mean, var, r_max=bounds[0], d_max=bounds[1])
    torch.testing.assert_close(whole[0][..., :kept], cut[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(whole[1:], cut[1:], rtol=1e-9, atol=1e-10)
