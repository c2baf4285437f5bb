"""What signals and gradients did on their way through a model, without torch."""

import math
from dataclasses import dataclass

KINDS = ("weights", "norm", "activation")


@dataclass(frozen=True)
class Site:
    """A place in a model, at one call: what comes out of a layer or a function.

    None stands for what was not asked for, or is not finite.

    Args:
        layer: name of the module; of a function, such as ``F.relu``, that of the module it is in.
        kind: ``"weights"`` for a convolution or a fully connected layer, ``"norm"``, or
            ``"activation"``.
        type: name of the class or function.
        call: of the layer or function at this place, 0 for the first.
        shape: of the output, the batch first.
        variance_in, mean_square_in: as ``variance`` and ``mean_square``, of the input.
        variance: of the output over the batch and positions, in the mean over channels; biased.
        mean_square: of the output, over everything.
        gradient_norm: Frobenius norm of dL / d(output) of the whole batch.
        gradient_square: mean square of an element of it.
        cosine: mean cosine similarity of the flattened outputs of two different examples, -1 to 1.
        stable_rank: trace over largest eigenvalue of the Gram matrix of these cosines, from 1 for
            equal examples to N for orthogonal ones.
    """

    layer: str
    kind: str
    type: str
    call: int
    shape: tuple[int, ...]
    variance_in: float | None
    mean_square_in: float | None
    variance: float | None
    mean_square: float | None
    gradient_norm: float | None
    gradient_square: float | None
    cosine: float | None
    stable_rank: float | None


@dataclass(frozen=True)
class Propagation:
    """Signals forward and gradients backward through a model, for one batch.

    Args:
        model: name of its class.
        statistics: that normalizers used: ``"batch"``, ``"running"`` or ``"as it is"``.
        examples: N, in the batch.
        loss: its value; None without one, or if it is not finite.
        sites: in the order of the forward.
        penultimate: place among the sites of what the last layer of weights takes, but for pooling
            and the like: the last activation, or normalizer, before it. None without one.
    """

    model: str
    statistics: str
    examples: int
    loss: float | None
    sites: tuple[Site, ...]
    penultimate: int | None

    def of(self, kind: str) -> tuple[Site, ...]:
        """The sites of a kind, in the order of the forward."""
        return tuple(site for site in self.sites if site.kind == kind)

    @property
    def hidden(self) -> tuple[Site, ...]:
        """The layers of weights but the last, whose output is the model's."""
        return self.of("weights")[:-1]

    @property
    def cosine(self) -> float | None:
        """Mean cosine similarity of the penultimate activations."""
        return None if self.penultimate is None else self.sites[self.penultimate].cosine

    @property
    def stable_rank(self) -> float | None:
        """Of the penultimate activations, 1 to N."""
        return None if self.penultimate is None else self.sites[self.penultimate].stable_rank

    @property
    def contrast(self) -> float | None:
        """What pooling leaves of the differences between examples.

        Variance of what the last layer of weights takes, over that of the penultimate activations,
        times their positions: 1 without pooling, and where a mean is over independent positions. 0
        where all examples give that layer the same, whatever the cosine before it.
        """
        if self.penultimate is None:
            return None
        last, before = self.of("weights")[-1], self.sites[self.penultimate]
        ratio = _ratio(last.variance_in, before.variance)
        return None if ratio is None else ratio * math.prod(before.shape[2:])

    @property
    def gradient_ratio(self) -> float | None:
        """Gradient norm at the second layer of weights over that at the last hidden one.

        The first is left out: its normalizer divides by the scale of the model's input.
        """
        if len(self.hidden) < 3:
            return None
        return _ratio(self.hidden[1].gradient_norm, self.hidden[-1].gradient_norm)

    @property
    def gradient_growth(self) -> float | None:
        """Factor by which the squared gradient of an element grows backward through a layer.

        The geometric mean ``(g_2 / g_L) ** (1 / (L - 2))`` over the L hidden layers of weights but
        the first.
        """
        if len(self.hidden) < 3:
            return None
        ratio = _ratio(self.hidden[1].gradient_square, self.hidden[-1].gradient_square)
        return None if ratio is None else ratio ** (1 / (len(self.hidden) - 2))

    @property
    def activation_growth(self) -> float | None:
        """Mean square of the penultimate activations over that of the first ones."""
        if self.penultimate is None:
            return None
        kind = self.sites[self.penultimate].kind
        first = self.of(kind)[0]
        return _ratio(self.sites[self.penultimate].mean_square, first.mean_square)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
