"""Processes of one gloo group that live for one function, and may die in it."""

import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from support.ranks import prepared

_HANGS = 60  # seconds without an answer: a test must fail, not stop the others


class End(NamedTuple):
    """How the life of a process ended."""

    value: Any  # what the function returned
    error: str  # the traceback of what it raised; empty if nothing
    exitcode: int  # 0, or minus the signal that ended it


def live(
    function: Callable[..., Any],
    *args: Any,
    world: int = 2,
    timeout: float = 60,
    grouped: bool = True,
) -> list[End]:
    """``function(rank, *args)`` in new processes: the end of each.

    Args:
        function: at the top level of a module.
        world: how many processes.
        timeout: of the collectives, in seconds.
        grouped: whether they are the default process group, with gloo.
    """
    context = prepared()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store") if grouped else None
        processes, pipes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            arguments = (rank, world, store, timeout, theirs, pickle.dumps((function, args)))
            process = context.Process(target=_live, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        answers = _answers(pipes)
        for pipe in pipes:  # nobody leaves before all are done
            pipe.close()
        for process, answer in zip(processes, answers, strict=True):
            if answer is None:
                process.kill()
            process.join()
    return [
        End(*(answer or (None, f"no answer in {_HANGS} s")), exitcode=process.exitcode or 0)
        for process, answer in zip(processes, answers, strict=True)
    ]


def die() -> NoReturn:
    """End this process as the kernel does when memory runs out: nothing more is done in it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process has no next line")


def _answers(pipes: list[Any]) -> list[tuple[Any, str] | None]:
    answers: list[tuple[Any, str] | None] = [None] * len(pipes)
    waiting = set(pipes)
    while waiting:
        ready: list[Any] = wait(waiting, _HANGS)
        if not ready:
            break
        for pipe in ready:
            try:
                answers[pipes.index(pipe)] = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                answers[pipes.index(pipe)] = None, "the process has died"
            waiting.discard(pipe)
    return answers


def _live(
    rank: int, world: int, store: str | None, timeout: float, pipe: Any, work: bytes
) -> NoReturn:
    os.environ.pop("WORLD_SIZE", None)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        if store is not None:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=timeout),
            )
        function, args = pickle.loads(work)
        answer = function(rank, *args), ""
    except Exception:
        answer = None, traceback.format_exc()
    pipe.send_bytes(pickle.dumps(answer))
    with suppress(EOFError, OSError):
        pipe.recv_bytes()  # the others may still need this one
    os._exit(0)  # what waits for processes that have died is not waited for
