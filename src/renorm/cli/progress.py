"""How far a grid or a measurement is: a bar on a terminal, a line a run or so elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console

from renorm.lab.experiment import Progress
from renorm.report.records import Record


class Bar:
    """A bar on a terminal, a line a step elsewhere; a context manager.

    Args:
        console: where to, usually on stderr.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = bars.Progress(
            bars.BarColumn(20),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[left]}"),
            bars.TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, done: int, total: int | None, what: str, left: str = "") -> None:
        """Show how many of all are done, if it is known how many, and what is, or was, at work."""
        self._bar.update(self._task, completed=done, total=total, left=left, description=what)
        if not self.console.is_terminal:
            of = "" if total is None else f" of {total}"
            line = f"{done}{of}: {what}" + (f" ({left})" if left else "")
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Display(Bar):
    """Shows each ``Progress`` of a grid of training runs that it is called with."""

    def __call__(self, now: Progress) -> None:
        """Show where the grid stands."""
        if now.latest is not None:
            self.show(now.done, now.total, describe(now.latest), time_left(now.seconds_left))
        elif self.console.is_terminal:
            self.show(now.done, now.total, "starting", time_left(now.seconds_left))


class Stages(Bar):
    """Shows how far a measurement is that has several stages, each of so many steps.

    On a terminal every step; elsewhere the first and the last of a stage.

    Args:
        console: where to, usually on stderr.
        clock: seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self._clock = clock
        self._stage, self._since = "", 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that a step of a stage is done."""
        begins = stage != self._stage
        if begins:
            self._stage, self._since = stage, self._clock()
        if self.console.is_terminal or begins or done == total:
            self.show(done, total, stage, self._left(done, total))

    def _left(self, done: int, total: int | None) -> str:
        """Of this stage, by the steps after the first, which often waits for something."""
        if total is None:
            return ""
        if done >= total:
            return time_left(0)
        pace = (self._clock() - self._since) / (done - 1) if done > 1 else None
        return time_left(None if pace is None else pace * (total - done))


def describe(record: Record) -> str:
    """What became of a run, in a few words."""
    if record.error is not None:
        return f"{record.specification}: failed"
    if record.score is None:
        return f"{record.specification}: diverged at step {record.diverged_at}"
    score = f"{100 * record.score:.1f} %" if record.percent else f"{record.score:.4g}"
    return f"{record.specification}: {score}"


def time_left(seconds: float | None) -> str:
    """An estimate in words.

    >>> time_left(None), time_left(8.2), time_left(95)
    ('time left: measuring', '9 s left', '1 min 35 s left')
    """
    if seconds is None:
        return "time left: measuring"
    whole = -int(-seconds // 1)
    if whole < 60:
        return f"{whole} s left"
    return f"{whole // 60} min {whole % 60} s left"
