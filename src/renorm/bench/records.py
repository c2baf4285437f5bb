"""What is kept of a measurement: one line of JSON a provider, shape and direction."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from renorm.errors import RecordError

SCHEMA = 2


@dataclass(frozen=True)
class Record:
    """One provider on one shape in one direction.

    Args:
        suite: name in the registry.
        shape: (N, C, *spatial).
        layout, dtype, device: of the input; the device by its name.
        provider: who.
        kernel: of ours that served; None for others.
        direction: "forward", "backward", "both", or "saved" where memory was counted.
        baseline: the provider that ratios refer to.
        median_ms, min_ms: over the turns.
        median_ratio, min_ratio: of medians and of minima, to the baseline's; the number of
            input-sized tensors where memory was counted.
        turns: how many were taken.
        bytes: what has to move at least.
        gb_per_s: those by the median, in 1e9 bytes a second.
        two_pass_bytes: what moves where no cache holds a channel.
        copy_gb_per_s: of ``Tensor.copy_`` between tensors of that size in the same turns.
        saved_bytes: all that is kept for backward, where memory was counted.
        threads: of torch.
        allocator: whether freed pages stayed with the process.
        environment: versions, platform and commit.
    """

    suite: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    device: str
    provider: str
    direction: str
    baseline: str
    median_ratio: float
    min_ratio: float
    median_ms: float | None = None
    min_ms: float | None = None
    kernel: str | None = None
    turns: int = 0
    bytes: int | None = None
    gb_per_s: float | None = None
    two_pass_bytes: int | None = None
    copy_gb_per_s: float | None = None
    saved_bytes: int | None = None
    threads: int = 0
    allocator: str = ""
    environment: dict[str, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The shape as people write it."""
        return "x".join(map(str, self.shape))

    @property
    def steady(self) -> bool:
        """Whether the machine had time for this: work beside it shows as a median far off.

        On an idle machine medians are up to 1.6 times the minima; two threads that wait for each
        other and for a third party's time slice take a hundred times as long.
        """
        if self.median_ms is None or self.min_ms is None:
            return True
        return self.median_ms <= 2 * self.min_ms

    @property
    def of_copy(self) -> float | None:
        """The share of the copy bandwidth that the least traffic uses."""
        if self.gb_per_s is None or not self.copy_gb_per_s:
            return None
        return self.gb_per_s / self.copy_gb_per_s

    @property
    def of_copy_in_two_passes(self) -> float | None:
        """The same for the traffic of two passes."""
        share = self.of_copy
        if share is None or not self.bytes or self.two_pass_bytes is None:
            return None
        return share * self.two_pass_bytes / self.bytes


def to_line(record: Record) -> str:
    """The record as one line of JSON, without the newline."""
    return json.dumps({"schema": SCHEMA, **asdict(record)}, allow_nan=False)


def from_line(line: str) -> Record:
    """The record that ``to_line`` wrote.

    Raises:
        RecordError: not JSON, another schema, or other entries than a record has.
    """
    try:
        content: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"It is not JSON ({error}).") from error
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise RecordError(f"It is no benchmark record of schema {SCHEMA}.")
    names = {entry.name for entry in fields(Record)}
    if content.keys() != names:
        wrong = ", ".join(sorted(content.keys() ^ names))
        raise RecordError(f"Entries are missing or unknown: {wrong}.")
    return Record(**{**content, "shape": tuple(content["shape"])})


def append(path: Path, record: Record) -> None:
    """Write one more line; the file is made if need be.

    Raises:
        RecordError: it cannot be written.
    """
    _write(path, to_line(record) + "\n")


def check_writable(path: Path) -> None:
    """Find out before the work that the file cannot be written.

    Raises:
        RecordError: it cannot.
    """
    _write(path, "")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be used: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error
