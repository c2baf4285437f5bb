"""Processes that stay up for a whole test session and run functions as ranks of a gloo group."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

WORLD = 4
_HANGS = 120  # seconds without an answer: a test must fail, not stop the others


# importing these takes seconds, forking a process that has them a hundredth of one
_PRELOADED = [
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "renorm",
]


def prepared() -> Any:
    """Starts new processes as forks of one that has imported torch, and has run nothing of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class RankError(AssertionError):
    """A function raised in some rank; has all their tracebacks."""


class Ranks:
    """Some processes of one world, with a group for its first 2, 3 and 4."""

    def __init__(self, world: int = WORLD, timeout: float = 60) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = prepared()
        self.processes, self._pipes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            file = str(Path(self._folder.name) / "store")
            arguments = (rank, world, file, timeout, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)

    def run(self, function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
        """``function(rank, group, *args)`` in the first ``size`` ranks: what each returned.

        Raises:
            RankError: it raised in at least one of them.
        """
        answers = self.try_run(function, *args, size=size)
        failures = [f"rank {i}: {text}" for i, (fine, text) in enumerate(answers) if not fine]
        if failures:
            raise RankError("\n".join(failures))
        return [value for _, value in answers]

    def try_run(
        self, function: Callable[..., Any], *args: Any, size: int = 2
    ) -> list[tuple[bool, Any]]:
        """As ``run``, with (True, what it returned) or (False, traceback) of each rank."""
        for pipe in self._pipes[:size]:
            pipe.send_bytes(pickle.dumps((function, args, size)))
        return [self._answer(pipe) for pipe in self._pipes[:size]]

    def _answer(self, pipe: Any) -> tuple[bool, Any]:
        try:
            if not pipe.poll(_HANGS):
                return False, f"no answer in {_HANGS} s"
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return False, "the process has died"

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self._folder.cleanup()


def _serve(rank: int, world: int, file: str, timeout: float, pipe: Any) -> None:
    # what a test has in its environment is not the ranks'; they are few, so one thread each
    os.environ.pop("WORLD_SIZE", None)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = timedelta(seconds=timeout)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=limit
    )
    groups = {n: dist.new_group(list(range(n)), timeout=limit) for n in range(1, world + 1)}
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            function, args, size = pickle.loads(pipe.recv_bytes())
            torch.manual_seed(0)
            try:
                answer = True, function(rank, groups[size], *args)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send_bytes(pickle.dumps(answer))
