"""Every normalizer by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from renorm.errors import ArgumentError
from renorm.names import check_options, known
from renorm.nn.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from renorm.nn.cross_iteration import (
    CrossIterationBatchNorm1d,
    CrossIterationBatchNorm2d,
    CrossIterationBatchNorm3d,
)
from renorm.nn.normalizers.evonorm_b0 import EvoNormB0
from renorm.nn.normalizers.evonorm_s0 import EvoNormS0
from renorm.nn.normalizers.filter_response_norm import FilterResponseNorm
from renorm.nn.normalizers.groups import group_count
from renorm.nn.normalizers.lp_batch_norm import LpBatchNorm
from renorm.nn.normalizers.noisy_batch_norm import NoisyBatchNorm
from renorm.nn.normalizers.variance_norm import VarianceNorm
from renorm.nn.normalizers.weights import ScaledWeightStandardization, WeightNorm

Make = Callable[..., nn.Module]  # (channels, dims, **options)


@dataclass(frozen=True)
class Entry:
    """A normalizer that ``normalizer`` makes.

    Args:
        name: what it is asked for by.
        about: one line: what it divides by what.
        source: the paper.
        options: what may be given besides the channels, with the default.
        mixes: whether in training the output for an example depends on the others of its batch.
        activates: whether it contains the nonlinearity, so that none is to follow.
        paired: whether it needs to know the layer before it, by ``pair`` or ``attach``.
        make: (channels, dims, **options) -> layer.
    """

    name: str
    about: str
    source: str
    options: Mapping[str, Any]
    mixes: bool = False
    activates: bool = False
    paired: bool = False
    make: Make = field(repr=False, default=lambda channels, dims: nn.Identity())


def normalizers() -> Mapping[str, Entry]:
    """All normalizers by name; the mapping cannot be changed.

    >>> [name for name, entry in normalizers().items() if entry.activates]
    ['filter_response_norm', 'evonorm_b0', 'evonorm_s0', 'weight_norm']
    >>> normalizers()["group_norm"].options["groups"] is None
    True
    """
    return _ENTRIES


def normalizer(name: str, channels: int, *, dims: int = 2, **options: Any) -> nn.Module:
    """A normalizer by name, to stand where nn.BatchNorm stands: after a layer of weights.

    What torch has is torch's own class: nn.BatchNorm, and nn.GroupNorm for ``layer_norm``,
    ``instance_norm`` and ``group_norm``. Over an input (N, C, *spatial), ``layer_norm`` takes
    statistics of an example over its channels and positions together, and has weight and bias per
    channel; ``instance_norm`` over the positions of one channel; ``group_norm`` over a group of
    channels and their positions, given as ``groups`` or as ``group_size``, 32 groups without.

    ``weight_norm`` and ``scaled_weight_standardization`` are told the layer before them by
    ``pair``, ``cross_iteration`` by ``attach``; ``renorm.nn.normalizers.block`` does that.

    Args:
        name: ``batch_norm``, ``batch_renorm``, ``cross_iteration``, ``layer_norm``,
            ``instance_norm``, ``group_norm``, ``filter_response_norm``, ``variance_norm``,
            ``evonorm_b0``, ``evonorm_s0``, ``weight_norm``, ``scaled_weight_standardization``,
            ``lp_batch_norm``, ``noisy_batch_norm`` or ``none``; hyphens count as underscores.
        channels: C, at least 1.
        dims: how many spatial dimensions the input has, 0 to 3.
        **options: of the class; ``normalizers()[name].options`` has them with their defaults.

    Raises:
        ArgumentError: an unknown name, with the near ones; an unknown option, with those there
            are; groups that do not divide the channels; or a number out of its range.

    >>> normalizer("group_norm", 64, group_size=16).num_groups
    4
    >>> type(normalizer("batch_norm", 8, dims=0)).__name__
    'BatchNorm1d'
    """
    entry = find(name)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ArgumentError(f"channels is a number of channels, at least 1, got {channels!r}.")
    if isinstance(dims, bool) or not isinstance(dims, int) or not 0 <= dims <= 3:
        raise ArgumentError(f"dims counts the spatial dimensions of inputs, 0 to 3, got {dims!r}.")
    check_options("normalizer", entry.name, options, entry.options)
    return entry.make(channels, dims, **options)


def find(name: str) -> Entry:
    """The entry of a name; hyphens count as underscores.

    Raises:
        ArgumentError: there is none; with the nearest names, and all.
    """
    (found,) = known("normalizer", [str(name)], _ENTRIES)
    return _ENTRIES[found]


def _grouped(channels: int, dims: int, name: str, groups: int, **options: Any) -> nn.GroupNorm:
    if dims == 0 and groups == channels:
        raise ArgumentError(
            f"{name} of {channels} channels has a group of a single value each in input without "
            "positions (dims=0), which has no spread to normalize by. Take fewer groups of "
            "channels, or another normalizer."
        )
    return nn.GroupNorm(groups, channels, **options)


def _layer_norm(channels: int, dims: int, **options: Any) -> nn.GroupNorm:
    return _grouped(channels, dims, "layer_norm", 1, **options)


def _instance_norm(channels: int, dims: int, **options: Any) -> nn.GroupNorm:
    return _grouped(channels, dims, "instance_norm", channels, **options)


def _group_norm(
    channels: int,
    dims: int,
    groups: int | None = None,
    group_size: int | None = None,
    **options: Any,
) -> nn.GroupNorm:
    count = group_count(channels, groups, group_size)
    return _grouped(channels, dims, "group_norm", count, **options)


def _of_any_rank(cls: type[nn.Module]) -> Make:
    return lambda channels, dims, **options: cls(channels, **options)


def _by_rank(*classes: type[nn.Module]) -> Make:
    return lambda channels, dims, **options: classes[max(dims, 1) - 1](channels, **options)


def _options(cls: type[nn.Module], *sizes: str) -> Mapping[str, Any]:
    """The options of a class with their defaults, without those that are its sizes."""
    found = inspect.signature(cls).parameters
    return MappingProxyType({k: one.default for k, one in found.items() if k not in sizes})


_OF_GROUP_NORM = _options(nn.GroupNorm, "num_groups", "num_channels")
_BY_GROUPS = MappingProxyType({"groups": None, "group_size": None, **_OF_GROUP_NORM})


def _ours(name: str, about: str, source: str, cls: Any, **marks: bool) -> Entry:
    options = _options(cls, "num_features")
    marks = {"activates": cls.activates, **marks}
    return Entry(name, about, source, options, **marks, make=_of_any_rank(cls))


_LISTED = (
    Entry(
        "batch_norm",
        "by the mean and variance of each channel over the batch",
        "Ioffe and Szegedy 2015, arXiv 1502.03167",
        _options(nn.BatchNorm2d, "num_features"),
        mixes=True,
        make=_by_rank(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    ),
    Entry(
        "batch_renorm",
        "batch norm, corrected towards the running statistics within limits",
        "Ioffe 2017, arXiv 1702.03275",
        _options(BatchRenorm2d, "num_features"),
        mixes=True,
        make=_by_rank(BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
    ),
    Entry(
        "cross_iteration",
        "by statistics of several iterations, brought to the weights of now",
        "Yao, Cao, Zheng, Huang and Lin 2021, arXiv 2002.05712",
        _options(CrossIterationBatchNorm2d, "num_features"),
        mixes=True,
        paired=True,
        make=_by_rank(
            CrossIterationBatchNorm1d, CrossIterationBatchNorm2d, CrossIterationBatchNorm3d
        ),
    ),
    Entry(
        "layer_norm",
        "by the mean and variance of an example over channels and positions",
        "Ba, Kiros and Hinton 2016, arXiv 1607.06450",
        _OF_GROUP_NORM,
        make=_layer_norm,
    ),
    Entry(
        "instance_norm",
        "by the mean and variance of each channel of an example over its positions",
        "Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022",
        _OF_GROUP_NORM,
        make=_instance_norm,
    ),
    Entry(
        "group_norm",
        "by the mean and variance of an example over groups of channels and their positions",
        "Wu and He 2018, arXiv 1803.08494",
        _BY_GROUPS,
        make=_group_norm,
    ),
    _ours(
        "filter_response_norm",
        "by the mean square of each channel of an example, with a thresholded linear unit",
        "Singh and Krishnan 2020, arXiv 1911.09737",
        FilterResponseNorm,
    ),
    _ours(
        "variance_norm",
        "by the variance of each channel over the batch; the mean stays",
        "Lubana, Dick and Tanaka 2021, arXiv 2106.05956",
        VarianceNorm,
        mixes=True,
    ),
    _ours(
        "evonorm_b0",
        "by the larger of the batch's deviation and a line of the value itself",
        "Liu, Brock, Simonyan and Le 2020, arXiv 2004.02967",
        EvoNormB0,
        mixes=True,
    ),
    _ours(
        "evonorm_s0",
        "a gated value by the variance of an example over groups of channels",
        "Liu, Brock, Simonyan and Le 2020, arXiv 2004.02967",
        EvoNormS0,
    ),
    _ours(
        "weight_norm",
        "the weights of each filter by their norm, with a corrected ReLU",
        "Salimans and Kingma 2016, arXiv 1602.07868",
        WeightNorm,
        paired=True,
    ),
    _ours(
        "scaled_weight_standardization",
        "the weights of each filter by their mean and variance, scaled for a ReLU",
        "Brock, De and Smith 2021, arXiv 2101.08692",
        ScaledWeightStandardization,
        paired=True,
    ),
    _ours(
        "lp_batch_norm",
        "batch norm by the l_p norm (p: 1, 2 or inf) in place of the deviation",
        "Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604",
        LpBatchNorm,
        mixes=True,
    ),
    _ours(
        "noisy_batch_norm",
        "batch norm, then noise of a new distribution at every step",
        "Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604",
        NoisyBatchNorm,
        mixes=True,
    ),
    Entry("none", "no normalization", "none", MappingProxyType({})),
)
_ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _LISTED})
