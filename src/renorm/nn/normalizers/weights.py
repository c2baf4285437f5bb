"""Layers that stand where batch norm stands and act on the weights of the layer before."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from renorm.errors import ArgumentError, RenormError
from renorm.kernels import accumulation_dtype
from renorm.nn.normalizers.base import Normalizer, per_channel
from renorm.nn.source import Source, obstacle

# of a unit Gaussian, the ReLU has this mean, and variance 1 once multiplied by the gain
RELU_MEAN = 1 / math.sqrt(2 * math.pi)
RELU_GAIN = math.sqrt(2 * math.pi / (math.pi - 1))


class WeightBased(Normalizer):
    """A normalizer of the weights of the layer before, its source, instead of its output.

    ``pair`` registers a parametrization on the source: what the optimizer moves stays under
    ``parametrizations.weight.original`` of the source, the same nn.Parameter as before, and the
    source computes with normalized weights. This layer has the gain of each filter as ``weight``,
    which the parametrization takes part in, and adds ``bias`` to the source's output, whether or
    not the source has a bias of its own. Train and eval are the same, and examples do not mix.

    Args:
        num_features: C, the number of channels: the filters of the source.
        eps: added to the size that each filter is divided by, above 0.
        affine: whether there are gains and a bias; gains are 1 without.
        device, dtype: of gains and bias, those of the source.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)
        self.folded = False
        self._source: tuple[Source] | None = None  # in a tuple: it is no module of this one

    @property
    def source(self) -> Source | None:
        """The layer whose weights are normalized; None before ``pair`` and after ``fold``."""
        return None if self._source is None else self._source[0]

    def pair(self, source: Source) -> None:
        """Have this source compute with normalized weights from now on.

        Args:
            source: nn.Linear, or nn.Conv1d, 2d or 3d, grouped or not, with ``num_features``
                outputs, all of which come to this layer unchanged.

        Raises:
            ArgumentError: this layer or the source is paired already, or the source is of another
                kind, size, device or dtype. Nothing is changed then.
        """
        taken = self.source
        if taken is not None or self.folded:
            state = "was folded" if taken is None else f"is paired with {_line(taken)} already"
            raise ArgumentError(
                f"This {type(self).__name__} {state}: make a new one for {_line(source)}."
            )
        why = self._obstacle(source)
        if why is not None:
            raise ArgumentError(f"{type(self).__name__}({self.num_features}) cannot act on {why}.")
        parametrize.register_parametrization(source, "weight", _Parametrization(self))
        self._source = (source,)

    def fold(self) -> None:
        """Write the normalized weights into the source, and end the parametrization.

        The outputs stay as they are; the gains are in the source's weights then, and ``weight`` of
        this layer is None.

        Raises:
            RenormError: there is no source, or its parametrization is gone.
        """
        self._check_paired()
        if self._source is not None:
            source: Any = self._source[0]
            _leave_shared_class(source)
            parametrize.remove_parametrizations(source, "weight", leave_parametrized=True)
        self._source, self.folded, self.weight = None, True, None

    def _normalized(self, x: Tensor) -> Tensor:
        self._check_paired()
        return x if self.bias is None else x + per_channel(self.bias, x)

    def effective(self, weight: Tensor) -> Tensor:
        """The weights (C, ...) that the source computes with, of those that are trained."""
        filters = weight.flatten(1).to(accumulation_dtype(weight.dtype))
        unit = self._unit(filters)
        if self.weight is not None:
            unit = self.weight.to(unit.dtype).unsqueeze(1) * unit
        return unit.view_as(weight).to(weight.dtype)

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        state = ", folded" if self.folded else ", unpaired" if self.source is None else ""
        return super().extra_repr() + state

    @abstractmethod
    def _unit(self, filters: Tensor) -> Tensor:
        """The filters (C, K), normalized."""

    def _obstacle(self, source: nn.Module) -> str | None:
        """The source and why it cannot be one, or None if it can."""
        holder = next((one for one in _holders(source)), None)
        if holder is not None:
            return f"{_line(source)}, which is paired with another {type(holder).__name__} already"
        why = obstacle(source, self.num_features)
        if why is not None:
            return f"{_line(source)}, which {why}"
        own = next(self.parameters(), None)
        weight: Any = source.weight
        if own is not None and (own.device, own.dtype) != (weight.device, weight.dtype):
            return (
                f"{_line(source)}, whose weight is {weight.dtype} on {weight.device}, while this "
                f"layer is {own.dtype} on {own.device}. Move one of them with .to(...) first"
            )
        return None

    def _check_paired(self) -> None:
        if self.folded:
            return
        source = self.source
        if source is None:
            raise RenormError(
                f"This {type(self).__name__}({self.num_features}) normalizes the weights of the "
                "layer before it and does not know it. Call pair(layer) once, before training."
            )
        if not any(holder is self for holder in _holders(source)):
            raise RenormError(
                f"The parametrization of {_line(source)} by this {type(self).__name__} was "
                "removed from outside. Call fold() instead, which leaves the outputs as they are, "
                "or pair a new layer with it."
            )


