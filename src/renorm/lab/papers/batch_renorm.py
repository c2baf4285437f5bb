"""Ioffe 2017: batch renorm where groups are small or of few classes, and where they are not."""

import math
from collections.abc import Callable
from dataclasses import replace

from renorm.lab.papers.study import Study
from renorm.report.claims import (
    Claim,
    Evidence,
    Value,
    alone,
    between,
    contrast,
    gap,
    more_than,
)
from renorm.report.records import Corrections, Record, Specification

# batch norm on the whole batch, at each scale
_IID = {
    "smoke": Specification("digits", "convnet", "batch_norm", "iid", 0, 40, 0.1, 32, 8),
    "laptop": Specification(
        "mirrored_cifar10", "resnet14", "batch_norm", "iid", 0, 4000, 0.1, 64, 8
    ),
    "gpu": Specification(
        "mirrored_cifar10", "resnet20", "batch_norm", "iid", 0, 20_000, 0.1, 128, 8
    ),
}
_TWINS = {
    "smoke": Specification("digits", "convnet", "batch_norm", "iid", 0, 40, 0.1, 32, 16),
    "laptop": Specification("characters", "resnet8", "batch_norm", "iid", 0, 1000, 0.1, 128, 32),
    "gpu": Specification("characters", "resnet20", "batch_norm", "iid", 0, 6000, 0.1, 256, 32),
}
# short name of what shares statistics -> condition, group size
_GROUPS = {
    "groups of 4": ("microbatch", 4),
    "groups of 2": ("microbatch", 2),
    "16 of 4 classes": ("four_classes", 16),
    "8 of 2 classes": ("two_classes", 8),
    "8 of 1 class": ("clustered", 8),
}
# batch renorm's settings where two classes share statistics
_SETTINGS = {
    "open at once": "batch_renorm(ramp=False)",
    "small limits": "batch_renorm(d_max=0.5, r_max=1.25)",
    "update rate 0.1": "batch_renorm(momentum=0.1)",
}
_BATCH_NORM, _BATCH_RENORM = "batch norm", "batch renorm"


def arms(scale: str) -> dict[str, Specification]:
    """What is run at a scale; the name of an arm says what shares statistics, and the layer."""
    plain, twins = _IID[scale], _TWINS[scale]
    groups = {"whole batch": plain}
    for name, (condition, size) in _GROUPS.items():
        groups[name] = replace(plain, condition=condition, group_size=size)
    groups["characters, whole batch"] = twins
    for name, condition in (("twins", "twins"), ("halves", "halved_twins")):
        groups[f"characters, {name}"] = replace(twins, condition=condition)
    found = {}
    for name, run in groups.items():
        found[f"{name}, {_BATCH_NORM}"] = run
        found[f"{name}, {_BATCH_RENORM}"] = replace(run, normalizer="batch_renorm")
    two = groups["8 of 2 classes"]
    for name, normalizer in _SETTINGS.items():
        found[f"8 of 2 classes, {_BATCH_RENORM}, {name}"] = replace(two, normalizer=normalizer)
    return found


def claims(scale: str) -> tuple[Claim, ...]:
    """What the paper says of these arms, and what is asked beyond it; the same at every scale."""
    return (*_of_random_batches(), *_of_classes(), *_of_characters(), *_of_settings())


def _of_random_batches() -> tuple[Claim, ...]:
    whole, fours, twos = "whole batch", "groups of 4", "groups of 2"
    return (
        Claim(
            "With large random batches batch renorm is at most half a point below batch norm",
            _lead(whole),
            between(-0.5, math.inf),
            paper="78.5 % against 78.3 %, groups of 32",
        ),
        Claim(
            "Batch norm loses by groups of 4 random examples",
            _change(_BATCH_NORM, fours, whole),
            more_than(1.5),
            paper="4.1 points",
        ),
        Claim(
            "Batch renorm is better with groups of 4", _lead(fours), more_than(), paper="2.3 points"
        ),
        Claim(
            "Batch norm loses at least 1.5 points by groups of 2 random examples",
            _change(_BATCH_NORM, twos, whole),
            more_than(1.5),
        ),
        Claim("Batch renorm is better with groups of 2", _lead(twos), more_than()),
        Claim(
            "Batch renorm recovers more than two thirds of what groups of 2 cost: how far it is "
            "above that mark",
            above_two_thirds(
                f"{twos}, {_BATCH_RENORM}", f"{twos}, {_BATCH_NORM}", f"{whole}, {_BATCH_NORM}"
            ),
            more_than(),
            note="Says something only where batch norm does lose by groups of 2.",
        ),
    )


