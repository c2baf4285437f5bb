"""Modes: some layers in train mode and some not, and models exported in train mode."""

from collections.abc import Iterator

from renorm.findings.finding import Figure, Finding
from renorm.findings.rules.reading import counted, listed, of_model
from renorm.measure.records import MODEL, LayerFacts, Setting, Survey


def mixed_modes(survey: Survey) -> Iterator[Finding]:
    """Layers in eval mode beside others in train mode, frozen ones aside."""
    found = [one for one in survey.of(LayerFacts) if one.statistics in ("updated", "not updated")]
    on = tuple(one.layer for one in found if one.training)
    off = [one for one in found if not one.training]
    if not on or not off:
        return
    in_eval = not survey.training
    learning = [one.layer for one in off if one.learns]
    odd = on if in_eval else tuple(one.layer for one in off)
    yield Finding(
        id="mixed_modes",
        severity="warning" if in_eval or learning else "note",
        title=(
            f"{counted(len(on), 'layer')} in train mode and {len(off)} in eval mode, in a model "
            f"in {'eval' if in_eval else 'train'} mode"
        ),
        layers=odd,
        evidence=(
            Figure(MODEL, "layers in train mode", float(len(on))),
            Figure(MODEL, "layers in eval mode", float(len(off)), 0.0),
            Figure(MODEL, "layers in eval mode whose weight or bias learns", float(len(learning))),
        ),
        meaning=(
            f"{listed(odd)} normalize by the batch and go on changing their statistics, although "
            "the model is in eval mode: a prediction depends on what else is in the batch."
            if in_eval
            else f"{listed(odd)} normalize by running statistics while others take the batch's. "
            "In fine-tuning that is often meant so; but the next model.train() undoes it without "
            "a word, and where weight and bias still learn it may be an accident."
        ),
        threshold=(
            "One layer. A note where weight and bias of the layers in eval mode do not learn "
            "either, as in detectors with a backbone held fixed; a warning else."
        ),
        advice=(
            "Call model.eval() on the whole model before predicting."
            if in_eval
            else "Choose: train() for all, or freeze that part for good by renorm.convert and "
            "renorm.freeze, which model.train() does not undo."
        ),
        code="model.eval()\n" if in_eval else "model.train()\n",
        gain=(
            "Predictions no longer depend on the batch."
            if in_eval
            else "The same layers are frozen in every epoch, or none."
        ),
        weight=2.0 if in_eval else 1.0,
    )


def train_mode_export(survey: Survey) -> Iterator[Finding]:
    """A model that is to be exported, with layers in train mode."""
    setting = of_model(survey, Setting)
    layers = tuple(
        one.layer for one in survey.of(LayerFacts) if one.training and one.statistics != "frozen"
    )
    if setting is None or setting.purpose != "export" or not layers:
        return
    yield Finding(
        id="train_mode_export",
        severity="error",
        title=f"To be exported with {counted(len(layers), 'layer')} in train mode",
        layers=layers,
        evidence=(Figure(MODEL, "layers in train mode", float(len(layers)), 0.0),),
        meaning=(
            "torch.export writes train mode into the graph: outputs then depend on the batch, a "
            "batch of one fails or gives 0, and each call changes the statistics. The ONNX "
            "exporter makes inference of nn.BatchNorm without a word, so the file does something "
            "else than the model did; batch renorm is exported with its batch statistics."
        ),
        threshold=(
            "One layer. With torch 2.13, an ONNX file of nn.BatchNorm exported in train mode "
            "differed from the model by 1.7, and from its eval mode by 2e-6."
        ),
        advice="Call eval() before you export, and compare the file with the model.",
        code="model.eval()\n",
        gain="The file gives what the model gives in eval mode, for any batch.",
        weight=10.0,
    )
