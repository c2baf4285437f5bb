"""A report on a terminal: a table a suite, with its target and whether it is met."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from renorm.bench.peers import KNOWN
from renorm.bench.records import Record
from renorm.bench.registry import SUITES, Suite, Target
from renorm.bench.session import Report
from renorm.bench.statistics import geometric_mean, judged, verdicts

LEGEND = (
    "ms and ratio: medians over turns, forward and backward together. minima: ratio of minima. "
    "fwd, bwd: ratios of forward and of backward alone. GB/s: what has to move at least, x and y "
    "forward, x, dy and dx backward. copy: that as a share of Tensor.copy_ between tensors of the "
    "same size in the same turns."
)
_GPU_LEGEND = (
    "Times are of events in the stream, the host runs ahead, the L2 cache is not flushed. The "
    "target of the copy bandwidth is for tensors that no cache holds, so that x is read twice "
    "forward, and x and dy twice backward."
)


def show(report: Report, console: Console) -> None:
    """Print every suite, then everything that was not measured and why."""
    for name in report.plan.suites:
        if name in report.records or name in report.absent:
            _show_suite(SUITES[name], report, console)
    console.print(LEGEND, highlight=False)
    if report.plan.device == "cuda":
        console.print(_GPU_LEGEND, highlight=False)
    setting = report.setting
    console.print(
        f"torch {setting.environment['torch']}, {setting.device}, {setting.threads} threads, "
        f"commit {setting.environment['commit'] or 'unknown'}; allocator: {setting.allocator}.",
        highlight=False,
        markup=False,
    )
    for wrong in report.refused:
        console.print(f"not timed: {wrong}", style="bold", highlight=False, markup=False)


def _show_suite(suite: Suite, report: Report, console: Console) -> None:
    records = report.records.get(suite.name, [])
    console.print(f"{suite.name}: {suite.about}", style="bold", highlight=False)
    if records:
        for grid in [_saved(records)] if suite.kind == "memory" else _times(records):
            console.print(grid)
            console.print()
        for line in _judged(suite, records, report.plan.full):
            console.print(f"  {line}", highlight=False, markup=False)
    for reason in report.absent.get(suite.name, []):
        console.print(f"  not measured: {reason}", highlight=False, markup=False)
    for peer, deviation in report.deviations.get(suite.name, {}).items():
        console.print(
            f"  {peer}: first output off by {deviation:.1e} from the paper's formula",
            highlight=False,
            markup=False,
        )
    console.print()


def _grid(first: str, *others: str) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column(first, no_wrap=True)
    for heading in others:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def _times(records: Sequence[Record]) -> list[Table]:
    """A table a provider, which fits into 80 columns."""
    parts = {(r.name, r.provider, r.direction): r for r in records}
    disturbed = _disturbed(records)
    base = {r.name: r for r in _whole(records) if r.provider == r.baseline}
    grids = []
    for provider, own in _by_provider(records).items():
        kernels = " ".join(dict.fromkeys(filter(None, (record.kernel for record in own))))
        asked = provider.endswith(f", {kernels}")
        title = provider if asked or not kernels else f"{provider} ({kernels})"
        grid = _grid(title, own[0].baseline, "ms", "ratio", "minima", "fwd", "bwd", "GB/s", "copy")
        for record in own:
            forward, backward = (
                parts.get((record.name, provider, direction))
                for direction in ("forward", "backward")
            )
            mark = "*" if (provider, record.name) in disturbed else ""
            grid.add_row(
                record.name + mark,
                _milliseconds(base[record.name]),
                _milliseconds(record),
                _number(record.median_ratio, 2),
                _number(record.min_ratio, 2),
                _number(forward and forward.median_ratio, 2),
                _number(backward and backward.median_ratio, 2),
                _number(record.gb_per_s, 1),
                "-" if record.of_copy is None else f"{record.of_copy:.0%}",
            )
        grids.append(grid)
    return grids


def _by_provider(records: Sequence[Record]) -> dict[str, list[Record]]:
    """What was measured of each provider but the baseline, all of a step together."""
    found: dict[str, list[Record]] = {}
    for record in _whole(records):
        if record.provider != record.baseline:
            found.setdefault(record.provider, []).append(record)
    return found


def _milliseconds(record: Record) -> str:
    return _number(record.median_ms, 1 if (record.median_ms or 0) >= 100 else 3)


def _saved(records: Sequence[Record]) -> Table:
    grid = _grid("shape", "provider", "tensors", "MB")
    for record in records:
        megabytes = None if record.saved_bytes is None else record.saved_bytes / 1e6
        grid.add_row(
            record.name,
            record.provider,
            _number(record.median_ratio, 0),
            _number(megabytes, 2),
        )
    return grid


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _whole(records: Sequence[Record]) -> list[Record]:
    """Of each shape and provider the record of all that was timed."""
    directions = {record.direction for record in records}
    whole = "both" if "both" in directions else next(iter(directions))
    return [record for record in records if record.direction == whole]


def _judged(suite: Suite, records: Sequence[Record], full: bool) -> list[str]:
    """The verdicts on each provider, and what is missing for them."""
    disturbed = _disturbed(records)
    lines = [
        f"{provider}: {line}"
        for provider, own in _by_provider(records).items()
        for line in _verdicts(suite, own, {name for who, name in disturbed if who == provider})
    ]
    if disturbed:
        lines.append(
            "* disturbed by other work, the median is above twice the minimum: measure again"
        )
    measured = len({record.shape for record in records})
    if measured < len(suite.shapes):
        lines.append(
            f"{measured} of {len(suite.shapes)} shapes" + ("" if full else "; --full: all")
        )
    return lines


def _disturbed(records: Sequence[Record]) -> set[tuple[str, str]]:
    """Provider and shape of each ratio that says nothing: it, or its baseline, is not steady."""
    unsteady = {(r.provider, r.name) for r in _whole(records) if not r.steady}
    return {
        (r.provider, r.name)
        for r in _whole(records)
        if r.provider != r.baseline and unsteady & {(r.provider, r.name), (r.baseline, r.name)}
    }


def _verdicts(suite: Suite, records: Sequence[Record], disturbed: set[str]) -> list[str]:
    ratios = {record.name: record.median_ratio for record in records}
    if suite.kind == "memory":
        worst = max(ratios.values())
        return [judged("input-sized tensors", worst, suite.target.worst)]
    goals = {shape.sizes: shape.target for shape in suite.shapes}
    if any(goals.values()):
        mean = judged("geometric mean", geometric_mean(list(ratios.values())), None)
        return [mean] + [
            judged(r.name, r.median_ratio, goals[r.shape], steady=r.name not in disturbed)
            for r in records
        ]
    if len(suite.shapes) == 1:
        return [judged("ratio", records[0].median_ratio, suite.target.mean)]
    lines = verdicts(ratios, _target(suite, records[0].provider), not disturbed)
    return lines + _copied(suite, records, not disturbed)


def _target(suite: Suite, provider: str) -> Target:
    """The suite's target; of a known peer its own."""
    if suite.target.mean is not None and suite.kind == "peers":
        for peer in KNOWN:
            if provider == peer.title():
                return Target(peer.target, at_least=True)
    return suite.target


def _copied(suite: Suite, records: Sequence[Record], steady: bool) -> list[str]:
    """The verdict on the bandwidth, over tensors that no cache holds."""
    large = {shape.sizes for shape in suite.shapes if shape.large}
    shares = [
        record.of_copy_in_two_passes
        for record in records
        if record.shape in large and record.of_copy_in_two_passes is not None
    ]
    if suite.target.copied is None or not shares:
        return []
    what = "least share of the copy bandwidth, large tensors, two passes"
    return [judged(what, min(shares), suite.target.copied, at_least=True, steady=steady)]
