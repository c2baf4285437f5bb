"""Runs that the processes of a torchrun launch share: rank 0 says which, all of them train it.

Every run has a process group of its own. What the ranks say about runs goes through the store
they met at, so that a rank that failed is heard even where the others wait in the group for it.
"""

import os
import pickle
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from renorm.environment import describe
from renorm.lab.pool import Site
from renorm.lab.ranks import CPU, Ranks
from renorm.lab.training import run
from renorm.report.records import Record, Specification

FOREVER = timedelta(days=365)  # how long the others train, and whether they live, torchrun watches
FAREWELL = timedelta(seconds=2)


def world() -> int:
    """How many processes torchrun started; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def follows() -> bool:
    """Whether another process of the launch, rank 0, says what to run."""
    return world() > 1 and int(os.environ["RANK"]) > 0


@contextmanager
def led() -> Iterator["Launch"]:
    """In rank 0: the launch, whose other processes are let go at the end."""
    launch = Launch()
    try:
        yield launch
    finally:
        launch.let_go()


def follow() -> None:
    """In the other ranks: take part in every run until rank 0 has no more."""
    Launch().follow()


class Launch:
    """The processes of a launch, and this one's place among them, as torchrun says in os.environ.

    Each trains on its own CUDA device, by nccl, where there are enough of them on its machine,
    else on the CPU, by gloo.
    """

    def __init__(self) -> None:
        self.store, rank, world = next(iter(rendezvous("env://")))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device, self.backend = CPU, "gloo"
        if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", str(world))):
            device, self.backend = torch.device("cuda", local), "nccl"
            torch.cuda.set_device(device)
        self.ranks = Ranks(rank, world, device)
        self._turn = 0

    def run_all(
        self, specifications: Sequence[Specification], site: Site
    ) -> Generator[Record, None, None]:
        """In rank 0: the runs one after another, each by all ranks; as ``pool.run_all``.

        An exception in any rank ends the run in all of them: the record has the traceback of each,
        that of the first to fail last. The death of a process is torchrun's to see, which ends the
        others; the same command then does what is missing. With nccl, ranks that wait for one that
        has failed are ended by torch's watchdog instead, and torchrun ends all.

        Times in a record are those of rank 0.
        """
        for specification in specifications:
            self._turn += 1
            self._say((specification, site.data))
            record = self._take_part(specification, site.data)
            failures = self._failures()
            if failures or record is None:
                yield Record(specification, error="\n".join(failures), environment=describe())
            else:
                shared = {"ranks": f"{self.ranks.world}, {self.backend}"}
                yield replace(record, environment=record.environment | shared)

    def follow(self) -> None:
        """In another rank: take part in every run until rank 0 has no more."""
        while True:
            self._turn += 1
            asked = self._hear()
            if asked is None:
                return
            self._take_part(*asked)

    def let_go(self) -> None:
        """In rank 0: end ``follow`` in the others."""
        self._turn += 1
        self._say(None)
        with suppress(dist.DistStoreError):  # those that were interrupted have gone already
            self.store.wait(self._ends(), FAREWELL)

    def _say(self, asked: tuple[Specification, Path | None] | None) -> None:
        self.store.set(f"renorm/{self._turn}/run", pickle.dumps(asked).hex())
        if asked is None:
            self.store.set(self._ends()[0], "")

    def _hear(self) -> tuple[Specification, Path | None] | None:
        key = f"renorm/{self._turn}/run"
        self.store.wait([key], FOREVER)
        asked = pickle.loads(bytes.fromhex(self.store.get(key).decode()))
        if asked is None:  # the store may be rank 0's own: it stays until all have heard
            self.store.set(self._ends()[self.ranks.rank], "")
        return asked

    def _take_part(self, specification: Specification, data: Path | None) -> Record | None:
        """Do this rank's part of a run; None where it failed, with the traceback in the store."""
        record, said, rank, world = None, "", self.ranks.rank, self.ranks.world
        try:
            group = PrefixStore(f"renorm/{self._turn}/group", self.store)
            dist.init_process_group(self.backend, store=group, rank=rank, world_size=world)
            record = run(specification, data, self.ranks)
        except (Exception, SystemExit):
            place = self.store.add(f"renorm/{self._turn}/failed", 1)
            said = f"{place} Rank {rank} of {world}:\n{traceback.format_exc()}"
        finally:
            if dist.is_initialized():  # an exchange that others wait in fails there at once
                dist.destroy_process_group()
        self.store.set(self._ends()[rank], said)
        return record

    def _failures(self) -> list[str]:
        """What went wrong in this turn, the last to fail first."""
        self.store.wait(self._ends(), FOREVER)
        said = [self.store.get(key).decode() for key in self._ends()]
        placed = [text.split(" ", 1) for text in said if text]
        return [text for _, text in sorted(placed, key=lambda one: -int(one[0]))]

    def _ends(self) -> list[str]:
        """Where each rank says that its part of this turn is over."""
        return [f"renorm/{self._turn}/end/{rank}" for rank in range(self.ranks.world)]
