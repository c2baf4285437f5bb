"""Records as TensorBoard scalars: a folder a run, the curve and the corrections over steps."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from renorm.errors import MissingExtraError, RecordError
from renorm.report.records import Corrections, Record, Specification

QUANTILES = ("05", "25", "50", "75", "95")


def write(folder: Path, records: Iterable[Record]) -> int:
    """Write the scalars of all runs that have any, and return how many runs these are.

    Args:
        folder: made if need be; each run gets a folder of its own below it.
        records: any.

    Raises:
        MissingExtraError: tensorboard is not installed.
        RecordError: the folder cannot be written, or holds these runs already: TensorBoard would
            draw both.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise MissingExtraError(
            "Scalars for TensorBoard need tensorboard, which is not installed. Run: "
            'pip install "renorm[tensorboard]"'
        ) from error
    runs = [(folder / name(one.specification), one) for one in records if one.curve]
    for place, _ in runs:
        if place.exists():
            raise RecordError(
                f"The folder {place} is there already, and TensorBoard would draw its curves "
                "beside the new ones. Give an empty folder."
            )
    try:
        for place, record in runs:
            place.mkdir(parents=True)
            writer = Writer(str(place))
            for tag, step, value in scalars(record):
                writer.add_scalar(tag, value, step)
            writer.close()
    except OSError as error:
        raise RecordError(
            f"The folder {folder} cannot be written: {error.strerror}. Give another one."
        ) from error
    return len(runs)


def scalars(record: Record) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of a run, tag by tag."""
    for step, score in record.curve:
        yield record.metric, step, score
    for one in record.corrections:
        for tag, value in _of(one):
            yield f"corrections/{tag}", one.step, value


def name(one: Specification) -> str:
    """A folder for a run that says what it is and is like no other's.

    >>> name(Specification("a.py:Mine", "", "batch_norm", "iid", 0, 100, 0.1, 32, 4))
    'a.py_Mine/iid/batch_norm/seed0_lr0.1_c9c9a63b'
    """
    parts = (one.task, one.condition, one.normalizer, f"seed{one.seed}_lr{one.lr:g}_{one.key[:8]}")
    return "/".join(re.sub(r"[^\w.=+-]|^\.+", "_", part) for part in parts)


def _of(one: Corrections) -> Iterator[tuple[str, float]]:
    yield "r_max", one.r_max
    yield "d_max", one.d_max
    for letter, values in (("r", one.r), ("d", one.d)):
        for quantile, value in zip(QUANTILES, values, strict=True):
            yield f"{letter}_{quantile}", value
    yield "clipped_r", one.clipped_r
    yield "clipped_d", one.clipped_d
