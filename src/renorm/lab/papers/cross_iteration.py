"""Yao et al. 2020: cross-iteration batch norm as the examples on a device become few."""

import math
from dataclasses import replace

from renorm.lab.papers.study import Study
from renorm.report.claims import Claim, Evidence, between, contrast, more_than
from renorm.report.records import Specification

_WHOLE = {
    "smoke": Specification("digits", "convnet", "batch_norm", "devices", 0, 20, 0.05, 8, 8),
    "laptop": Specification(
        "fashion_mnist", "resnet8", "batch_norm", "devices", 0, 600, 0.1, 32, 32
    ),
    "gpu": Specification(
        "mirrored_cifar10", "resnet20", "batch_norm", "devices", 0, 4000, 0.1, 32, 32
    ),
}
_SIZES = {"smoke": (2, 1), "laptop": (4, 2, 1), "gpu": (16, 8, 4, 2, 1)}
_EACH = {
    "batch norm": "batch_norm",
    "batch renorm": "batch_renorm",
    "cross-iteration": "cross_iteration",
}
_OURS = "cross_iteration"
_UNCOMPENSATED = "cross_iteration(compensation='none')"
# at 2 examples
_SETTINGS = {
    "window 4": f"{_OURS}(window=4)",
    "window 16": f"{_OURS}(window=16)",
    "burn-in of 5 %": f"{_OURS}(burn_in=0.05)",
}


def arms(scale: str) -> dict[str, Specification]:
    """What is run at a scale: the layer, and examples on a device."""
    whole, sizes = _WHOLE[scale], _SIZES[scale]
    found = {}
    for size in (whole.group_size, *sizes):
        for title, name in _EACH.items():
            found[f"{title}, {size} on a device"] = replace(whole, normalizer=name, group_size=size)
    found["group norm"] = replace(whole, normalizer="group_norm")
    for size in sizes[-3:-1]:
        found[f"cross-iteration without compensation, {size} on a device"] = replace(
            whole, normalizer=_UNCOMPENSATED, group_size=size
        )
    for title, name in _SETTINGS.items():
        found[f"cross-iteration, 2 on a device, {title}"] = replace(
            whole, normalizer=name, group_size=2
        )
    return found


def claims(scale: str) -> tuple[Claim, ...]:
    """What the paper says of these arms; its table of ImageNet is not quoted, as unchecked."""
    most, least = _WHOLE[scale].group_size, _SIZES[scale][-1]
    ours, bare = "cross-iteration", "cross-iteration without compensation"
    return (
        Claim(
            f"With {most} examples on a device it is as good as batch norm: the difference",
            contrast({f"{ours}, {most} on a device": 1, f"batch norm, {most} on a device": -1}),
            between(-1, 1),
        ),
        *(
            Claim(
                f"With {size} it is within 1 point of batch norm with {most}: the difference",
                contrast({f"{ours}, {size} on a device": 1, f"batch norm, {most} on a device": -1}),
                between(-1, math.inf),
            )
            for size in _SIZES[scale]
        ),
        *(_above("batch norm", size) for size in (2, least)),
        *(_above("batch renorm", size) for size in (2, least)),
        *(
            Claim(
                f"The compensation is needed: what it is worth with {size} examples",
                contrast({f"{ours}, {size} on a device": 1, f"{bare}, {size} on a device": -1}),
                more_than(1),
            )
            for size in _SIZES[scale][-3:-1]
        ),
        Claim(
            "A longer window is better: 16 less 4 iterations of 2 examples",
            _of_settings("window 16", "window 4"),
            more_than(),
        ),
        Claim(
            "Batch norm has to come first: a burn-in of a third less one of 5 %, 2 examples",
            contrast({f"{ours}, 2 on a device": 1, f"{ours}, 2 on a device, burn-in of 5 %": -1}),
            more_than(),
        ),
        Claim(
            f"It is above group norm with {most} examples",
            contrast({f"{ours}, {most} on a device": 1, "group norm": -1}),
            more_than(),
        ),
    )


def _above(other: str, size: int) -> Claim:
    return Claim(
        f"With {size} on a device it is above {other}",
        contrast({f"cross-iteration, {size} on a device": 1, f"{other}, {size} on a device": -1}),
        more_than(),
    )


def _of_settings(ours: str, theirs: str) -> Evidence:
    arm = "cross-iteration, 2 on a device"
    return contrast({f"{arm}, {ours}": 1, f"{arm}, {theirs}": -1})


STUDY = Study(
    "cross-iteration",
    "Cross-Iteration Batch Normalization",
    "Yao, Cao, Zheng, Huang and Lin 2020, arXiv 2002.05712",
    "A small residual net, a gradient of 32 examples from as many devices as it takes: they share "
    "the weights, and each has running statistics and a window of past iterations for itself.",
    arms,
    claims,
    {"smoke": 2, "laptop": 3, "gpu": 5},
)
