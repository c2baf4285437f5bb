"""What follows from a comparison, in plain language, and computed from its figures alone."""

from collections.abc import Sequence

from renorm.report.cells import Cell, Difference
from renorm.report.statistics import Estimate, seeds_needed
from renorm.report.wording import Unit, counted, listed, sentence, title


def conclude(
    differences: Sequence[Difference],
    cells: Sequence[Cell],
    baseline: str,
    subject: str,
    unit: Unit,
) -> tuple[str, ...]:
    """Sentences, the most important first.

    Args:
        differences: the subject against every other normalizer, condition by condition.
        cells: for the runs without a score.
        baseline: its name.
        subject: its name, that of the baseline where only one normalizer was run.
        unit: of the scores.
    """
    if baseline == subject:
        first = f"Only {title(subject)} was run: there is nothing to compare it with."
        return (first, *_without_score(cells))
    main = [one for one in differences if one.against == baseline]
    if not any(one.pairs for one in main):
        names = f"{title(subject)} and {title(baseline)}"
        return (f"Nothing to conclude: no finished pair of {names}.", *_without_score(cells))
    return (
        _main(main, baseline, subject, unit),
        f"Judged by {unit.metric}, over {_seeds(main)}.",
        *_better(differences, baseline, unit),
        *_few_seeds(main),
        *_without_score(cells),
    )


def _main(main: Sequence[Difference], baseline: str, subject: str, unit: Unit) -> str:
    """The subject against the baseline: wins, losses, ties, single seeds, conditions without."""
    wins = [one for one in main if one.wins]
    losses = [one for one in main if one.loses]
    clauses = []
    if wins:
        clauses.append(_beats(subject, baseline, wins, unit))
    if losses:
        clauses.append(_beats(baseline, subject, losses, unit))
    ties = [
        f"{one.condition} ({unit.size(one.points, signed=True)})"
        for one in main
        if one.points and one.points.half_width is not None and not one.points.clear
    ]
    if ties:
        of = "" if clauses else f" between {title(subject)} and {title(baseline)}"
        clauses.append(f"no difference seen{of} in {listed(ties)}")
    single = [
        f"{unit.size(one.points, signed=True)} in {one.condition}"
        for one in main
        if one.points and one.points.half_width is None
    ]
    if single:
        names = f"{title(subject)} less {title(baseline)}"
        clauses.append(f"{names} is {listed(single)}, from 1 seed and so without an interval")
    unpaired = [one.condition for one in main if not one.pairs]
    if unpaired:
        clauses.append(f"no finished pair in {listed(unpaired)}")
    return sentence("; ".join(clauses))


def _beats(winner: str, loser: str, where: Sequence[Difference], unit: Unit) -> str:
    parts = [f"by {_size(one.points, unit)} in {one.condition}" for one in where]
    return f"{title(winner)} beats {title(loser)} {listed(parts)}"


def _size(points: Estimate | None, unit: Unit) -> str:
    return unit.size(points) if points else "-"


def _seeds(main: Sequence[Difference]) -> str:
    counts = sorted({one.pairs for one in main if one.pairs})
    if len(counts) == 1:
        return counted(counts[0], "paired seed")
    return f"{counts[0]} to {counts[-1]} paired seeds"


def _better(differences: Sequence[Difference], baseline: str, unit: Unit) -> list[str]:
    """A sentence for each other normalizer that beats the subject somewhere."""
    found = []
    for other in dict.fromkeys(one.against for one in differences if one.against != baseline):
        losses = [one for one in differences if one.against == other and one.loses]
        if losses:
            found.append(sentence(_beats(other, losses[0].normalizer, losses, unit)))
    return found


def _few_seeds(main: Sequence[Difference]) -> list[str]:
    """What one or two seeds can and cannot show; nothing for more."""
    most = max(one.pairs for one in main)
    if most > 2:
        return []
    if most == 1:
        return ["One seed says nothing about spread: give at least 3 for intervals."]
    needed = [
        f"about {seeds} seeds in {one.condition}"
        for one in main
        if one.points and not one.points.clear and (seeds := seeds_needed(one.points))
    ]
    text = "Two seeds give very wide intervals (Student's t is 12.7, of five seeds 2.8)"
    if needed:
        text += f"; were mean and spread as seen, it would take {listed(needed)} to tell"
    return [f"{text}."]


def _without_score(cells: Sequence[Cell]) -> list[str]:
    """Runs that are in no figure: divergence is an outcome, and is told cell by cell."""
    found = []
    diverged = [
        f"{title(cell.normalizer)} in {cell.condition} ({cell.diverged} of {cell.wanted})"
        for cell in cells
        if cell.diverged
    ]
    if diverged:
        found.append(f"Diverged, and so in no mean: {listed(diverged)}.")
    counts = {
        "failed": sum(cell.failed for cell in cells),
        "missing": sum(cell.missing for cell in cells),
    }
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    if parts:
        asked = counted(sum(cell.wanted for cell in cells), "run")
        found.append(f"Of {asked}: {', '.join(parts)}.")
    return found
