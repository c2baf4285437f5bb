"""What is observed equals the reference, and the gap what the two modes really give."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormAct2d,
    CrossIterationBatchNorm1d,
    CrossIterationBatchNorm2d,
    limits,
    measure,
    reference,
)

LIMITS = limits.fixed(1.3, 0.4)
EXACT: Any = {"rtol": 1e-12, "atol": 1e-13}


def settled(layer: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The layer with running statistics that some channels are near to and others far from."""
    C = layer.num_features
    layer.to(dtype)
    layer.running_mean.copy_(torch.linspace(-1, 1, C))
    layer.running_var.copy_(torch.linspace(0.3, 3, C))
    layer.num_batches_tracked.fill_(7)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def observed(model: nn.Module, *inputs: Any, **options: Any) -> measure.Observation:
    """The one observation of a step of these forwards."""
    with measure.Monitor(model, every=1, **options) as monitor:
        for x in inputs:
            model(x) if isinstance(x, Tensor) else model(*x)
        monitor.step()
    (found,) = monitor.observations
    return found


def rows_of(x: Tensor, mask: Tensor | None) -> np.ndarray:
    rows = reference.as_rows(x.double().numpy())
    return rows if mask is None else rows[mask.numpy().reshape(-1)]


def by_reference(layer: Any, x: Tensor, mask: Tensor | None, bounds: tuple[float, float]) -> Any:
    """r and d (G, C) of the groups with two values or more, by Algorithm 1."""
    mu, sigma = layer.running_mean.double().numpy(), layer.running_var.double().numpy()
    sigma = np.sqrt(sigma + layer.eps)
    size = getattr(layer, "microbatch", None) or len(x)
    masks = [None] * len(x) if mask is None else mask.split(size)
    found = []
    for part, shown in zip(x.split(size), masks, strict=False):
        rows = rows_of(part, shown)
        if len(rows) > 1:
            one, zero = np.ones(len(mu)), np.zeros(len(mu))
            found.append(
                reference.batch_renorm(
                    rows, mu, sigma, one, zero,
                    r_max=bounds[0], d_max=bounds[1], alpha=0.0, eps=layer.eps,
                )
            )  # fmt: skip
    return np.stack([step.r for step in found]), np.stack([step.d for step in found])


def plain(layer: Any) -> Any:
    """A copy without weight and bias, and without an activation."""
    layer = copy.deepcopy(layer)
    layer.weight = layer.bias = None
    if isinstance(layer, BatchRenormAct2d):
        layer.act = nn.Identity()
    return layer


def true_gap(layer: Any, *args: Any) -> float:
    """The root mean square of what the modes really differ by, where there are data."""
    difference = plain(layer).train()(*args) - plain(layer).eval()(*args)
    if len(args) == 2:
        difference = difference.transpose(0, 1)[:, args[1]]
    return float(difference.square().mean().sqrt())


RENORMS = {
    "1d": (lambda: BatchRenorm1d(5, limits=LIMITS), (9, 5)),
    "1d sequences": (lambda: BatchRenorm1d(5, limits=LIMITS), (4, 5, 3)),
    "2d": (lambda: BatchRenorm2d(5, limits=LIMITS, eps=1e-2), (4, 5, 3, 2)),
    "3d": (lambda: BatchRenorm3d(5, limits=LIMITS), (2, 5, 3, 2, 2)),
    "no affine": (lambda: BatchRenorm2d(5, limits=LIMITS, affine=False), (4, 5, 3, 2)),
    "microbatch": (lambda: BatchRenorm2d(5, limits=LIMITS, microbatch=2), (6, 5, 3, 2)),
    "ragged": (lambda: BatchRenorm2d(5, limits=LIMITS, microbatch=4), (6, 5, 3, 2)),
    "activated": (lambda: BatchRenormAct2d(5, limits=LIMITS), (4, 5, 3, 2)),
    "open": (lambda: BatchRenorm2d(5, limits=limits.fixed(torch.inf, torch.inf)), (4, 5, 3, 2)),
    "closed": (lambda: BatchRenorm2d(5, limits=limits.batch_norm()), (4, 5, 3, 2)),
    "averaging": (lambda: BatchRenorm2d(5, limits=LIMITS, momentum=None), (4, 5, 3, 2)),
}


