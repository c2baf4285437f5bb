"""What a study of a paper is: runs at several scales, and claims that they are held against."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from renorm.errors import ArgumentError
from renorm.report.claims import Claim, Judged, Runs, judge
from renorm.report.records import Record, Specification

SCALES = ("smoke", "laptop", "gpu")


@dataclass(frozen=True)
class Study:
    """One paper's claims, and the runs that decide them.

    Args:
        name: as it is given on the command line.
        title: of the paper.
        source: authors, year, arXiv number.
        about: what is run at full size, in a few sentences.
        arms: scale -> name of an arm -> its run with seed 0. An arm is runs that differ in their
            seed alone; what claims speak of are arms.
        claims: scale -> claims.
        seeds: scale -> how many seeds.
    """

    name: str
    title: str
    source: str
    about: str
    arms: Callable[[str], Mapping[str, Specification]]
    claims: Callable[[str], tuple[Claim, ...]]
    seeds: Mapping[str, int]

    def specifications(self, scale: str, seeds: int | None = None) -> tuple[Specification, ...]:
        """All runs, seed by seed, so that an interrupted study has whole seeds to judge.

        Arms may share a run, which is done once.

        Args:
            scale: one of ``SCALES``.
            seeds: how many, at least 1; None for the scale's own number.

        Raises:
            ArgumentError: no seeds.
        """
        count = self.seeds[scale] if seeds is None else seeds
        if count < 1:
            raise ArgumentError(
                f"seeds is how many seeds to run, at least 1 (an interval needs 2), got {count}."
            )
        arms = self.arms(scale).values()
        wanted = [replace(arm, seed=seed) for seed in range(count) for arm in arms]
        return tuple(dict.fromkeys(wanted))

    def runs(self, scale: str, records: Iterable[Record]) -> Runs:
        """The records of each arm by seed; others are left aside."""
        found: dict[Specification, dict[int, Record]] = {}
        for record in records:
            one = record.specification
            found.setdefault(replace(one, seed=0), {})[one.seed] = record
        return {name: found.get(arm, {}) for name, arm in self.arms(scale).items()}

    def judge(self, scale: str, records: Iterable[Record]) -> tuple[Judged, ...]:
        """A verdict on each claim, by the records there are."""
        return judge(self.claims(scale), self.runs(scale, records))
