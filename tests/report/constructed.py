"""Records made by hand."""

from dataclasses import replace

from renorm.report.records import Record, Specification

PLAIN = Specification("digits", "batch_norm", "iid", 0, 100, 0.1, 32, 4)


def wanted(normalizers: str, conditions: str = "iid", seeds: int = 3) -> list[Specification]:
    return [
        replace(PLAIN, normalizer=normalizer, condition=condition, seed=seed)
        for seed in range(seeds)
        for condition in conditions.split()
        for normalizer in normalizers.split()
    ]


def finished(specification: Specification, accuracy: float, gap: float = 0.0) -> Record:
    return Record(specification, accuracy, accuracy + gap, accuracy, 0.5, ((100, accuracy),))


def diverged(specification: Specification, step: int = 7) -> Record:
    return Record(specification, None, None, None, None, (), step)
