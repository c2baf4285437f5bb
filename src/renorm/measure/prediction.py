"""What normalizers will do to a net, told by how they propagate at initialization, without torch.

The rule is that of Lubana, Dick and Tanaka 2021 (arXiv 2106.05956) made definite: a net whose
gradients or activations grow or fade too far over its depth trains unstably, and of the others that
one is fastest whose penultimate activations tell examples apart best. That a net learns nothing
whose last layer takes the same for all examples is added here: so it is after instance norm and a
mean over positions.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from renorm.errors import ArgumentError
from renorm.measure.propagated import Propagation

MOST_GROWTH = 100.0  # of norms, over the depth of a net, either way
# plain nets of 3 to 20 layers have, on digits and on noise, 0.03 to 0.04 with instance norm, and
# 0.14 or more with nine others
LEAST_CONTRAST = 0.07


@dataclass(frozen=True)
class Prediction:
    """How a net with a normalizer propagates when it is fresh; means over draws of its weights.

    None stands for what cannot be told of the net, or is not finite for a draw.

    Args:
        normalizer: its name.
        draws: of the weights.
        examples: in the batch.
        cosine: mean cosine similarity of the penultimate activations of two examples, -1 to 1.
        stable_rank: of these activations, 1 to ``examples``.
        contrast: what pooling leaves of the differences between examples, as in ``Propagation``.
        activation_growth: root mean square of the penultimate activations over that of the first.
        gradient_ratio: gradient norm at the second layer over that at the last hidden one.
        gradient_growth: factor of the squared gradient of an element, backward through a layer.
        finite: whether all figures of activations are, in every draw.
    """

    normalizer: str
    draws: int
    examples: int
    cosine: float | None
    stable_rank: float | None
    contrast: float | None
    activation_growth: float | None
    gradient_ratio: float | None
    gradient_growth: float | None
    finite: bool

    @property
    def trouble(self) -> str:
        """Why training will be unstable, or learn nothing, in words; empty if it will not."""
        if not self.finite:
            return "unstable: activations are not finite"
        for what, growth in (
            ("gradients", self.gradient_ratio),
            ("activations", self.activation_growth),
        ):
            if growth is not None and growth > MOST_GROWTH:
                return f"unstable: {what} grow {growth:.0f} times"
            if growth is not None and growth < 1 / MOST_GROWTH:
                return f"unstable: {what} fade to {growth:.1g}"
        if self.contrast is not None and self.contrast < LEAST_CONTRAST:
            return f"blind: pooling makes all examples alike (contrast {self.contrast:.1g})"
        return ""

    @property
    def place(self) -> float:
        """What ``ranked`` sorts by, least first: the cosine, or 1.5; in trouble 3 more."""
        return (1.5 if self.cosine is None else self.cosine) + (3 if self.trouble else 0)


def predicted(normalizer: str, found: Sequence[Propagation]) -> Prediction:
    """What several draws of the weights say together: means, of growth factors geometric ones.

    Args:
        normalizer: its name.
        found: of nets of one architecture, one batch each; at least one.
    """
    if not found:
        raise ArgumentError("A prediction is of at least one propagation, got none.")
    growths = [one.activation_growth for one in found]
    return Prediction(
        normalizer=normalizer,
        draws=len(found),
        examples=found[0].examples,
        cosine=_mean([one.cosine for one in found]),
        stable_rank=_mean([one.stable_rank for one in found]),
        contrast=_mean([one.contrast for one in found]),
        activation_growth=_geometric([None if g is None else math.sqrt(g) for g in growths]),
        gradient_ratio=_geometric([one.gradient_ratio for one in found]),
        gradient_growth=_geometric([one.gradient_growth for one in found]),
        finite=all(site.mean_square is not None for one in found for site in one.sites),
    )


def ranked(predictions: Iterable[Prediction]) -> tuple[Prediction, ...]:
    """The best first: those without trouble by their cosine similarity, then the others likewise.

    A net is in trouble if norms of gradients or activations grow more than ``MOST_GROWTH`` times
    over its depth, or fade to less than the inverse, or are not finite, or if ``contrast`` is below
    ``LEAST_CONTRAST``. Apart from that a lower cosine similarity of the penultimate activations
    comes first: equal activations of all examples give all of them the same gradient at the last
    layer, so that what tells them apart is learned slowly. Nets whose similarity is not told come
    after the others.

    >>> def one(name, cosine, ratio):
    ...     return Prediction(name, 1, 32, cosine, 2.0, 0.1, 1.0, ratio, 1.1, True)
    >>> nets = one("layer", 0.9, 1.0), one("instance", 0.2, 300.0), one("group", 0.6, 3.0)
    >>> [net.normalizer for net in ranked(nets)]
    ['group', 'layer', 'instance']
    """
    return tuple(sorted(predictions, key=lambda one: one.place))


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return math.fsum(told) / len(values) if len(told) == len(values) else None


def _geometric(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value]
    if len(told) < len(values):
        return None
    return math.exp(math.fsum(map(math.log, told)) / len(told))
