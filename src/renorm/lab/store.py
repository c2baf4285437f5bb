"""Records on disk: JSON lines, appended one by one, safe against a crash and a second writer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from renorm.errors import ArgumentError, RecordError
from renorm.report.records import Record, Specification, from_line, to_line

START = b'{"schema": '


@dataclass(frozen=True)
class Store:
    """An append-only file of records.

    A last line that has no newline, begins like a record and is none was torn by a crash: its
    run counts as missing, and the next record is written over it. Any other line that is no
    record is refused, so a file of another kind is never written to.

    One process writes at a time: a hidden file beside it, ``.NAME.lock``, is locked meanwhile. The
    operating system lets go of the lock when the process ends, however it ends; the file stays.
    Of a symbolic link it lies beside the file itself, so that it is one whatever the name.

    Args:
        path: the file; its folder must be there.

    Raises:
        ArgumentError: the path names no file, such as ``.``.
    """

    path: Path
    _lock: FileLock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.path.name:
            raise ArgumentError(
                f"The results file needs a name, got {str(self.path)!r}. Give a file, such as "
                f"{self.path / 'compare.jsonl'}."
            )
        file = Path(os.path.realpath(self.path))
        object.__setattr__(self, "_lock", FileLock(file.with_name(f".{file.name}.lock")))

    def read(self) -> tuple[dict[Specification, Record], str | None]:
        """All records by specification, the last of each, and a warning about a torn last line.

        No file is no records.

        Raises:
            RecordError: a line that is no record, with its number; or the file cannot be read.
        """
        try:
            if self.path.is_char_device() or self.path.is_fifo():  # it may have no end
                raise RecordError(f"{self.path} is a device or a pipe. Give a results file.")
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
                    "run counts as missing."
                )
            else:
                found.append(last)
        return {record.specification: record for record in found}, warning

    def append(self, record: Record) -> None:
        """Write one line and have it on the disk before returning.

        A line that could not be written whole, because the disk is full, is taken back.

        Raises:
            RecordError: the file cannot be written, ends in something that is no record, or
                another process is writing to it.
        """
        with self._locked(wait=10.0):
            try:
                with self.path.open("a+b", buffering=0) as file:
                    content = self._mend(file) + to_line(record).encode() + b"\n"
                    self._write(file, content)
            except OSError as error:
                raise self._unusable(error) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer inside; the file is made if need be.

        Raises:
            RecordError: another process is writing to it, or it cannot be written.
        """
        with self._locked(wait=0.0):
            yield

    @contextmanager
    def _locked(self, wait: float) -> Iterator[None]:
        try:
            with self.path.open("ab"):  # before the lock, which would make folders that are missing
                pass
            self._lock.acquire(timeout=wait)
        except Timeout as error:
            raise RecordError(
                f"Another process is writing to {self.path}. Wait until it has ended, or give "
                "another file; renorm report merges them."
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            self._lock.release()

    @staticmethod
    def _write(file: BinaryIO, content: bytes) -> None:
        end = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise

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
