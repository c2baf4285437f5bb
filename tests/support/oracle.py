"""What a case must give, from the float64 reference: the same inputs, another code."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from renorm import reference
from support.cases import Case, Inputs


@dataclass
class Expected:
    """Exact results in float64, and the sizes against which rounding is judged."""

    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    new_mean: Tensor
    new_var: Tensor
    offset: float  # largest |mean| / std of a channel: how much an offset amplifies rounding
    group_offset: float  # the same for the group that shares statistics and has the least spread
    dx_scale: float  # size of the terms whose difference is dx
    dweight_scale: float  # largest sum of the magnitudes that are added to one dweight
    dbias_scale: float
    dresidual: Tensor | None = None
    margin: float = 1.0  # how far the real value nearest to a ReLU's corner is from it


def expected(case: Case, t: Inputs) -> Expected:
    """One training step of batch renorm, and what follows it, on the inputs of a case."""
    plain = _normalized(case, t)
    if not (case.residual or case.relu):
        return plain
    y = plain.y if t.residual is None else plain.y + t.residual.double()
    passed = (y > 0) | (not case.relu)
    dy = t.dy.double() * passed
    return replace(_normalized(case, replace(t, dy=dy)), y=torch.where(passed, y, 0), dresidual=dy)


def _normalized(case: Case, t: Inputs) -> Expected:
    C, eps, alpha = case.shape[1], case.eps, case.momentum
    x, dy = (reference.as_rows(_double(v)) for v in (t.x, t.dy))
    gamma = np.ones(C) if t.weight is None else _double(t.weight)
    beta = np.zeros(C) if t.bias is None else _double(t.bias)
    mu = _double(t.running_mean)
    sigma = np.sqrt(_double(t.running_var) + eps)
    y, dx = np.zeros_like(x), np.zeros_like(x)
    dgamma, dbeta = np.zeros(C), np.zeros(C)
    mus, sigmas, counts = [], [], []
    slope = np.zeros(C)  # largest dy/dx of a channel with statistics held
    group_offset = 0.0
    for rows in groups(case, t):
        xs, dys = x[rows], dy[rows]
        if len(xs) < 2:
            x_hat = (xs - mu) / sigma
            y[rows] = gamma * x_hat + beta
            dx[rows] = dys * gamma / sigma
            slope = np.maximum(slope, np.abs(gamma) / sigma)
            dgamma += (dys * x_hat).sum(axis=0)
        else:
            step = reference.batch_renorm(
                xs, mu, sigma, gamma, beta,
                r_max=case.limits[0], d_max=case.limits[1], alpha=alpha, eps=eps,
            )  # fmt: skip
            y[rows] = step.y
            grads = reference.batch_renorm_backward(dys, xs, gamma, step.r, step.d, eps)
            dx[rows] = grads[0]
            dgamma += grads[1]
            sigma_b = np.sqrt(xs.var(axis=0) + eps)
            slope = np.maximum(slope, np.abs(gamma) * step.r / sigma_b)
            group_offset = max(group_offset, float((np.abs(xs).max(axis=0) / sigma_b).max()))
            mus.append(step.mu)
            sigmas.append(step.sigma)
            counts.append(len(xs))
        dbeta += dys.sum(axis=0)
    used = np.concatenate(groups(case, t))
    if case.backward == "moving":
        _replace_by_moving(dx, x, dy, mu, sigma, gamma, case, groups(case, t))
    new_mu = np.average(mus, axis=0, weights=counts) if mus else mu
    new_sigma = np.average(sigmas, axis=0, weights=counts) if mus else sigma
    x_hat = (y[used] - beta) / np.where(gamma == 0, 1, gamma)
    return Expected(
        y=_tensor(reference.as_maps(y, case.shape)),
        dx=_tensor(reference.as_maps(dx, case.shape)),
        dweight=_tensor(dgamma),
        dbias=_tensor(dbeta),
        new_mean=_tensor(new_mu),
        new_var=_tensor(new_sigma**2 - eps),
        offset=float((np.abs(x[used]).max(axis=0) / np.sqrt(x[used].var(axis=0) + eps)).max()),
        group_offset=group_offset,
        dx_scale=float((np.abs(dy[used]).max(axis=0) * slope).max()),
        dweight_scale=float(np.abs(dy[used] * x_hat).sum(axis=0).max()),
        dbias_scale=float(np.abs(dy[used]).sum(axis=0).max()),
    )


def _replace_by_moving(
    dx: np.ndarray,
    x: np.ndarray,
    dy: np.ndarray,
    mu: np.ndarray,
    sigma: np.ndarray,
    gamma: np.ndarray,
    case: Case,
    used: list[np.ndarray],
) -> None:
    """The gradient of a first pass with averages, which are those of the batch."""
    (r_max, d_max), zero = case.limits, np.zeros(case.shape[1])
    steps = [
        reference.batch_renorm(
            x[rows], mu, sigma, gamma, zero, r_max=r_max, d_max=d_max, alpha=0.0, eps=case.eps
        )
        for rows in used
    ]
    found = reference.batch_renorm_moving_backward(
        [dy[rows] for rows in used],
        [x[rows] for rows in used],
        gamma,
        [step.r for step in steps],
        [step.d for step in steps],
        reference.GradientAverages(zero, zero, 0),
        rate=0.1,
        eps=case.eps,
        own=case.limits == (1.0, 0.0),
    )
    for rows, group in zip(used, found.dx, strict=True):
        dx[rows] = group


def groups(case: Case, t: Inputs) -> list[np.ndarray]:
    """Row numbers of the real values of each group that shares statistics."""
    N, _, *spatial = case.shape
    size = case.microbatch or N
    positions = np.arange(N * int(np.prod(spatial, dtype=int))).reshape(N, -1)
    real = np.ones_like(positions, dtype=bool)
    if t.mask is not None:
        real = t.mask.reshape(N, -1).numpy()
    return [positions[i : i + size][real[i : i + size]] for i in range(0, N, size)]


def _double(t: Tensor) -> np.ndarray:
    return t.detach().to(torch.float64).numpy()


def _tensor(a: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))
