"""``renorm report``: page and tables again, from the results files alone."""

import shlex
from pathlib import Path

from rich.console import Console

from renorm.cli import DONE, SOME_FAILED
from renorm.lab.conditions import CONDITIONS
from renorm.lab.store import Store
from renorm.report import console, flat, merging, page, scalars
from renorm.report.comparison import Comparison, compare
from renorm.report.merging import Group, Merged


def report(
    *places: Path,
    out: Path = Path("report.html"),
    csv: Path | None = None,
    tensorboard: Path | None = None,
) -> int:
    """Show what is in results files: tables here, charts on one page that needs no network.

    Files of several machines are merged: of a run that was done twice, the last that did not fail
    counts, and it is told where the two differ. Runs that share task, net, steps and sizes are one
    comparison; of several comparisons each has a table and a page of its own. Nothing is trained.

    To begin with:

    - `renorm report .`
    - `renorm report laptop.jsonl server.jsonl --out page.html --csv runs.csv`

    Parameters
    ----------
    places
        Results files that renorm compare wrote, or folders to be searched for them.
    out
        The page; with several comparisons each has its number before the ending.
    csv
        Write all runs to this file, one a row.
    tensorboard
        Write curves and corrections to this folder as TensorBoard scalars.
    """
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    found = merging.find(places or (Path("."),))
    for path in found.skipped:
        messages.print(f"Left aside, as it holds no records of renorm compare: {path}")
    merged = _read(found.stores, messages)
    groups = merging.groups(merged.records)
    shown = [_show(group) for group in groups]
    command = shlex.join(["renorm", "report", *_arguments(places, out)])
    for path, comparison, group in zip(_paths(out, len(groups)), shown, groups, strict=True):
        page.write(path, comparison, group.records, _about(group), command)
        messages.print(f"Page: {path} ({group.title})")
    if not groups:
        messages.print("There are runs of a search for learning rates alone, and nothing to show.")
    if csv is not None:
        flat.write(csv, merged.records)
        messages.print(f"Runs: {csv}")
    if tensorboard is not None:
        count = scalars.write(tensorboard, merged.records)
        messages.print(f"Scalars of {count} runs: {tensorboard}")
    return DONE if all(one.complete for one in shown) else SOME_FAILED


def _read(stores: tuple[Path, ...], messages: Console) -> Merged:
    sources = []
    for path in stores:
        records, warning = Store(path).read()
        if warning:
            messages.print(warning)
        sources.append((str(path), records))
    merged = merging.merge(sources)
    for conflict in merged.conflicts:
        messages.print(f"Two results of one run: {conflict}")
    return merged


def _show(group: Group) -> Comparison:
    comparison = compare(group.wanted, group.records)
    out = Console()
    out.print(group.title, style="bold", highlight=False, markup=False)
    out.print()
    console.show(comparison, out, _about(group))
    out.print()
    return comparison


def _about(group: Group) -> dict[str, str]:
    """The conditions of a group in a line each, those that this version knows."""
    one = group.wanted[0]
    sizes = {"batch": one.batch_size, "group": one.group_size}
    names = dict.fromkeys(wanted.condition for wanted in group.wanted)
    return {name: CONDITIONS[name].about.format(**sizes) for name in names if name in CONDITIONS}


def _paths(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{place + 1}{out.suffix}") for place in range(count)]


def _arguments(places: tuple[Path, ...], out: Path) -> list[str]:
    return [*map(str, places or (Path("."),)), "--out", str(out)]
