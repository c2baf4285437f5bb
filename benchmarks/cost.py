"""Cost of a training step of each layer, as a ratio to nn.BatchNorm in the same run.

    python benchmarks/cost.py [--repeats 30] [--json results.jsonl]

The contract's forward and gradient checks run first; a layer that fails them is not timed. The
providers take turns, so that a change of the machine's speed meets all of them alike. Ratios are
of medians, and of minima.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from contract import checks
from support.cases import CASES, Case, inputs
from support.subjects import ATEN, BATCH_NORM, COMPOSITE, CPU, Subject, fill, step

PROVIDERS = [s for s in (BATCH_NORM, CPU, ATEN, COMPOSITE) if s.missing is None]
TIMED = [
    Case("RL 32x16", (32, 16)),
    Case("RL 256x256", (256, 256)),
    Case("4x64x56x56", (4, 64, 56, 56)),
    Case("32x64x56x56", (32, 64, 56, 56)),
    Case("32x256x14x14", (32, 256, 14, 14)),
    Case("8x512x7x7", (8, 512, 7, 7)),
    Case("32x64x56x56 channels_last", (32, 64, 56, 56), layout="channels_last"),
    Case("32x256x14x14 channels_last", (32, 256, 14, 14), layout="channels_last"),
    Case("4x64x56x56 bfloat16", (4, 64, 56, 56), torch.bfloat16, parameter_dtype=torch.float32),
    Case("2x16x32x32x32", (2, 16, 32, 32, 32)),
]


def gate(subject: Subject) -> None:
    """Raise unless the subject passes forward and gradient checks on every case it takes."""
    for check in (checks.forward_matches_the_reference, checks.gradients_match_the_reference):
        for case in CASES:
            if subject.renormalizes and subject.takes(case):
                check(subject, case)


def timed(providers: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call of each provider, in turns after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for turn in range(repeats + 1):
        for name, run in providers.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(case: Case, repeats: int) -> list[dict]:
    """One record a provider for this case."""
    t = inputs(case)
    runs = {}
    for subject in PROVIDERS:
        layer = fill(subject.build(case), t)
        runs[subject.id] = lambda layer=layer: step(layer, t)
    seconds = timed(runs, repeats)
    base = seconds[BATCH_NORM.id]
    return [
        {
            "schema": 1,
            "case": case.id,
            "provider": name,
            "median_ms": 1e3 * statistics.median(own),
            "min_ms": 1e3 * min(own),
            "median_ratio": statistics.median(own) / statistics.median(base),
            "min_ratio": min(own) / min(base),
            "repeats": repeats,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        for name, own in seconds.items()
    ]


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="append records to this file")
    arguments = parser.parse_args()
    for subject in PROVIDERS:
        gate(subject)
    table = Table("forward + backward", "layer", title=f"torch {torch.__version__}")
    for heading in ("median ms", "ratio", "ratio of minima"):
        table.add_column(heading, justify="right")
    for case in track(TIMED, description="timing"):
        for record in measure(case, arguments.repeats):
            figures = (record["median_ms"], record["median_ratio"], record["min_ratio"])
            table.add_row(case.id, record["provider"], *(f"{figure:.2f}" for figure in figures))
            if arguments.json is not None:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
