"""Records of several stores as one: found, merged, and set apart into comparisons."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from renorm.errors import RecordError
from renorm.report.records import Record, Specification
from renorm.report.search import chosen_rates

PATTERN = "*.jsonl"


@dataclass(frozen=True)
class Conflict:
    """One specification with two outcomes; the later one is used.

    Args:
        specification: what was run twice.
        dropped, used: the records.
        origins: the stores they come from.
    """

    specification: Specification
    dropped: Record
    used: Record
    origins: tuple[str, str]

    @property
    def differing(self) -> tuple[str, ...]:
        """Entries of the environment that are not the same in both."""
        ours, theirs = self.dropped.environment, self.used.environment
        return tuple(sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)))

    def __str__(self) -> str:
        because = f"the environments differ in {', '.join(self.differing)}"
        if not self.differing:
            because = "the environments are the same"
        return (
            f"{self.specification}: {_outcome(self.dropped)} in {self.origins[0]}, "
            f"{_outcome(self.used)} in {self.origins[1]}, which is used; {because}."
        )


@dataclass(frozen=True)
class Merged:
    """What several stores come to.

    Args:
        records: one a specification, in the order first met.
        conflicts: specifications of which the stores do not say the same.
    """

    records: tuple[Record, ...]
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True)
class Group:
    """Records that belong into one comparison.

    Args:
        wanted: the scored runs, by condition, normalizer and seed.
        records: of these runs, and of the search for their learning rates.
    """

    wanted: tuple[Specification, ...]
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        """What the runs share, in a line."""
        return describe(self.wanted)


@dataclass(frozen=True)
class Found:
    """Files that a search came upon.

    Args:
        stores: files to read.
        skipped: files of the same ending that hold something else.
    """

    stores: tuple[Path, ...] = field(default=())
    skipped: tuple[Path, ...] = field(default=())


def find(paths: Iterable[Path]) -> Found:
    """The stores among files, and below folders; a file that is named is taken as it is.

    Raises:
        RecordError: a path is not there, or there is no store at all.
    """
    paths = list(paths)
    stores: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob(PATTERN)):
                (stores if _is_store(file) else skipped)[file] = None
        elif path.exists():
            stores[path] = None
        else:
            raise RecordError(f"There is no file or folder {path}. Give one that is there.")
    if not stores:
        places = ", ".join(map(str, paths)) or "no folder"
        raise RecordError(
            f"No results file of renorm compare ({PATTERN}) in {places}. Give the folder or the "
            "file that renorm compare wrote."
        )
    return Found(tuple(stores), tuple(skipped))


def merge(sources: Iterable[tuple[str, Mapping[Specification, Record]]]) -> Merged:
    """One record a specification: the last that did not fail, or the last failure.

    Args:
        sources: name of a store and its records, the stores in order.
    """
    kept: dict[Specification, tuple[str, Record]] = {}
    conflicts = []
    for origin, records in sources:
        for one, record in records.items():
            before = kept.get(one)
            if before is not None and record.error and not before[1].error:
                continue
            if before is not None and _disagree(before[1], record):
                conflicts.append(Conflict(one, before[1], record, (before[0], origin)))
            kept[one] = (origin, record)
    return Merged(tuple(record for _, record in kept.values()), tuple(conflicts))


def groups(records: Iterable[Record]) -> tuple[Group, ...]:
    """The comparisons that records make: those that share all but normalizer, condition, seed, lr.

    Where a normalizer has several learning rates with one seed, the runs at the rates that a
    search chose are one comparison, and the others one for each learning rate.

    Args:
        records: in any order.
    """
    settings: dict[tuple, list[Record]] = {}
    for record in records:
        settings.setdefault(setting(record.specification), []).append(record)
    found = []
    for _, ones in sorted(settings.items(), key=lambda item: item[0]):
        sweep = [one for one in ones if one.specification.split == "validation"]
        runs = sorted((one for one in ones if one.specification.split == "test"), key=_order)
        for part in _apart(runs, sweep):
            wanted = tuple(one.specification for one in part)
            found.append(Group(wanted, (*part, *sorted(sweep, key=_order))))
    return tuple(found)


def describe(wanted: Sequence[Specification]) -> str:
    """What runs share, in a line."""
    one = wanted[0]
    parts = [
        one.task,
        one.model,
        f"{one.steps} steps",
        f"batches of {one.batch_size}",
        f"groups of {one.group_size}",
    ]
    if one.ranks > 1:
        parts.append(f"{one.ranks} ranks")
    rates = {run.lr for run in wanted}
    if len(rates) == 1:
        parts.append(f"lr {one.lr:g}")
    return ", ".join(part for part in parts if part)


def setting(one: Specification) -> tuple:
    """What all runs of a comparison share: all but normalizer, condition, seed, lr and split."""
    return (
        one.task,
        one.source,
        one.model,
        one.steps,
        one.batch_size,
        one.group_size,
        one.ranks,
        one.recipe,
    )


def _is_store(file: Path) -> bool:
    """Whether the first line of a file is a record, of whatever schema, or the torn start of one.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            line = opened.readline()
    except OSError as error:
        raise RecordError(f"The file {file} cannot be read: {error.strerror}.") from error
    try:
        content = json.loads(line)
    except ValueError:
        return line.startswith(b'{"schema": ') and not line.endswith(b"\n")
    return isinstance(content, dict) and {"schema", "specification"} <= content.keys()


def _disagree(before: Record, after: Record) -> bool:
    """Whether two runs that did not fail came to different ends."""
    if before.error or after.error:
        return False
    return (before.score, before.diverged_at) != (after.score, after.diverged_at)


def _outcome(record: Record) -> str:
    if record.score is None:
        return f"diverged at step {record.diverged_at}"
    return f"{record.metric} {record.score:.6g}"


def _order(record: Record) -> tuple:
    """A fixed order of records: batch norm first, as the baseline, then batch renorm."""
    one = record.specification
    first = ("batch_norm", "batch_renorm")
    rank = first.index(one.normalizer) if one.normalizer in first else len(first)
    iid_first = one.condition != "iid"
    return iid_first, one.condition, rank, one.normalizer, one.seed, one.lr


def _apart(runs: Sequence[Record], sweep: Sequence[Record]) -> list[list[Record]]:
    """The runs as one list, or as several where a normalizer has two learning rates with a seed."""
    if not runs:
        return []
    specifications = [one.specification for one in runs]
    places = {(one.condition, one.normalizer, one.seed) for one in specifications}
    if len(places) == len(runs):
        return [list(runs)]
    best = chosen_rates(sweep)
    chosen: list[Record] = []
    by_rate: dict[float, list[Record]] = {}
    for record in runs:
        one = record.specification
        at_best = best.get((one.normalizer, one.condition)) == one.lr
        (chosen if at_best else by_rate.setdefault(one.lr, [])).append(record)
    rest = [by_rate[lr] for lr in sorted(by_rate)]
    return [chosen, *rest] if chosen else rest
