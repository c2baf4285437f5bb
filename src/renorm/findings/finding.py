"""What is wrong with a model, how one knows, and what to do."""

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")  # the worst first


@dataclass(frozen=True)
class Figure:
    """A measured number that a finding rests on.

    Args:
        layer: of which layer; ``"(model)"`` for the model.
        name: what it is, in words.
        value: the number.
        threshold: beyond which it counts; None if there is none.
        unit: after the number; empty for a ratio without.
    """

    layer: str
    name: str
    value: float
    threshold: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that normalization does to a model, and that costs.

    Args:
        id: a name that stays the same from version to version.
        severity: ``"error"`` for what costs accuracy or breaks, ``"warning"`` for what is likely
            to, ``"note"`` for what is worth knowing.
        title: in one line, with the figure that matters most.
        layers: names of those it is about, the worst first.
        evidence: figures, the most telling first; not of every layer.
        meaning: what happens, and why it costs, in two or three sentences.
        threshold: why the threshold is where it is, with its source.
        advice: what to do, in a sentence.
        code: Python that does it, to be pasted; empty where none can.
        gain: what it is expected to bring, and from where one knows.
        weight: how far beyond its threshold it is, 1 at the threshold; orders those of the same
            severity.
    """

    id: str
    severity: str
    title: str
    layers: tuple[str, ...]
    evidence: tuple[Figure, ...]
    meaning: str
    threshold: str
    advice: str
    code: str
    gain: str
    weight: float = 1.0
