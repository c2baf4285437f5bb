"""A prediction on a terminal: legible at 80 columns and without colour."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from renorm.measure.prediction import LEAST_CONTRAST, MOST_GROWTH, Prediction

LEGEND = (
    "cosine: of the activations of two examples before the last layer, in the mean; near 1 "
    "the net cannot tell them apart and learns slowly.",
    "rank: stable rank of these activations, of at most the examples in the batch.",
    "contrast: what pooling leaves of the differences between examples; 1 of a mean "
    "over independent positions.",
    "forward: size of the activations at the end over that at the first layer.",
    "backward: norm of the gradients at the second layer over that at the last hidden one.",
    "a layer: factor of the squared gradient of an element, backward through a layer.",
)
RULE = (
    f"Rule: where gradients or activations grow more than {MOST_GROWTH:g} times, or fade to less "
    f"than the inverse, training is unstable; below a contrast of {LEAST_CONTRAST:g} the last "
    "layer sees nothing. These come last; the others are ranked by cosine, the lowest first."
)


def show(predictions: Sequence[Prediction], console: Console) -> None:
    """Print the ranking, what is in trouble, what the columns are, and the rule.

    Args:
        predictions: the best first.
        console: where to.
    """
    console.print(table(predictions))
    console.print()
    for one in predictions:
        if one.trouble:
            console.print(Text(f"{one.normalizer} is {one.trouble}.", style="bold yellow"))
    for line in (*LEGEND, RULE):
        console.print(line, highlight=False, markup=False)


def table(predictions: Sequence[Prediction]) -> Table:
    """A row for each normalizer."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("", justify="right")
    grid.add_column("normalizer", overflow="fold")
    for heading in ("cosine", "rank", "contrast", "forward", "backward", "a layer"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for place, one in enumerate(predictions, 1):
        figures = (
            _figure(one.cosine, 3),
            _figure(one.stable_rank, 2),
            _figure(one.contrast, 3),
            _factor(one.activation_growth),
            _factor(one.gradient_ratio),
            _factor(one.gradient_growth, 3),
        )
        grid.add_row(*map(Text, (str(place), one.normalizer, *figures)))
    return grid


def _figure(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _factor(value: float | None, decimals: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if value >= 1e4 or value < 1e-2 else f"{value:.{decimals}f}"
