"""The inputs that every check and every benchmark runs on: one table, each row with its reason."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["contiguous", "channels_last", "strided", "expanded", "transposed"]


@dataclass(frozen=True)
class Case:
    """One kind of input to one normalization.

    The input is ``offset + spread * noise``, with another mean and standard deviation in each
    channel; the running statistics differ from it so that some channels are clipped and others
    are not.
    """

    id: str
    shape: tuple[int, ...]  # (N, C, *spatial)
    dtype: torch.dtype = torch.float32
    layout: Layout = "contiguous"
    cotangent: Literal["like_input", "expanded", "other_layout"] = "like_input"
    offset: float = 0.0
    spread: float = 1.0
    constant_channel: bool = False
    masked: bool = False
    microbatch: int | None = None
    residual: bool = False
    relu: bool = False
    affine: bool = True
    bias: bool = True
    parameter_dtype: torch.dtype | None = None  # None: dtype of the input
    limits: tuple[float, float] = (1.5, 0.5)
    eps: float = 1e-5
    momentum: float = 0.1
    backward: Literal["batch", "moving"] = "batch"  # on a first pass, whose averages are its own
    seed: int = 0

    @property
    def followed(self) -> bool:
        """Whether something comes after the normalization."""
        return self.residual or self.relu


@dataclass
class Inputs:
    """The tensors of a case, made afresh at each call of ``inputs``."""

    x: Tensor
    dy: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None = None
    residual: Tensor | None = None


HALF = (torch.bfloat16, torch.float16)

_BASE = [
    Case("2d", (32, 16)),
    Case("2d one channel", (7, 1)),
    Case("2d two examples", (2, 5)),
    Case("2d wide", (256, 65)),
    Case("3d", (6, 5, 17)),
    Case("3d one example", (1, 4, 9)),
    Case("4d", (4, 8, 7, 7)),
    Case("4d one example", (1, 3, 5, 5)),
    Case("4d one position", (9, 6, 1, 1)),
    Case("4d odd sizes", (3, 33, 13, 11)),
    Case("4d large plane", (2, 3, 65, 63)),
    Case("5d", (2, 4, 3, 5, 5)),
    Case("4d channels_last", (4, 8, 7, 7), layout="channels_last"),
    Case("5d channels_last", (2, 4, 3, 5, 5), layout="channels_last"),
    Case("4d strided", (4, 8, 6, 6), layout="strided"),
    Case("2d transposed", (12, 10), layout="transposed"),
    Case("4d expanded", (4, 8, 5, 5), layout="expanded"),
    Case("4d expanded gradient", (4, 8, 7, 7), cotangent="expanded"),
    Case("4d gradient of other layout", (4, 8, 7, 7), cotangent="other_layout"),
    Case("channels_last gradient of other layout", (4, 8, 7, 7), layout="channels_last",
         cotangent="other_layout"),
    Case("constant channel", (8, 4, 3, 3), constant_channel=True),
    Case("small values", (8, 4, 3, 3), spread=1e-3),
    Case("large eps", (8, 4, 3, 3), eps=0.1),
    Case("batch norm limits", (4, 8, 7, 7), limits=(1.0, 0.0)),
    Case("paper limits", (4, 8, 7, 7), limits=(3.0, 5.0)),
    Case("unclipped", (4, 8, 7, 7), limits=(float("inf"), float("inf"))),
    Case("no affine", (4, 8, 7, 7), affine=False),
    Case("no bias", (4, 8, 7, 7), bias=False),
    Case("momentum 1", (4, 8, 7, 7), momentum=1.0),
    Case("momentum 0", (4, 8, 7, 7), momentum=0.0),
    Case("masked 3d", (5, 6, 11), masked=True),
    Case("masked 4d", (4, 5, 6, 7), masked=True),
    Case("masked channels_last", (4, 5, 6, 7), masked=True, layout="channels_last"),
    Case("microbatch", (8, 5, 4, 4), microbatch=2),
    Case("microbatch ragged", (7, 5, 4, 4), microbatch=3),
    Case("microbatch 2d", (12, 6), microbatch=4),
    Case("microbatch channels_last", (6, 5, 4, 4), microbatch=2, layout="channels_last"),
    Case("microbatch larger than batch", (4, 5, 4, 4), microbatch=64),
    Case("masked microbatch", (7, 5, 4, 4), masked=True, microbatch=3),
]  # fmt: skip

_OFFSETS = [
    Case(f"offset {offset:g} {name}", shape, layout=layout, offset=offset)
    for offset in (1e2, 1e4)
    for name, shape, layout in [
        ("2d", (64, 16), "contiguous"),
        ("3d", (8, 8, 40), "contiguous"),
        ("4d", (8, 8, 14, 14), "contiguous"),
        ("4d channels_last", (8, 8, 14, 14), "channels_last"),
        ("4d strided", (8, 8, 14, 14), "strided"),
        ("5d channels_last", (2, 8, 4, 7, 7), "channels_last"),
    ]
]

_DTYPES = [
    replace(case, id=f"{case.id} {str(dtype).removeprefix('torch.')}", dtype=dtype)
    for case in _BASE
    if case.id in {"2d", "4d", "4d channels_last", "masked 4d", "microbatch ragged", "no affine"}
    for dtype in (torch.float64, *HALF)
] + [
    Case("autocast bfloat16", (4, 8, 7, 7), torch.bfloat16, parameter_dtype=torch.float32),
    Case("autocast float16 channels_last", (4, 8, 7, 7), torch.float16, layout="channels_last",
         parameter_dtype=torch.float32),
    Case("float16 beyond its squares", (8, 4, 5, 5), torch.float16, offset=2000, spread=300,
         parameter_dtype=torch.float32),
]  # fmt: skip

_MOVING = [
    Case("moving", (4, 8, 7, 7), backward="moving"),
    Case("moving 2d", (12, 6), backward="moving", microbatch=4),
    Case("moving ragged", (7, 5, 4, 4), backward="moving", microbatch=3),
    Case("moving masked", (5, 6, 11), backward="moving", masked=True),
    Case("moving channels_last", (6, 5, 4, 4), backward="moving", microbatch=2,
         layout="channels_last"),
    Case("moving batch norm limits", (6, 5, 4, 4), backward="moving", microbatch=2,
         limits=(1.0, 0.0)),
    Case("moving no affine", (6, 5, 4, 4), backward="moving", affine=False),
    Case("moving offset", (8, 8, 14, 14), backward="moving", offset=1e4),
    Case("moving bfloat16", (4, 8, 7, 7), torch.bfloat16, backward="moving"),
    Case("moving autocast float16", (4, 8, 7, 7), torch.float16, backward="moving",
         parameter_dtype=torch.float32),
]  # fmt: skip

CASES = _BASE + _OFFSETS + _DTYPES


def _followed(cases: list[Case]) -> list[Case]:
    """The cases with what follows a normalization, in the same pass."""
    return [
        replace(case, id=f"{case.id} + {name}", **what)
        for case in cases
        if case.layout not in ("expanded", "strided")
        and case.offset == 0
        and case.affine  # without, a value may be exactly 0, where a ReLU has no gradient
        for name, what in {
            "relu": {"relu": True},
            "residual": {"residual": True},
            "residual + relu": {"residual": True, "relu": True},
        }.items()
    ]


EPILOGUES = _followed(CASES)
MOVING = _MOVING + _followed(_MOVING)


def case(name: str) -> Case:
    """The case of that id."""
    return next(c for c in CASES if c.id == name)


def inputs(case: Case, step: int = 0) -> Inputs:
    """The tensors of a case; another ``step`` gives other data of the same kind."""
    g = torch.Generator().manual_seed(1000 * step + case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    N, C, *spatial = case.shape
    per_channel = (1, C, *[1] * len(spatial))
    std = normal(C).mul(0.4).exp() * case.spread
    mean = case.offset + normal(C) * case.spread
    noise = normal(*case.shape)
    if case.layout == "expanded":
        noise = noise[:1].expand(case.shape)
    x = mean.view(per_channel) + std.view(per_channel) * noise
    if case.constant_channel:
        x[:, 0] = mean[0]
    running_mean = mean + std * normal(C) * 0.6
    running_var = std.square() * normal(C).mul(0.8).exp()
    parameters = case.parameter_dtype or case.dtype
    mask = None
    if case.masked:
        mask = torch.rand(N, *spatial, generator=g) < 0.7
        mask[0] = True  # a case has real data, whatever the draw
    dy, weight, bias, residual = normal(*case.shape), normal(C), normal(C), None
    if case.residual:
        residual = _laid_out(normal(*case.shape).to(case.dtype), case.layout)
    return Inputs(
        x=_laid_out(x.to(case.dtype), case.layout),
        dy=_cotangent(dy.to(case.dtype), case),
        running_mean=running_mean.to(parameters),
        running_var=running_var.to(parameters),
        weight=(1 + 0.5 * weight).to(parameters) if case.affine else None,
        bias=bias.to(parameters) if case.affine and case.bias else None,
        mask=mask,
        residual=residual,
    )


def memory_format(rank: int) -> torch.memory_format:
    """The channels-last format of that rank."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}[rank]


def _laid_out(x: Tensor, layout: Layout) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=memory_format(x.dim()))
    if layout == "strided":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "expanded":
        return x[:1].contiguous().expand(x.shape)
    return x.contiguous()


def _cotangent(dy: Tensor, case: Case) -> Tensor:
    if case.cotangent == "expanded":
        return dy[:, :, :1, :1].expand(case.shape)
    other = "contiguous" if case.layout == "channels_last" else "channels_last"
    layout: Layout = other if case.cotangent == "other_layout" else case.layout
    return _laid_out(dy, "contiguous" if layout in ("expanded", "strided") else layout)
