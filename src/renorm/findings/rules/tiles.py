"""Dense predictions that depend on how an image was cut into tiles."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import conversion, of_model
from renorm.measure.records import MODEL, LayerFacts, Survey, TileConsistency

INTERIOR = 0.1  # deviations of the output
WRONG = 0.25


def tile_artifacts(survey: Survey) -> Iterator[Finding]:
    """Predictions that change far from the cuts, in eval mode."""
    found = of_model(survey, TileConsistency)
    if found is None or found.interior is None or found.interior < INTERIOR:
        return
    own = [one for one in survey.of(LayerFacts) if one.statistics == "none"]
    figures = [Figure(MODEL, "difference far from the cuts", found.interior, INTERIOR)]
    for name, value in (
        ("difference everywhere", found.difference),
        ("far from the cuts, by batch statistics", found.interior_by_batch),
    ):
        if value is not None:
            figures.append(Figure(MODEL, name, value))
    certain = bool(own) and found.interior >= WRONG
    yield Finding(
        id="tile_artifacts",
        severity="error" if certain else "warning" if own else "note",
        title=f"Tiles change predictions by {found.interior:.2f} deviations far from their edges",
        layers=tuple(one.layer for one in own),
        evidence=tuple(figures),
        meaning=(
            "These layers have no running statistics, so in eval mode too each tile is normalized "
            "by itself: seams show where tiles meet, and a prediction depends on the tile it is in."
            if own
            else "All layers have running statistics, so this comes from something else that looks "
            "at the whole input: squeeze and excitation, other norms, attention, or a receptive "
            "field larger than half a tile."
        ),
        threshold=(
            f"{INTERIOR:g} deviations of the output over the half of a tile that is farther from "
            "its cuts; 0 for convolutions and running statistics. A warning only where a layer "
            f"has none, an error from {WRONG:g} on."
        ),
        advice=(
            "Give the layers running statistics, and train them so that these are what is used: "
            "batch renorm."
            if own
            else "Let tiles overlap by the receptive field, or predict whole images."
        ),
        code=_tracking(survey) if own else "",
        gain=(
            "Buglakova et al. 2025 (arXiv 2503.19545) recommend batch renorm for tiled "
            "segmentation: it takes away tile artifacts and the gap of train and eval."
        ),
        weight=found.interior / INTERIOR,
    )


def _tracking(survey: Survey) -> str:
    names = [one.layer for one in survey.of(LayerFacts) if one.statistics == "none"]
    first = (
        "import torch\n\n"
        "import renorm\n\n"
        f"for name in {names!r}:\n"
        '    layer = model if name == "(model)" else model.get_submodule(name)\n'
        "    like = next(layer.parameters(), torch.zeros(())).detach()\n"
        "    layer.running_mean = like.new_zeros(layer.num_features)\n"
        "    layer.running_var = like.new_ones(layer.num_features)\n"
        "    layer.num_batches_tracked = torch.tensor(0, device=like.device)\n"
        "    layer.track_running_stats = True\n"
    )
    rest = conversion(survey).replace("import renorm\n\n", "")
    return f"{first}{rest}renorm.calibrate(model, batches)\n"
