"""Runs on a Ray cluster: every machine of it trains, this process alone keeps the records."""

import os
import tempfile
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from renorm.environment import describe
from renorm.errors import ArgumentError, MissingExtraError
from renorm.lab.pool import Site, attempt
from renorm.lab.tasks.registry import file_of
from renorm.report.records import Record, Specification

RETRIES = 3
LOCAL = "local"
USAGE = "RAY_USAGE_STATS_ENABLED"


@contextmanager
def joined(address: str, workers: int | None = None) -> Iterator["Cluster"]:
    """A cluster to do runs on, left at the end; one that was started here is shut down.

    Every machine needs this version of renorm, and the data sets in the same folder. A user's own
    task may be a file, which is sent along, or a module that all machines can import.

    Args:
        address: of the cluster; ``auto`` for the one that this machine belongs to, ``local`` for
            a new one of this machine alone.
        workers: runs at a time on a new one; None for one a CPU.

    Raises:
        MissingExtraError: ray is not installed.
        ArgumentError: there is no cluster at the address.
    """
    ray = _library()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options |= {"num_cpus": workers, "include_dashboard": False}
    try:
        with _no_usage_statistics():
            ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            f"The Ray cluster at {address!r} cannot be joined: {error} Start one with ray start "
            f"--head, or give {LOCAL!r} for one of this machine alone."
        ) from error
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined.

    Args:
        ray: the library, initialized.
    """

    ray: Any

    @property
    def slots(self) -> int:
        """How many runs are done at a time: one a CPU of the cluster as it is now."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def run_all(
        self, specifications: Sequence[Specification], site: Site
    ) -> Generator[Record, None, None]:
        """Do the runs and yield what becomes of each, in the order they end; as ``pool.run_all``.

        A run whose process or machine dies is done again, at most ``RETRIES`` times; after that,
        and where it raises an error, the record has the traceback. Closing the iterator, or an
        exception such as KeyboardInterrupt while it waits, ends the runs under way.
        """
        ray = self.ray
        errand = ray.remote(num_cpus=1, max_retries=RETRIES)(carry_out)
        files = {task: file_of(task) for task in {one.task for one in specifications}}
        waiting: dict[Any, Specification] = {}
        try:
            for one in specifications:
                waiting[errand.remote(one, site.data, files[one.task])] = one
            while waiting:
                (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
                yield self._outcome(ended, waiting.pop(ended))
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, specification: Specification) -> Record:
        try:
            return self.ray.get(reference)
        except Exception:  # its processes died, or its answer could not be sent
            return Record(specification, error=traceback.format_exc(), environment=describe())


def carry_out(
    specification: Specification, data: Path | None, file: tuple[str, bytes] | None
) -> Record:
    """One run, on a machine of the cluster.

    Args:
        specification: what to run.
        data: folder of the data sets; None for the default.
        file: name and content of the file of a user's own task; None for any other.
    """
    if file is None:
        return attempt(specification, data)
    name = specification.task.rpartition(":")[2]
    record = attempt(replace(specification, task=f"{_placed(*file)}:{name}"), data)
    return replace(record, specification=specification)


@cache
def _placed(name: str, content: bytes) -> Path:
    """The path of a file of that name and content, made once in a process."""
    path = Path(tempfile.mkdtemp(prefix="renorm-"), name)
    path.write_bytes(content)
    return path


def _library() -> ModuleType:
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            'Runs on a cluster need ray, which is not installed. Run: pip install "renorm[ray]"'
        ) from error


@contextmanager
def _no_usage_statistics() -> Iterator[None]:
    """Have a cluster that is started inside send no usage statistics, unless told to before."""
    if USAGE in os.environ:
        yield
        return
    os.environ[USAGE] = "0"
    try:
        yield
    finally:
        del os.environ[USAGE]
