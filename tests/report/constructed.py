"""Records made by hand."""

import math
from dataclasses import replace

from renorm.report.records import Corrections, Record, Specification

PLAIN = Specification("digits", "convnet", "batch_norm", "iid", 0, 100, 0.1, 32, 4)
HERE = {"renorm": "0.1.0", "commit": None, "torch": "2.13.0"}
TRACEBACK = (
    'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no <b>data</b>\n'
)


def wanted(normalizers: str, conditions: str = "iid", seeds: int = 3) -> list[Specification]:
    return [
        replace(PLAIN, normalizer=normalizer, condition=condition, seed=seed)
        for seed in range(seeds)
        for condition in conditions.split()
        for normalizer in normalizers.split()
    ]


def finished(specification: Specification, score: float, gap: float = 0.0) -> Record:
    return Record(
        specification,
        score=score,
        train_mode_score=score + gap,
        eval_mode_score=score,
        loss=0.5,
        curve=((100, score),),
    )


def plain(specification: Specification, score: float, metric: str = "return") -> Record:
    """A record whose score is no fraction and has no train mode, as in reinforcement learning."""
    curve = ((50, score - 10.0), (100, score))
    return Record(specification, metric=metric, percent=False, score=score, curve=curve)


def diverged(specification: Specification, step: int = 7) -> Record:
    return Record(specification, diverged_at=step)


def failed(specification: Specification, traceback: str = TRACEBACK) -> Record:
    return Record(specification, error=traceback)


def realistic(specification: Specification, level: float, points: int = 20) -> Record:
    """A whole record: a curve that rises to about ``level``, and corrections of batch renorm."""
    wobble = 0.01 * math.sin(7.0 * specification.seed + 3.0 * len(specification.normalizer))
    steps = [(place + 1) * specification.steps // points for place in range(points)]
    curve = tuple(
        (step, (level + wobble) * (1 - math.exp(-5 * step / specification.steps))) for step in steps
    )
    corrected = specification.normalizer == "batch_renorm"
    return replace(
        finished(specification, curve[-1][1], gap=0.9 - level),
        curve=curve,
        corrections=tuple(map(_corrections, steps)) if corrected else (),
        step_seconds=0.004 * (1.2 if corrected else 1.0) * (1 + wobble),
        cpu_seconds=4.0,
        environment=HERE,
    )


def grid(seeds: int) -> list[Record]:
    """Three normalizers in three conditions: ``9 * seeds`` whole records."""
    low = {"batch_norm": 0.35, "batch_renorm": 0.92, "group_norm": 0.95}
    runs = wanted(" ".join(low), "iid microbatch clustered", seeds)
    return [
        realistic(one, low[one.normalizer] if one.condition == "clustered" else 0.96)
        for one in runs
    ]


def _corrections(step: int) -> Corrections:
    part = min(step / 40, 1.0)
    r_max, d_max = 1 + 2 * part, 5 * min(step / 25, 1.0)
    r = tuple(min(max(math.exp(place * part / 2), 1 / r_max), r_max) for place in range(-2, 3))
    d = tuple(min(max(place * part, -d_max), d_max) for place in range(-2, 3))
    return Corrections(step, r_max, d_max, r, d, 0.04, 0.1 * part)  # pyright: ignore[reportArgumentType]
