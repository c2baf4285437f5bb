"""Plots about the whole model: the loss in three modes, by composition, and of tiles."""

from renorm.measure.records import CompositionShift, OutputGap, Survey, TileConsistency
from renorm.report.palette import series as look
from renorm.report.panels import Panel
from renorm.report.plots import Plot, plot
from renorm.report.rows import Series, panel

Error = tuple[float | None, float | None]
OF_OUTPUT = "deviations of the output"
GAP, STALENESS, NOISE = "train - eval", "stale statistics", "batch noise"


def modes(survey: Survey) -> tuple[Plot, ...]:
    """What the model gives by batch, running and population statistics."""
    panels: list[Panel | None] = []
    for one in survey.of(OutputGap):
        losses = {
            "batch (train)": one.loss_batch,
            "running (eval)": one.loss_running,
            "population": one.loss_population,
        }
        differences = {
            GAP: one.loss_gap,
            STALENESS: one.loss_staleness,
            NOISE: one.loss_noise,
        }
        outputs = {GAP: one.gap, STALENESS: one.staleness, NOISE: one.noise}
        panels += [
            _rows("Loss by the statistics used", "loss", losses, 0),
            _differences("Differences in loss", "loss", differences),
            _rows("Differences in the output", OF_OUTPUT, outputs, 2),
        ]
    about = (
        "The same batches and weights, normalized by the batch as in train mode, by running "
        "statistics as in eval mode, and by population statistics, which are what running "
        "statistics should be. Train - eval: batch less running. Stale statistics: running less "
        "population, which calibration removes. Batch noise: batch less population. Bars are one "
        "standard error over batches."
    )
    return plot("modes", "Loss and output in the three modes", about, panels)


def composition(survey: Survey) -> tuple[Plot, ...]:
    """The loss on batches as they come, and with their examples reshuffled."""
    panels: list[Panel | None] = []
    for one in survey.of(CompositionShift):
        losses = {"as they come": one.loss_composed, "reshuffled": one.loss_shuffled}
        shift = {"reshuffled - as is": (one.shift, one.error)}
        panels += [
            _rows("Loss by composition of the batch", "loss", losses, 3),
            _differences("Cost of reshuffling", "loss", shift),
        ]
    about = (
        "The loss in train mode on batches as they come, and on batches of the same examples put "
        "together at random. If reshuffling costs, the model relies on which examples come "
        "together, and will not have that in use. The bar is one standard error."
    )
    return plot("composition", "Does the model rely on the composition of batches?", about, panels)


def tiles(survey: Survey) -> tuple[Plot, ...]:
    """Predictions of whole images against those of their tiles."""
    panels: list[Panel | None] = []
    for one in survey.of(TileConsistency):
        values = {
            "all, eval mode": one.difference,
            "interior, eval": one.interior,
            "interior, train": one.interior_by_batch,
        }
        size = " x ".join(map(str, one.tile))
        heading = f"Tiles of {size}" if size else "Tiles"
        panels.append(_rows(heading, OF_OUTPUT, values, 4))
    about = (
        "How far predictions of tiles are from those of the whole image. Near the cuts they "
        "differ in any network; in the interior they should agree unless the receptive field is "
        "larger, and by batch statistics they do not, as each tile has statistics of its own."
    )
    return plot("tiles", "Do tiles agree with the whole image?", about, panels)


def _rows(heading: str, axis: str, values: dict[str, float | None], place: int) -> Panel | None:
    shown = Series(axis.partition(" ")[0], values, look(place))
    return panel(heading, list(values), [shown], axis, logarithmic=False)


def _differences(heading: str, axis: str, values: dict[str, Error]) -> Panel | None:
    means = {name: value for name, (value, _) in values.items()}
    errors = {name: error for name, (_, error) in values.items()}
    told = {name: _told(error) for name, error in errors.items()}
    shown = Series("difference", means, look(1), errors, told)
    return panel(heading, list(values), [shown], axis, reference=0.0, logarithmic=False)


def _told(error: float | None) -> str:
    return "" if error is None else f"<br>standard error {error:.2g}"
