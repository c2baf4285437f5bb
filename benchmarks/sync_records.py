"""What ``sync_step.py`` keeps of a run: one line of JSON a provider, latency and process count."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sync_latency import KINDS
from sync_worker import BASELINE, PROVIDERS, Outcome, Plan, channels, resnet

from renorm.errors import RecordError

SCHEMA, SUITE = 1, "sync_step"


@dataclass(frozen=True)
class Row:
    """The training step of one provider.

    Args:
        processes: of the group, on one machine.
        latency_ms: that each collective takes at least.
        provider, baseline: who, and whom ratios refer to at the same latency.
        median_ms, min_ms: of a step, over blocks; a block is as slow as its slowest process.
        median_ratio, min_ratio: of medians and of minima.
        collectives, bytes: of a step and process, by kind.
        exchange_ms: the median of a small blocking sum with nothing between.
        blocks, steps: that were timed, and steps in each.
        settings: of the net and the data.
        cores: that the processes share.
        environment: versions, platform and commit.
    """

    processes: int
    latency_ms: float
    provider: str
    baseline: str
    median_ms: float
    min_ms: float
    median_ratio: float
    min_ratio: float
    collectives: dict[str, int]
    bytes: dict[str, int]
    exchange_ms: float
    blocks: int
    steps: int
    settings: dict[str, int]
    cores: int
    environment: dict[str, str | None]

    @property
    def steady(self) -> bool:
        """Whether the machine had time for this, as in the records of ``renorm bench``."""
        return self.median_ms <= 2 * self.min_ms


def rows(
    plan: Plan, outcomes: Sequence[Outcome], cores: int, environment: Mapping[str, str | None]
) -> list[Row]:
    """What the processes of one group found, together."""
    first = outcomes[0]
    slowest = {
        key: [max(blocks) for blocks in zip(*(o.milliseconds[key] for o in outcomes), strict=True)]
        for key in first.milliseconds
    }
    median = {key: statistics.median(blocks) for key, blocks in slowest.items()}
    minimum = {key: min(blocks) for key, blocks in slowest.items()}
    sizes = channels(resnet(plan.blocks_a_stage))
    settings = {
        "norm_layers": len(sizes),
        "channels": sum(sizes),
        "parameters": sum(p.numel() for p in resnet(plan.blocks_a_stage).parameters()),
        "batch": plan.batch,
        "side": plan.side,
        "threads": 1,
    }
    return [
        Row(
            processes=plan.processes,
            latency_ms=latency,
            provider=provider,
            baseline=BASELINE,
            median_ms=median[provider, latency],
            min_ms=minimum[provider, latency],
            median_ratio=median[provider, latency] / median[BASELINE, latency],
            min_ratio=minimum[provider, latency] / minimum[BASELINE, latency],
            collectives=_a_step(first.traffic[provider].collectives, plan.steps),
            bytes=_a_step(first.traffic[provider].bytes, plan.steps),
            exchange_ms=statistics.median(first.exchange[latency]),
            blocks=plan.blocks,
            steps=plan.steps,
            settings=settings,
            cores=cores,
            environment=dict(environment),
        )
        for latency in plan.latencies
        for provider in PROVIDERS
    ]


def _a_step(counts: Mapping[str, int], steps: int) -> dict[str, int]:
    """What each step does; all of them do the same."""
    assert all(count % steps == 0 for count in counts.values())
    return {kind: counts.get(kind, 0) // steps for kind in KINDS}


def append(path: Path, found: Iterable[Row]) -> None:
    """Write the rows behind those that are there.

    Raises:
        RecordError: the file cannot be written.
    """
    lines = [json.dumps({"schema": SCHEMA, "suite": SUITE, **asdict(row)}) for row in found]
    try:
        with path.open("a") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be used: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error


def read(path: Path) -> list[Row]:
    """The rows of a file, the latest of each setting.

    Raises:
        RecordError: it cannot be read, or holds something else.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be read: {error.strerror}. Write it by "
            f"python benchmarks/sync_step.py --json {path}"
        ) from error
    found = [_row(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]
    return list({(r.processes, r.latency_ms, r.provider): r for r in found}.values())


def _row(line: str, where: str) -> Row:
    try:
        content: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where} is not JSON ({error}).") from error
    names = {"schema", "suite", *(entry.name for entry in fields(Row))}
    if not isinstance(content, dict) or content.keys() != names:
        raise RecordError(f"{where} is no record of {SUITE}, schema {SCHEMA}.")
    schema, suite = content.pop("schema"), content.pop("suite")
    if (schema, suite) != (SCHEMA, SUITE):
        raise RecordError(
            f"{where} is of {suite}, schema {schema}; read are those of {SUITE}, schema {SCHEMA}."
        )
    return Row(**content)
