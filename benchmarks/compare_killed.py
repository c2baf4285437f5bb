"""``renorm compare``, killed again and again, against the same left alone.

The command is started, ended by SIGKILL at a random moment, and started again, until it has been
killed as often as asked for; then it may end. The moments are drawn from the time that the
undisturbed grid takes, divided by the kills. The records, and the table but for its times, must be
those of the undisturbed grid: no run lost, none done twice.

    python benchmarks/compare_killed.py
    python benchmarks/compare_killed.py --kills 20 --seed 1 -- --conditions clustered --steps 200
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from renorm.lab.store import Store
from renorm.report import comparison
from renorm.report.records import Record, from_line

GRID = "--normalizers batch_norm batch_renorm group_norm cross_iteration --seeds 3"


def start(out: Path, options: Sequence[str]) -> "subprocess.Popen[str]":
    """The command, on this results file."""
    command = [sys.executable, "-m", "renorm", "compare", "--out", str(out), *options]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def finished(process: "subprocess.Popen[str]") -> str:
    """What it prints until it ends.

    Raises:
        RuntimeError: it does not end with 0.
    """
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"renorm compare ended with {process.returncode}.")
    return printed


def killed(
    out: Path, options: Sequence[str], kills: int, seconds: float, draw: random.Random
) -> str:
    """What the command prints in the end, after so many deaths.

    Args:
        out: results file.
        options: of the command.
        kills: how often it is killed.
        seconds: that it takes undisturbed.
        draw: of the moments.
    """
    for kill in range(1, kills + 1):
        moment = draw.uniform(0, seconds / kills * 1.5)
        process = start(out, options)
        try:
            process.communicate(timeout=moment)
            print(f"kill {kill}: it had ended before {moment:.1f} s")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            content = out.read_bytes() if out.exists() else b""
            torn = "" if content.endswith(b"\n") or not content else ", the last line torn"
            count = content.count(b"\n")
            print(f"kill {kill}: after {moment:.1f} s, {count} records{torn}", flush=True)
    return finished(start(out, options))


def compare(whole: Path, resumed: Path) -> None:
    """Check that both files hold the same runs with the same results, each once.

    Raises:
        RuntimeError: a run is missing, there twice, or other than it should be.
    """
    for path in (whole, resumed):
        lines = path.read_text().splitlines()
        runs = [from_line(line).specification for line in lines]
        if len(set(runs)) != len(runs):
            raise RuntimeError(f"{path} has {len(runs)} lines for {len(set(runs))} runs.")
    one, other = (Store(path).read()[0] for path in (whole, resumed))
    if one != other:
        raise RuntimeError("The records of the resumed grid are not those of the other.")
    tables = [comparison.compare(list(one), map(untimed, runs.values())) for runs in (one, other)]
    if tables[0] != tables[1]:
        raise RuntimeError("The tables differ.")


def untimed(record: Record) -> Record:
    """The record without what a clock gave."""
    return replace(record, step_seconds=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5, help="how often (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("options", nargs="*", help=f"of renorm compare, after -- ({GRID})")
    given = parser.parse_args(arguments)
    options = given.options or GRID.split()
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder, "whole.jsonl"), Path(folder, "resumed.jsonl")
        started = time.monotonic()
        finished(start(whole, options))
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s, {len(Store(whole).read()[0])} records", flush=True)
        printed = killed(resumed, options, given.kills, seconds, random.Random(given.seed))
        compare(whole, resumed)
    print("resumed: the same records, each once, and but for the times the same table:\n")
    print(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