@pytest.mark.parametrize("kind", RENORMS)
def test_batch_renorm(kind: str) -> None:
    build, shape = RENORMS[kind]
    layer, x = settled(build()), torch.randn(shape, dtype=torch.float64) * 1.5 + 0.3
    before = copy.deepcopy(layer)
    found = observed(layer, x)
    r_max, d_max = layer.limits(7)
    r, d = by_reference(before, x, None, (r_max, d_max))
    np.testing.assert_allclose(found.r, r, **EXACT)
    np.testing.assert_allclose(found.d, d, **EXACT)
    raw_r, raw_d = by_reference(before, x, None, (np.inf, np.inf))
    assert (found.r_max, found.d_max) == (r_max, d_max)
    assert found.clipped_r == np.mean((raw_r >= r_max) | (raw_r <= 1 / r_max))
    assert found.clipped_d == np.mean(abs(raw_d) >= d_max)
    assert found.gap == pytest.approx(true_gap(before, x), rel=1e-10, abs=1e-14)
    assert found.layer == "(model)"
    assert found.step == 0


def test_some_channels_are_clipped_and_others_not() -> None:
    found = observed(settled(BatchRenorm2d(5, limits=LIMITS)), torch.randn(6, 5, 3, 3).double())
    assert 0 < found.clipped_r < 1  # type: ignore[operator]
    assert 0 < found.clipped_d < 1  # type: ignore[operator]
    assert found.gap > 0


@pytest.mark.parametrize("microbatch", [None, 2, 4])
def test_a_mask_hides_padding(microbatch: int | None) -> None:
    layer = settled(BatchRenorm1d(3, limits=LIMITS, microbatch=microbatch))
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    mask = torch.rand(7, 4) < 0.7
    mask[2:4] = False  # with microbatch=2 a group without data
    x.masked_fill_(~mask.unsqueeze(1), torch.nan)
    before = copy.deepcopy(layer)
    found = observed(layer, (x, mask))
    r, d = by_reference(before, x, mask, LIMITS(7))
    np.testing.assert_allclose(found.r, r, **EXACT)
    np.testing.assert_allclose(found.d, d, **EXACT)
    assert found.gap == pytest.approx(true_gap(before, x, mask), rel=1e-10)


def test_a_group_of_one_value_is_left_out() -> None:
    layer = settled(BatchRenorm1d(3, limits=LIMITS, microbatch=4, single="running"))
    x = torch.randn(5, 3, dtype=torch.float64)
    before = copy.deepcopy(layer)
    found = observed(layer, x)
    r, _ = by_reference(before, x, None, LIMITS(7))
    assert found.r.shape == (1, 3)
    np.testing.assert_allclose(found.r, r, **EXACT)
    assert found.gap == pytest.approx(true_gap(before, x[:4]), rel=1e-10)