class WeightNorm(WeightBased):
    """Weight Normalization with the corrections for a ReLU, which it contains.

    Each filter W (all weights of an output channel) is used as its direction times a gain, and a
    ReLU is moved and scaled to mean 0 and variance 1 for a unit Gaussian::

        W_hat = weight * W / (||W|| + eps)
        y = sqrt(2 pi / (pi - 1)) * (relu(W_hat * x + bias) - 1 / sqrt(2 pi))

    No activation comes after it (``activates``). torch.nn.utils.parametrizations.weight_norm is
    not used: its gains start at the norms of the weights, which leaves a net as it was drawn
    instead of normalizing it, they lie in the source instead of in the layer that takes batch
    norm's place, and a filter of zeros becomes NaN.

    Args: see ``WeightBased``.

    Source: Salimans and Kingma 2016 (arXiv 1602.07868); the correction is that of
    Arpit et al. 2016 (arXiv 1603.01431), as in Lubana et al. 2021 (arXiv 2106.05956).

    >>> linear = nn.Linear(3, 4, bias=False)
    >>> layer = WeightNorm(4)
    >>> layer.pair(linear)
    >>> torch.allclose(linear.weight.norm(dim=1), torch.ones(4), atol=1e-4)
    True
    >>> round(layer(linear(torch.zeros(1, 3)))[0, 0].item(), 3)
    -0.683
    """

    activates = True

    def _normalized(self, x: Tensor) -> Tensor:
        return RELU_GAIN * (F.relu(super()._normalized(x)) - RELU_MEAN)

    def _unit(self, filters: Tensor) -> Tensor:
        return filters / (torch.linalg.vector_norm(filters, dim=1, keepdim=True) + self.eps)


class ScaledWeightStandardization(WeightBased):
    """Scaled Weight Standardization, to be followed by a ReLU.

    Each filter W of K weights (K: inputs of a unit, those of its group alone) is centred and
    scaled so that the ReLU of what it makes of a unit Gaussian has variance 1::

        W_hat = weight * sqrt(2 pi / (pi - 1)) * (W - mean(W)) / ((std(W) + eps) * sqrt(K))

    with the biased standard deviation. A mean of the inputs that all K share drops out.

    Args: see ``WeightBased``.

    Source: Brock, De and Smith 2021 (arXiv 2101.08692), after Qiao et al. 2019
    (arXiv 1903.10520).

    >>> linear = nn.Linear(8, 4, bias=False)
    >>> ScaledWeightStandardization(4).pair(linear)
    >>> torch.allclose(linear.weight.sum(1), torch.zeros(4), atol=1e-5)
    True
    """

    def _unit(self, filters: Tensor) -> Tensor:
        centred = filters - filters.mean(1, keepdim=True)
        # std * sqrt(K) is the norm of the centred filter, which has a gradient at 0, too
        size = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        return RELU_GAIN * centred / (size + self.eps * math.sqrt(filters.shape[1]))

    def _obstacle(self, source: nn.Module) -> str | None:
        why = super()._obstacle(source)
        if why is not None:
            return why
        weight: Any = source.weight
        if weight[0].numel() == 1:
            one = "filters have one weight each, which is 0 once it is centred"
            return f"{_line(source)}, whose {one}"
        return None


class _Parametrization(nn.Module):
    """The parametrization of a source's weight by a layer."""

    def __init__(self, layer: WeightBased) -> None:
        super().__init__()
        self._layer = (layer,)  # its parameters are its own

    def forward(self, weight: Tensor) -> Tensor:
        return self._layer[0].effective(weight)


def _holders(source: nn.Module) -> Iterator[WeightBased]:
    """The layers that this module's weight is normalized by."""
    if parametrize.is_parametrized(source, "weight"):
        lists: Any = source.parametrizations
        yield from (one._layer[0] for one in lists["weight"] if isinstance(one, _Parametrization))


def _line(source: nn.Module) -> str:
    """The module without what is inside it."""
    return f"{parametrize.type_before_parametrizations(source).__name__}({source.extra_repr()})"


def _leave_shared_class(source: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    Copies share the class that torch made for the parametrization, and torch takes the property
    ``weight`` off that class when it removes the parametrization of one of them.
    """
    cls = type(source)
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    apart: Any = type(cls.__name__, cls.__bases__, own)
    source.__class__ = apart
