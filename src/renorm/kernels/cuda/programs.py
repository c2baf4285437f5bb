"""The device code in Triton: imported only where it runs.

A tensor is seen as (N, C, S) values as they lie in memory, S == 1 for rows of channels, and cut
into tiles (BN, BC, BS). Two sets of programs do the same work:

- ``whole_*``: one program takes all values of BC channels in one tile, and reads them once;
- ``measure*`` then ``normalize`` or ``propagate``: the values are cut into parts. Each part leaves
  its moments in ``partial``; every program of the second pass merges them in the same order, so
  nothing depends on who comes first, and writes its part of the output.

S is passed as a multiple of V, a constant: that is what lets a thread load 16 bytes at once.
Offsets are of type INDEX, 64 bits where the tensor needs them. All arithmetic is in ACC: float32,
or float64 for float64. No variance is a difference of large sums: a value is first moved by one of
its own channel (see ``_lane_moments``).
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = knobs.runtime.interpret

# rows of the table (ROWS, C) of what was computed per channel; the backward reads the first 7
MEAN: tl.constexpr = tl.constexpr(0)
LOST: tl.constexpr = tl.constexpr(1)  # what rounding took from the mean
INVSTD: tl.constexpr = tl.constexpr(2)  # 1 / sigma_B
R: tl.constexpr = tl.constexpr(3)
D: tl.constexpr = tl.constexpr(4)
SCALE: tl.constexpr = tl.constexpr(5)  # y = (x - mean) * scale + shift
SHIFT: tl.constexpr = tl.constexpr(6)
NEW_MEAN: tl.constexpr = tl.constexpr(7)
NEW_VAR: tl.constexpr = tl.constexpr(8)
FINITE: tl.constexpr = tl.constexpr(9)  # 1 where the statistics of the batch are, else 0
ROWS = 10


@triton.jit
def _tile(
    n, c, s, n_end, C, s_end, S, INDEX: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of the tile whose first value is (n, c, s)."""
    n = n + tl.arange(0, BN)[:, None, None].to(INDEX)
    c = c + tl.arange(0, BC)[None, :, None].to(INDEX)
    s = s + tl.arange(0, BS)[None, None, :].to(INDEX)
    return (n * C + c) * S + s, (n < n_end) & (c < C) & (s < s_end)


@triton.jit
def _part(part, N, S, n_part, s_part, INDEX: tl.constexpr):
    """First and last n and s of a part; parts of one n follow each other."""
    across = tl.cdiv(S, s_part)
    n, s = (part // across).to(INDEX) * n_part, (part % across).to(INDEX) * s_part
    return n, tl.minimum(n + n_part, N), s, tl.minimum(s + s_part, S)


@triton.jit
def _written(part, C):
    """How many channels' results a part writes: the first part does it for all."""
    return tl.where(part == 0, C, 0)


@triton.jit
def _first_channel(BC: tl.constexpr, INDEX: tl.constexpr):
    return tl.program_id(0).to(INDEX) * BC


@triton.jit
def _over_tile(v):
    """The sum (BC,) of a tile."""
    return tl.sum(tl.sum(v, axis=2), axis=0)


@triton.jit
def _spread(v):
    """A vector (BC,) against a tile."""
    return v[None, :, None]


@triton.jit
def _root(v):
    if v.dtype == tl.float64:
        return tl.sqrt(v)
    else:
        return tl.sqrt_rn(v)  # tl.sqrt is approximate


@triton.jit
def _quotient(a, b):
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)  # a / b is approximate


@triton.jit
def _clipped(v, low, high):
    v = tl.where(v < low, low, v)  # NaN passes
    return tl.where(v > high, high, v)


@triton.jit
def _vector(pointer, c, C, default, ACC: tl.constexpr):
    """Channels ``c`` of a parameter, or the default of one that is not there."""
    if pointer is None:
        return tl.full(c.shape, default, ACC)
    else:
        return tl.load(pointer + c, mask=c < C, other=0).to(ACC)


@triton.jit
def _number(setting, ACC: tl.constexpr):
    """A setting (pointer, number), of which one is None."""
    if setting[0] is None:
        return tl.full((), setting[1], ACC)
    else:
        return tl.load(setting[0]).to(ACC)