BATCH_NORMS = {
    "1d": (lambda: nn.BatchNorm1d(5), (9, 5)),
    "2d": (lambda: nn.BatchNorm2d(5, eps=1e-2), (4, 5, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(5, affine=False), (2, 5, 3, 2, 2)),
    "averaging": (lambda: nn.BatchNorm2d(5, momentum=None), (4, 5, 3, 2)),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_of_batch_norm_what_they_would_be(kind: str) -> None:
    build, shape = BATCH_NORMS[kind]
    layer, x = settled(build()), torch.randn(shape, dtype=torch.float64) * 1.5 + 0.3
    before = copy.deepcopy(layer)
    found = observed(layer, x)
    r, d = by_reference(before, x, None, (np.inf, np.inf))
    np.testing.assert_allclose(found.r, r, **EXACT)
    np.testing.assert_allclose(found.d, d, **EXACT)
    assert (found.r_max, found.d_max, found.clipped_r, found.clipped_d) == (None,) * 4
    assert found.gap == pytest.approx(true_gap(before, x), rel=1e-10)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(torch.float32, 0.0), (torch.float32, 1e4), (torch.bfloat16, 0.0), (torch.float16, 0.0)],
    ids=str,
)
@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_rounds_as_float32_does(
    dtype: torch.dtype, offset: float, microbatch: int | None, layout: torch.memory_format
) -> None:
    layer = settled(BatchRenorm2d(5, limits=LIMITS, microbatch=microbatch), torch.float32)
    layer.running_mean.add_(offset)
    x = (torch.randn(8, 5, 3, 2) + offset).to(dtype, memory_format=layout)
    before = copy.deepcopy(layer)
    found = observed(layer, x)
    r, d = by_reference(before, x, None, LIMITS(7))
    assert found.r.dtype == found.d.dtype == np.float32
    # the mean is rounded to float32, which d shows in units of the smallest running deviation
    rounding = 2.0**-23 * max(1.0, offset) / 0.3**0.5
    np.testing.assert_allclose(found.r, r, rtol=2e-6)
    np.testing.assert_allclose(found.d, d, rtol=2e-6, atol=2 * rounding)


def test_the_running_statistics_are_those_from_before_and_the_limits_of_that_step() -> None:
    layer = BatchRenorm1d(4, limits=limits.over(20), momentum=0.5)
    with measure.Monitor(layer, every=2, keep=None) as monitor:
        befores, xs = [], []
        for _ in range(6):
            befores.append(copy.deepcopy(layer))
            xs.append(torch.randn(8, 4) * 2 + 1)
            layer(xs[-1])
            monitor.step()
    assert [one.step for one in monitor.observations] == [0, 2, 4]
    for one in monitor.observations:
        bounds = layer.limits(one.step)
        assert (one.r_max, one.d_max) == bounds
        r, d = by_reference(befores[one.step], xs[one.step], None, bounds)
        np.testing.assert_allclose(one.r, r, rtol=2e-6)
        np.testing.assert_allclose(one.d, d, rtol=2e-6, atol=1e-6)


def test_calls_of_a_step_are_pooled() -> None:
    layer = settled(BatchRenorm1d(3, limits=LIMITS, momentum=0.5))
    model = nn.ModuleDict({"first": nn.Sequential(layer), "again": layer})
    xs = torch.randn(4, 3).double(), 3 * torch.randn(8, 3).double()
    between = [copy.deepcopy(layer)]
    with measure.Monitor(model, every=1) as monitor:
        for name, x in zip(model, xs, strict=True):
            model[name](x)
            between.append(copy.deepcopy(layer))
        monitor.step()
    (found,) = monitor.observations
    assert found.layer == "first.0"
    rows = [by_reference(b, x, None, LIMITS(7))[0] for b, x in zip(between, xs, strict=False)]
    np.testing.assert_allclose(found.r, np.concatenate(rows), **EXACT)
    gaps = [true_gap(before, x) for before, x in zip(between, xs, strict=False)]
    pooled = ((4 * gaps[0] ** 2 + 8 * gaps[1] ** 2) / 12) ** 0.5
    assert found.gap == pytest.approx(pooled, rel=1e-10)


