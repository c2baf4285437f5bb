"""``sync="batch"`` in several processes is one process with all examples."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from renorm import limits
from renorm.nn import BatchRenorm
from support.ranks import Ranks
from support.tolerance import assert_close

C = 5
SPLITS = {2: [(4, 4), (7, 1), (8, 0)], 3: [(3, 3, 3), (5, 0, 3)], 4: [(2, 2, 2, 2), (1, 0, 4, 3)]}
SIZES = [(size, split) for size, splits in SPLITS.items() for split in splits]


class Problem(NamedTuple):
    x: Tensor
    dy: Tensor
    mask: Tensor | None
    split: tuple[int, ...]
    settings: dict[str, Any]
    offset: float = 0.0


class Step(NamedTuple):
    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    running_mean: Tensor
    running_var: Tensor
    steps: int


def problem(split: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Problem:
    spatial, offset = options.pop("spatial", (3, 2)), options.pop("offset", 0.0)
    masked, channels_last = options.pop("masked", False), options.pop("channels_last", False)
    x = torch.randn(sum(split), C, *spatial, dtype=torch.float64)
    # what the ranks have differs: other means, other spreads
    x = x * torch.linspace(0.5, 2, len(x), dtype=x.dtype).view(-1, *[1] * (x.dim() - 1))
    x = (x + torch.linspace(-1, 1, len(x)).view(-1, *[1] * (x.dim() - 1)) + offset).to(dtype)
    dy = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mask = torch.rand(len(x), *spatial) < 0.7 if masked else None
    return Problem(x, dy, mask, split, options, offset)


def step(rank: int | None, group: Any, p: Problem, forwards: int = 1) -> Step:
    """The last of some training steps, of this rank's part or, without rank, of everything."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"limits": limits.fixed(1.5, 0.4), "momentum": 0.1} | p.settings
    if rank is not None:
        settings |= {"sync": "batch", "process_group": group}
    wide = torch.float64 if p.x.dtype == torch.float64 else torch.float32
    layer = BatchRenorm(C, **settings).to(wide)
    with torch.no_grad():
        for t in (layer.weight, layer.bias):
            t.normal_()
        if layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_()
            layer.running_mean.add_(p.offset)
            layer.running_var.uniform_(0.5, 2)
    part = slice(None) if rank is None else slice(sum(p.split[:rank]), sum(p.split[: rank + 1]))
    x = p.x[part].clone(memory_format=torch.preserve_format).requires_grad_()
    mask = None if p.mask is None else p.mask[part]
    with torch.no_grad():
        for _ in range(forwards - 1):
            layer(x, mask)
    y = layer(x, mask)
    y.backward(p.dy[part])
    dx, dweight, dbias = (t.grad for t in (x, layer.weight, layer.bias))
    assert dx is not None
    assert dweight is not None
    assert dbias is not None
    none = torch.zeros(0)
    mean, var = (none if t is None else t for t in (layer.running_mean, layer.running_var))
    count = layer.num_batches_tracked
    return Step(y.detach(), dx, dweight, dbias, mean, var, -1 if count is None else int(count))


def compare(steps: list[Step], exact: Step, p: Problem) -> None:
    dtype = p.x.dtype
    offset = max(1.0, p.offset)
    joined = {
        "y": torch.cat([s.y for s in steps]),
        "dx": torch.cat([s.dx for s in steps]),
        "dweight": torch.stack([s.dweight for s in steps]).sum(0),
        "dbias": torch.stack([s.dbias for s in steps]).sum(0),
    }
    for name, value in joined.items():
        true = getattr(exact, name).double()
        # the gradient of a parameter is a sum over all examples, that of x a difference of such
        scale = max(1.0, float(true.abs().max()))
        assert_close(name, value, true, dtype, scale=scale, offset=offset)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for s in steps:
        assert_close("running_mean", s.running_mean, exact.running_mean.double(), wide)
        assert_close("running_var", s.running_var, exact.running_var.double(), wide, offset=offset)
        assert torch.equal(s.running_mean, steps[0].running_mean)
        assert torch.equal(s.running_var, steps[0].running_var)
        assert s.steps == exact.steps
        assert s.y.dtype == dtype
        assert s.y.is_contiguous(memory_format=torch.channels_last) or s.y.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "split"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_joined_batch(
    ranks: Ranks, size: int, split: tuple[int, ...], dtype: torch.dtype, masked: bool
) -> None:
    p = problem(split, dtype, masked=masked)
    compare(ranks.run(step, p, size=size), step(None, None, p), p)


VARIANTS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "rows": {"spatial": ()},
    "volumes": {"spatial": (2, 3, 2)},
    "channels_last": {"channels_last": True},
    "composite": {"kernel": "composite"},
    "no reference": {"track_running_stats": False},
    "cumulative": {"momentum": None},
    "far from zero": {"offset": 1e4},
    "batch norm phase": {"limits": limits.batch_norm()},
    "masked bfloat16": {"dtype": torch.bfloat16, "masked": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_joined_batch_in_every_variant(ranks: Ranks, name: str) -> None:
    options = dict(VARIANTS[name])
    p = problem((5, 0, 3), options.pop("dtype", torch.float32), **options)
    compare(ranks.run(step, p, 3, size=3), step(None, None, p, 3), p)
