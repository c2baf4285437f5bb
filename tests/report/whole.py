"""Records with everything in them, as a real comparison leaves them."""

import math
from dataclasses import replace

from renorm.report.records import Corrections, Record, Specification
from report.constructed import finished, wanted

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
HERE = {"renorm": "0.1.0", "commit": None, "torch": "2.13.0"}


def plain(specification: Specification, score: float, metric: str = "return") -> Record:
    """A record whose score is no fraction and has no train mode, as in reinforcement learning."""
    curve = ((50, score - 10.0), (100, score))
    return Record(specification, metric=metric, percent=False, score=score, curve=curve)


def tried(specification: Specification, lr: float, score: float | None) -> Record:
    """A record of a search for learning rates; without a score it diverged."""
    one = replace(specification, lr=lr, split="validation")
    return finished(one, score) if score is not None else Record(one, diverged_at=3)


def whole(specification: Specification, level: float, points: int = 20) -> Record:
    """A curve that rises to about ``level``, times, and corrections where it is batch renorm."""
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
        whole(one, low[one.normalizer] if one.condition == "clustered" else 0.96) for one in runs
    ]


def _corrections(step: int) -> Corrections:
    """Limits that open over 40 steps, and quantiles that widen with them."""
    part = min(step / 40, 1.0)
    r_max, d_max = 1 + 2 * part, 5 * min(step / 25, 1.0)
    low, high = math.exp(-part / 2), math.exp(part / 2)
    r = (max(low**2, 1 / r_max), low, 1.0, high, min(high**2, r_max))
    d = (-2 * part, -part / 2, 0.1 * part, part, 2 * part)
    return Corrections(step, r_max, d_max, r, d, 0.04, 0.1 * part)