def windowed(**options: Any) -> Any:
    """A source and a cross-iteration layer whose window is filled by changing weights."""
    if options.pop("dims", 2) == 2:
        norm = CrossIterationBatchNorm2d(4, window=3, **options)
        model: Any = nn.Sequential(nn.Conv2d(2, 4, 3), norm).double()
        shape = (3, 2, 5, 5)
    else:
        norm = CrossIterationBatchNorm1d(4, window=3, **options)
        model, shape = nn.Sequential(nn.Linear(2, 4), norm).double(), (6, 2)
    if norm.compensation != "none":
        norm.attach(model[0])
    for _ in range(4):
        model(torch.randn(shape).double() * 2 + 1)
        with torch.no_grad():
            model[0].weight.add_(0.1 * torch.randn_like(model[0].weight))
    return model, torch.randn(shape).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compensation": "exact"},
        {"compensation": "none"},
        {"limits": LIMITS},
        {"limits": LIMITS, "compensation": "none", "dims": 1},
        {"burn_in": 100},
        {"follow": "batch"},
    ],
    ids=str,
)
def test_cross_iteration_is_observed_as_it_normalizes(options: dict) -> None:
    limited = "limits" in options
    model, x = windowed(**options)
    before = copy.deepcopy(model)
    found = observed(model, x)

    z = before[0](x).detach()
    in_train, in_eval = (affine_free(before, mode)(x).detach() for mode in (True, False))
    assert found.gap == pytest.approx(float((in_train - in_eval).square().mean().sqrt()), rel=1e-9)
    assert found.gap > 0.01

    free = affine_free(before, True)
    free[1].limits = None
    mean, deviation = used_by(z, free(x))
    mu, sigma = before[1].running_mean, (before[1].running_var + before[1].eps).sqrt()
    r, d = deviation / sigma, (mean - mu) / sigma
    assert (found.r_max, found.d_max) == ((1.3, 0.4) if limited else (None, None))
    if limited:
        r, d = r.clip(1 / 1.3, 1.3), d.clip(-0.4, 0.4)
        assert found.clipped_d == float((d.abs() == 0.4).double().mean())
    np.testing.assert_allclose(found.r, r[None], rtol=1e-9)
    np.testing.assert_allclose(found.d, d[None], rtol=1e-9, atol=1e-9)


def affine_free(model: Any, training: bool) -> Any:
    """A copy, windows and all, that only normalizes."""
    model = copy.deepcopy(model).train(training).requires_grad_(False)
    model[0].requires_grad_(True)  # else compensation is taken to be needless
    model[1].weight = model[1].bias = None
    return model


def used_by(z: Tensor, z_hat: Tensor) -> tuple[Tensor, Tensor]:
    """What was subtracted and divided by, from two of the values of each channel."""
    flat, hat = (t.detach().transpose(0, 1).flatten(1) for t in (z, z_hat))
    low, high = flat.argmin(1, keepdim=True), flat.argmax(1, keepdim=True)
    width = (flat.gather(1, high) - flat.gather(1, low)).squeeze(1)
    deviation = width / (hat.gather(1, high) - hat.gather(1, low)).squeeze(1)
    mean = flat.gather(1, low).squeeze(1) - hat.gather(1, low).squeeze(1) * deviation
    return mean, deviation


def test_figures_for_a_log() -> None:
    ours = settled(BatchRenorm1d(5, limits=LIMITS))
    figures = observed(ours, torch.randn(9, 5).double()).scalars()
    assert set(figures) == {
        "r_05", "r_median", "r_95", "d_05", "d_median", "d_95",
        "r_max", "d_max", "clipped_r", "clipped_d", "gap",
    }  # fmt: skip
    found = observed(settled(nn.BatchNorm1d(5)), torch.randn(9, 5).double())
    assert set(found.scalars()) == set(figures) - {"r_max", "d_max", "clipped_r", "clipped_d"}
    assert found.scalars()["r_median"] == np.median(found.r)
    assert found.scalars()["d_95"] == np.percentile(found.d, 95)


def test_what_is_not_finite_is_told_as_it_is() -> None:
    x = torch.randn(9, 5).double()
    x[3, 2] = torch.inf
    found = observed(settled(BatchRenorm1d(5, limits=LIMITS)), x)
    assert np.isnan(found.gap)
    assert np.isfinite(np.delete(found.r, 2, axis=1)).all()
