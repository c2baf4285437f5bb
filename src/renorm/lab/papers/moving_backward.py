"""Beyond Ioffe 2017: when moving averages in the backward pass of batch renorm help."""

import math
from dataclasses import replace

from renorm.lab.papers import batch_renorm
from renorm.lab.papers.study import Study
from renorm.report.claims import Claim, between, contrast, more_than
from renorm.report.records import Specification

# of the arms of the study of batch renorm, those whose statistics are shared so
_RANDOM = {
    "whole batch": "random batches",
    "groups of 4": "random groups of 4",
    "groups of 2": "random groups of 2",
}
_OF_CLASSES = ("16 of 4 classes", "8 of 2 classes", "8 of 1 class")
_LATE = "The bar was set after the first seed had been seen."


def arms(scale: str) -> dict[str, Specification]:
    """What is run at a scale; the name of an arm says what shares statistics, and the pass."""
    theirs = batch_renorm.arms(scale)
    found = {}
    for groups in (*_RANDOM, *_OF_CLASSES):
        run = theirs[f"{groups}, batch renorm"]
        found[f"{groups}, batch"] = run
        found[f"{groups}, moving"] = replace(run, normalizer="batch_renorm(backward='moving')")
    for groups in _RANDOM:
        found[f"{groups}, batch norm"] = theirs[f"{groups}, batch norm"]
    return found


def claims(scale: str) -> tuple[Claim, ...]:
    """What is asked of the moving averages; the same at every scale."""
    return (
        *(
            Claim(
                f"Moving averages are better where {groups} share statistics",
                contrast({f"{groups}, moving": 1, f"{groups}, batch": -1}),
                more_than(),
            )
            for groups in ("8 of 1 class", "8 of 2 classes")
        ),
        *(
            Claim(
                f"With {what} they are at most 1 point worse",
                contrast({f"{groups}, moving": 1, f"{groups}, batch": -1}),
                between(-1, math.inf),
            )
            for groups, what in {**_RANDOM, "16 of 4 classes": "16 of 4 classes"}.items()
        ),
        *(
            Claim(
                f"With {_RANDOM[groups]} they are at most 1 point below batch norm",
                contrast({f"{groups}, moving": 1, f"{groups}, batch norm": -1}),
                between(-1, math.inf),
            )
            for groups in ("whole batch", "groups of 4")
        ),
        *(
            Claim(
                f"With them {groups} cost at most 10 points: the change from random batches",
                contrast({f"{groups}, moving": 1, "whole batch, moving": -1}),
                between(-10, math.inf),
                note=note,
            )
            for groups, note in (("8 of 2 classes", ""), ("8 of 1 class", _LATE))
        ),
        Claim(
            "With them batch renorm recovers more than two thirds of what groups of 2 cost batch "
            "norm: how far it is above that mark",
            batch_renorm.above_two_thirds(
                "groups of 2, moving", "groups of 2, batch norm", "whole batch, batch norm"
            ),
            more_than(),
        ),
    )


STUDY = Study(
    "moving-backward",
    "Batch renorm with backward='moving'",
    "beyond Ioffe 2017, arXiv 1702.03275; the averages are an idea of Yan et al. 2020 (ICLR)",
    "Batch renorm with the paper's backward pass and with moving averages in it, on the settings "
    "of the study of batch renorm: the gradient is of balanced classes in every arm, and only the "
    "groups that share statistics are small (of random examples) or of few classes.",
    arms,
    claims,
    {"smoke": 2, "laptop": 3, "gpu": 5},
)