@triton.jit
def _limit(limit, counter, ACC: tl.constexpr):
    """A limit at this step: a ramp (low, high, start, end), or a setting as any other."""
    if counter is None:
        return _number(limit, ACC)
    else:
        low, high = tl.full((), limit[0], ACC), tl.full((), limit[1], ACC)
        start, end, step = limit[2], limit[3], tl.load(counter)
        part = (step - start).to(ACC) / tl.maximum(end - start, 1)
        value = _clipped(low + (high - low) * part, low, high)
        return tl.where(step >= end, high, tl.where(step <= start, low, value))


@triton.jit
def _row(table, row: tl.constexpr, c, C):
    return tl.load(table + row * C + c, mask=c < C, other=0)


@triton.jit
def _set_row(table, row: tl.constexpr, c, C, value, written):
    tl.store(table + row * C + c, value, mask=c < written)


@triton.jit
def _finish_forward(
    origin, gap, m2, values, table, c, C, running_mean, running_var, weight, bias,
    r_max, d_max, momentum, counter, written, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """From the moments of channels ``c`` to the coefficients of y.

    The table is filled for channels below ``written``: C of them, or none. The mean is
    ``origin + gap``: where it rounds, ``lost`` has what is left.
    """
    mean = origin + gap
    back = mean - origin
    lost = (origin - (mean - back)) + (gap - back)
    var = _quotient(m2, values)
    batch_sigma = _root(var + EPS)
    invstd = _quotient(tl.full(c.shape, 1, ACC), batch_sigma)
    r, d = tl.full(c.shape, 1, ACC), tl.full(c.shape, 0, ACC)
    if running_mean is not None:
        old_mean = _vector(running_mean, c, C, 0, ACC)
        old_var = _vector(running_var, c, C, 1, ACC)
        sigma = _root(old_var + EPS)
        mean_step = (origin - old_mean) + gap
        sigma_step = _quotient(var - old_var, batch_sigma + sigma)
        high, bound = _limit(r_max, counter, ACC), _limit(d_max, counter, ACC)
        r = _clipped(_quotient(batch_sigma, sigma), _quotient(tl.full((), 1, ACC), high), high)
        d = _clipped(_quotient(mean_step, sigma), -bound, bound)
        rate = _number(momentum, ACC)
        move = rate * sigma_step
        new_var = old_var + move * (2 * sigma + move)
        finite = (tl.abs(mean_step) < float("inf")) & (tl.abs(sigma_step) < float("inf"))
        _set_row(table, NEW_MEAN, c, C, old_mean + rate * mean_step, written)
        _set_row(table, NEW_VAR, c, C, tl.where(new_var < 0, 0, new_var), written)
        _set_row(table, FINITE, c, C, finite.to(ACC), written)
    gamma = _vector(weight, c, C, 1, ACC)
    scale = gamma * r * invstd
    shift = gamma * d + _vector(bias, c, C, 0, ACC) - scale * lost
    _set_row(table, MEAN, c, C, mean, written)
    _set_row(table, LOST, c, C, lost, written)
    _set_row(table, INVSTD, c, C, invstd, written)
    _set_row(table, R, c, C, r, written)
    _set_row(table, D, c, C, d, written)
    _set_row(table, SCALE, c, C, scale, written)
    _set_row(table, SHIFT, c, C, shift, written)
    return mean, scale, shift


@triton.jit
def _write_output(
    y, residual, x, offsets, mask, mean, scale, shift, RELU: tl.constexpr, ACC: tl.constexpr
):
    out = (x - _spread(mean)) * _spread(scale) + _spread(shift)
    if residual is not None:
        out += tl.load(residual + offsets, mask=mask, other=0).to(ACC)
    if RELU:
        out = tl.where(out < 0, 0, out)  # NaN passes
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def whole_forward(
    x, y, residual, table, running_mean, running_var, weight, bias,
    r_max, d_max, momentum, counter, N, C, S,
    EPS: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """All of the forward but the commit; no y: the statistics alone."""
    S, first_c = S * V, _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    offsets, mask = _tile(0, first_c, 0, N, C, S, S, INDEX, BN, BC, BS)
    origin = tl.load(x + c * S, mask=c < C, other=0).to(ACC)
    values = tl.load(x + offsets, mask=mask, other=0).to(ACC)
    count = tl.full((), N, ACC) * S
    moved = tl.where(mask, values - _spread(origin), 0)
    gap = _quotient(_over_tile(moved), count)
    apart = tl.where(mask, moved - _spread(gap), 0)
    mean, scale, shift = _finish_forward(
        origin, gap, _over_tile(apart * apart), count, table, c, C, running_mean, running_var,
        weight, bias, r_max, d_max, momentum, counter, C, EPS, ACC,
    )  # fmt: skip
    if y is not None:
        _write_output(y, residual, values, offsets, mask, mean, scale, shift, RELU, ACC)


@triton.jit
def _lane_moments(s, q, first, origin, n_values, s_values, BN: tl.constexpr, BS: tl.constexpr,
                  ACC: tl.constexpr):  # fmt: skip
    """Mean from ``origin`` and sum of squares about it, from sums that each lane took.

    A lane is one place of the tile. Its sums are about its own first value, one of the few it
    adds up: the square of that value's distance from their mean is at most their number times
    their variance, so no more than that factor is lost to rounding, whatever the data.
    """
    n_steps = (n_values - tl.arange(0, BN)[:, None, None] + BN - 1) // BN
    s_steps = (s_values - tl.arange(0, BS)[None, None, :] + BS - 1) // BS
    count = (n_steps * s_steps).to(ACC)
    divisor = tl.where(count > 0, count, 1)
    lane_m2 = q - s * (s / divisor)
    lane_m2 = tl.where(lane_m2 < 0, 0, lane_m2)
    lane_gap = tl.where(count > 0, (first - _spread(origin)) + s / divisor, 0)
    values = n_values.to(ACC) * s_values.to(ACC)
    gap = _over_tile(count * lane_gap) / values
    apart = lane_gap - _spread(gap)
    return values, gap, _over_tile(lane_m2 + count * apart * apart)


@triton.jit
def measure(
    x, partial, N, C, S, n_part, s_part, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of squares of one part: ``partial`` (parts, 3, C)."""
    S, part, first_c = S * V, tl.program_id(1), _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    n, n_end, s, s_end = _part(part, N, S, n_part, s_part, INDEX)
    origin = tl.load(x + c * S, mask=c < C, other=0).to(ACC)
    offsets, mask = _tile(n, first_c, s, n_end, C, s_end, S, INDEX, BN, BC, BS)
    first = tl.load(x + offsets, mask=mask, other=0).to(ACC)
    total, squares = tl.zeros((BN, BC, BS), ACC), tl.zeros((BN, BC, BS), ACC)
    for i in range(n, n_end, BN):
        for j in range(s, s_end, BS):
            offsets, mask = _tile(i, first_c, j, n_end, C, s_end, S, INDEX, BN, BC, BS)
            moved = tl.load(x + offsets, mask=mask, other=0).to(ACC) - first
            moved = tl.where(mask, moved, 0)
            total += moved
            squares += moved * moved
    values, gap, m2 = _lane_moments(
        total, squares, first, origin, n_end - n, s_end - s, BN, BS, ACC
    )
    row = partial + part.to(tl.int64) * 3 * C + c
    tl.store(row, tl.zeros((BC,), ACC) + values, mask=c < C)
    tl.store(row + C, gap, mask=c < C)
    tl.store(row + 2 * C, m2, mask=c < C)


@triton.jit
def normalize(
    x, y, residual, partial, table, running_mean, running_var, weight, bias,
    r_max, d_max, momentum, counter, N, C, S, n_part, s_part, parts,
    EPS: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Merge the parts' moments, and write one part of y; no y: the statistics alone."""
    S, part, first_c = S * V, tl.program_id(1), _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    p = tl.arange(0, BP)[:, None].to(tl.int64)
    rows, there = partial + p * 3 * C + c[None, :], (p < parts) & (c < C)[None, :]
    count = tl.load(rows, mask=there, other=0)
    part_gap = tl.load(rows + C, mask=there, other=0)
    total = tl.full((), N, ACC) * S
    gap = _quotient(tl.sum(count * part_gap, axis=0), total)
    apart = part_gap - gap[None, :]
    m2 = tl.load(rows + 2 * C, mask=there, other=0) + count * apart * apart
    origin = tl.load(x + c * S, mask=c < C, other=0).to(ACC)
    mean, scale, shift = _finish_forward(
        origin, gap, tl.sum(m2, axis=0), total, table, c, C, running_mean, running_var,
        weight, bias, r_max, d_max, momentum, counter, _written(part, C), EPS, ACC,
    )  # fmt: skip
    if y is not None:
        n, n_end, s, s_end = _part(part, N, S, n_part, s_part, INDEX)
        for i in range(n, n_end, BN):
            for j in range(s, s_end, BS):
                offsets, mask = _tile(i, first_c, j, n_end, C, s_end, S, INDEX, BN, BC, BS)
                values = tl.load(x + offsets, mask=mask, other=0).to(ACC)
                _write_output(y, residual, values, offsets, mask, mean, scale, shift, RELU, ACC)


@triton.jit
def commit(
    table, running_mean, running_var, new_mean, new_var, counter, counted, C,
    ACC: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One program: take the new statistics if all are finite, else keep the old ones.

    In place, ``new_mean`` and ``new_var`` are the running ones and ``counter`` moves; else
    ``counted`` is written.
    """
    finite = tl.full((), 1, ACC)
    for first in range(0, C, BC):
        c = first + tl.arange(0, BC)
        here = tl.load(table + FINITE * C + c, mask=c < C, other=1)
        finite = tl.minimum(finite, tl.min(here, axis=0))
    accepted = finite > 0
    for first in range(0, C, BC):
        c = first + tl.arange(0, BC)
        mean, var = _vector(running_mean, c, C, 0, ACC), _vector(running_var, c, C, 0, ACC)
        mean = tl.where(accepted, _row(table, NEW_MEAN, c, C), mean)
        var = tl.where(accepted, _row(table, NEW_VAR, c, C), var)
        tl.store(new_mean + c, mean, mask=c < C)
        tl.store(new_var + c, var, mask=c < C)
    if counter is not None:
        tl.store(counter, tl.load(counter) + accepted.to(tl.int64))
    if counted is not None:
        tl.store(counted, accepted)


@triton.jit
def _gradient(dy, y, x, offsets, mask, mean, scale, shift, RELU: tl.constexpr, ACC: tl.constexpr):
    """The gradient before the ReLU, whose sign is that of y, or is computed again from x."""
    g = tl.load(dy + offsets, mask=mask, other=0).to(ACC)
    if RELU:
        if y is None:
            out = (x - _spread(mean)) * _spread(scale) + _spread(shift)
        else:
            out = tl.load(y + offsets, mask=mask, other=0).to(ACC)
        g = tl.where(out <= 0, 0, g)
    return g


@triton.jit
def _finish_backward(
    total, product, values, table, c, C, dweight, dbias, written, ACC: tl.constexpr
):
    """From the sums of g and g * (x - mean) to the coefficients a, b, c of dx.

    ``dx = a * g + b * (x - mean) + c``; dweight and dbias are written for channels below
    ``written``.
    """
    lost, invstd = _row(table, LOST, c, C), _row(table, INVSTD, c, C)
    scale = _row(table, SCALE, c, C)
    product -= lost * total
    slope = -scale * invstd * invstd * (product / values)
    if dweight is not None:
        gradient = _row(table, R, c, C) * product * invstd + _row(table, D, c, C) * total
        gradient = gradient.to(dweight.dtype.element_ty)
        tl.store(dweight + c, gradient, mask=c < written)
    if dbias is not None:
        tl.store(dbias + c, total.to(dbias.dtype.element_ty), mask=c < written)
    return scale, slope, -scale * (total / values) - slope * lost


@triton.jit
def _write_gradients(dx, dresidual, g, x, offsets, mask, mean, a, b, constant):
    if dx is not None:
        gradient = _spread(a) * g + (_spread(b) * (x - _spread(mean)) + _spread(constant))
        tl.store(dx + offsets, gradient.to(dx.dtype.element_ty), mask=mask)
    if dresidual is not None:
        tl.store(dresidual + offsets, g.to(dresidual.dtype.element_ty), mask=mask)


@triton.jit
def whole_backward(
    dy, x, y, dx, dresidual, table, dweight, dbias, N, C, S,
    RELU: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """All gradients in one pass."""
    S, first_c = S * V, _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    offsets, mask = _tile(0, first_c, 0, N, C, S, S, INDEX, BN, BC, BS)
    mean, scale, shift = _row(table, MEAN, c, C), _row(table, SCALE, c, C), _row(table, SHIFT, c, C)
    values = tl.load(x + offsets, mask=mask, other=0).to(ACC)
    g = _gradient(dy, y, values, offsets, mask, mean, scale, shift, RELU, ACC)
    product = _over_tile(g * tl.where(mask, values - _spread(mean), 0))
    a, b, constant = _finish_backward(
        _over_tile(g), product, tl.full((), N, ACC) * S, table, c, C, dweight, dbias, C, ACC
    )
    _write_gradients(dx, dresidual, g, values, offsets, mask, mean, a, b, constant)


@triton.jit
def measure_gradient(
    dy, x, y, partial, table, N, C, S, n_part, s_part,
    RELU: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g * (x - mean) of one part: ``partial`` (parts, 2, C)."""
    S, part, first_c = S * V, tl.program_id(1), _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    n, n_end, s, s_end = _part(part, N, S, n_part, s_part, INDEX)
    mean, scale, shift = _row(table, MEAN, c, C), _row(table, SCALE, c, C), _row(table, SHIFT, c, C)
    total, product = tl.zeros((BN, BC, BS), ACC), tl.zeros((BN, BC, BS), ACC)
    for i in range(n, n_end, BN):
        for j in range(s, s_end, BS):
            offsets, mask = _tile(i, first_c, j, n_end, C, s_end, S, INDEX, BN, BC, BS)
            values = tl.load(x + offsets, mask=mask, other=0).to(ACC)
            g = _gradient(dy, y, values, offsets, mask, mean, scale, shift, RELU, ACC)
            total += g
            product += g * tl.where(mask, values - _spread(mean), 0)
    row = partial + part.to(tl.int64) * 2 * C + c
    tl.store(row, _over_tile(total), mask=c < C)
    tl.store(row + C, _over_tile(product), mask=c < C)


@triton.jit
def propagate(
    dy, x, y, dx, dresidual, partial, table, dweight, dbias,
    N, C, S, n_part, s_part, parts,
    RELU: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, V: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Merge the parts' sums, and write one part of the gradients of x and the residual."""
    S, part, first_c = S * V, tl.program_id(1), _first_channel(BC, INDEX)
    c = first_c + tl.arange(0, BC)
    mean, scale, shift = _row(table, MEAN, c, C), _row(table, SCALE, c, C), _row(table, SHIFT, c, C)
    p = tl.arange(0, BP)[:, None].to(tl.int64)
    rows, there = partial + p * 2 * C + c[None, :], (p < parts) & (c < C)[None, :]
    a, b, constant = _finish_backward(
        tl.sum(tl.load(rows, mask=there, other=0), axis=0),
        tl.sum(tl.load(rows + C, mask=there, other=0), axis=0),
        tl.full((), N, ACC) * S, table, c, C, dweight, dbias, _written(part, C), ACC,
    )  # fmt: skip
    if dx is not None or dresidual is not None:
        n, n_end, s, s_end = _part(part, N, S, n_part, s_part, INDEX)
        for i in range(n, n_end, BN):
            for j in range(s, s_end, BS):
                offsets, mask = _tile(i, first_c, j, n_end, C, s_end, S, INDEX, BN, BC, BS)
                values = tl.load(x + offsets, mask=mask, other=0).to(ACC)
                g = _gradient(dy, y, values, offsets, mask, mean, scale, shift, RELU, ACC)
                _write_gradients(dx, dresidual, g, values, offsets, mask, mean, a, b, constant)
