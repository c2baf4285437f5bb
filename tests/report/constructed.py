"""Records made by hand."""

from dataclasses import replace

from renorm.report.records import Record, Specification

PLAIN = Specification("digits", "convnet", "batch_norm", "iid", 0, 100, 0.1, 32, 4)


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
        curve=((specification.steps, score),),
    )


def diverged(specification: Specification, step: int = 7) -> Record:
    return Record(specification, diverged_at=step)


def failed(specification: Specification, error: str = "OSError: disk on fire") -> Record:
    return Record(specification, error=f"Traceback (most recent call last):\n{error}\n")
