"""Records on disk: JSON lines, appended one by one, safe against a crash in mid-line."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from renorm.errors import RecordError
from renorm.report.records import Record, Specification, from_line, to_line

START = b'{"schema": '


@dataclass(frozen=True)
class Store:
    """An append-only file of records.

    A last line that has no newline, begins like a record and is none was torn by a crash: its
    run counts as missing, and the next record is written over it. Any other line that is no
    record is refused, so a file of another kind is never written to.

    Args:
        path: the file; its folder must be there.
    """

    path: Path

    def read(self) -> tuple[dict[Specification, Record], str | None]:
        """All records by specification, the last of each, and a warning about a torn last line.

        No file is no records.

        Raises:
            RecordError: a line that is no record, with its number; or the file cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}, None
        except OSError as error:
            raise self._unusable(error) from error
        *lines, tail = content.split(b"\n")
        found = [self._parse(number, line) for number, line in enumerate(lines, start=1)]
        warning = None
        if tail:
            last = self._parse_tail(len(lines) + 1, tail)
            if last is None:
                warning = (
                    f"{self.path}, line {len(lines) + 1} was cut off while it was written; its "
                    "run is done again."
                )
            else:
                found.append(last)
        return {record.specification: record for record in found}, warning

    def append(self, record: Record) -> None:
        """Write one line and have it on the disk before returning.

        Raises:
            RecordError: the file cannot be written, or ends in something that is no record.
        """
        try:
            with self.path.open("a+b") as file:
                file.write(self._mend(file) + to_line(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error

    def check_writable(self) -> None:
        """Find out before the work that the file cannot be written; it is made if need be.

        Raises:
            RecordError: it cannot.
        """
        try:
            with self.path.open("ab"):
                pass
        except OSError as error:
            raise self._unusable(error) from error

    def _mend(self, file: BinaryIO) -> bytes:
        """Cut off a torn last line; what must be written before the next line."""
        file.seek(0)
        *lines, tail = file.read().split(b"\n")
        if not tail:
            return b""
        if self._parse_tail(len(lines) + 1, tail) is None:
            file.truncate(file.tell() - len(tail))
            return b""
        return b"\n"

    def _parse_tail(self, number: int, tail: bytes) -> Record | None:
        """The record in a last line without newline; None if the line was torn."""
        try:
            return self._parse(number, tail)
        except RecordError:
            if tail.startswith(START) or START.startswith(tail):
                return None
            raise

    def _parse(self, number: int, line: bytes) -> Record:
        try:
            return from_line(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
            shown = line[:60].decode(errors="replace")
            raise RecordError(
                f"{self.path}, line {number} is no record of renorm: {error}. It begins with "
                f"{shown!r}. Remove the line, or give another file."
            ) from error

    def _unusable(self, error: OSError) -> RecordError:
        return RecordError(
            f"The results file {self.path} cannot be used: {error.strerror}. Give another file, "
            "in a folder that is there."
        )