def _of_classes() -> tuple[Claim, ...]:
    whole = "whole batch"
    four, two, one = "16 of 4 classes", "8 of 2 classes", "8 of 1 class"
    return (
        Claim(
            "Batch norm loses at least 2 points where 16 of 4 classes share statistics",
            _change(_BATCH_NORM, four, whole),
            more_than(2),
        ),
        Claim(
            "Batch renorm is within 1 point of its figure for random batches there",
            _change(_BATCH_RENORM, whole, four),
            between(-1, math.inf),
            paper="no loss, groups of 32 of 16 classes",
        ),
        Claim(
            "Batch norm loses at least 30 points where 8 of 2 classes share statistics",
            _change(_BATCH_NORM, two, whole),
            more_than(30),
        ),
        Claim(
            "Batch renorm loses at most 10 points there: its change",
            _change(_BATCH_RENORM, whole, two),
            between(-10, math.inf),
        ),
        Claim(
            "The same batch norm weights do well there by the statistics of test batches of 2 "
            "classes: train mode less eval mode",
            alone(f"{two}, {_BATCH_NORM}", gap),
            more_than(5),
        ),
        Claim(
            "Batch renorm is better where 8 of ONE class share statistics", _lead(one), more_than()
        ),
    )


def _of_characters() -> tuple[Claim, ...]:
    whole, twins, halves = (f"characters, {part}" for part in ("whole batch", "twins", "halves"))
    return (
        Claim(
            "Batch norm loses where groups have two examples of each of their classes",
            _change(_BATCH_NORM, twins, whole),
            more_than(5),
        ),
        Claim(
            "The same weights do well by the statistics of test batches of such a composition: "
            "train mode less eval mode",
            alone(f"{twins}, {_BATCH_NORM}", gap),
            more_than(5),
        ),
        Claim(
            "Batch norm recovers where each group is parted so that twins are not together",
            _change(_BATCH_NORM, twins, halves),
            more_than(5),
        ),
        Claim(
            "Batch renorm does not lose by twins: within 1 point of random batches",
            _change(_BATCH_RENORM, whole, twins),
            between(-1, math.inf),
            paper="78.5 % both",
        ),
    )


def _of_settings() -> tuple[Claim, ...]:
    two = f"8 of 2 classes, {_BATCH_RENORM}"
    whole = f"whole batch, {_BATCH_RENORM}"
    return (
        Claim(
            "Limits have to open slowly: with a ramp less open at once, 8 of 2 classes",
            contrast({two: 1, f"{two}, open at once": -1}),
            more_than(),
        ),
        Claim(
            "Wide limits are needed: (3, 5) less (1.25, 0.5), 8 of 2 classes",
            contrast({two: 1, f"{two}, small limits": -1}),
            more_than(),
        ),
        Claim(
            "A slow update rate of the running statistics is better: 0.01 less 0.1, 8 of 2 classes",
            contrast({two: 1, f"{two}, update rate 0.1": -1}),
            more_than(),
            note="The rate is 10 / steps, from 0.01 to 0.1: runs of 1,000 steps or more have 0.01.",
        ),
        Claim(
            "At the end few r are at a limit, random batches",
            alone(whole, _at_the_end(lambda last: last.clipped_r)),
            between(-math.inf, 5),
            unit="% of r",
            paper="a small fraction",
        ),
        Claim(
            "At the end no d is at a limit, random batches",
            alone(whole, _at_the_end(lambda last: last.clipped_d)),
            between(-math.inf, 0.1),
            unit="% of d",
            paper="none",
            decimals=2,
        ),
    )


def _change(layer: str, before: str, after: str) -> Evidence:
    """What other groups change for a layer."""
    return contrast({f"{after}, {layer}": 1, f"{before}, {layer}": -1})


def above_two_thirds(ours: str, worse: str, better: str) -> Evidence:
    """How far an arm is above the mark two thirds of the way from one to another."""
    return contrast({ours: 1, worse: -1 / 3, better: -2 / 3})


def _lead(groups: str) -> Evidence:
    return contrast({f"{groups}, {_BATCH_RENORM}": 1, f"{groups}, {_BATCH_NORM}": -1})


def _at_the_end(of: Callable[[Corrections], float]) -> Value:
    """A share of the corrections at the end, in %; None for a run that kept none."""

    def share(record: Record) -> float | None:
        return 100 * of(record.corrections[-1]) if record.corrections else None

    return share


STUDY = Study(
    "batch-renorm",
    "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
    "Ioffe 2017, arXiv 1702.03275",
    "A small residual net on CIFAR-10, with a gradient of balanced classes in every arm: only the "
    "groups that share statistics are small or of few classes, as the paper's workers are. Twins, "
    "two examples of each class in a group, are drawn from Omniglot's 242 characters.",
    arms,
    claims,
    {"smoke": 2, "laptop": 3, "gpu": 5},
)
