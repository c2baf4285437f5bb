"""From layers of ours to plain batch norm."""

from typing import Literal, TypeVar

from torch import nn

from renorm.collectives import Group
from renorm.conversion.classes import OURS, become, original, settings
from renorm.conversion.fusion import LOST, places_of_relu, separate, was_fused
from renorm.conversion.selection import Selection, norm_layers, select
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import BatchRenorm, CrossIterationBatchNorm

M = TypeVar("M", bound=nn.Module)


def to_batchnorm(
    model: M,
    *,
    momentum: float | Literal["keep"] | None = "keep",
    include: Selection = None,
    exclude: Selection = None,
) -> M:
    """Turn the batch renorm and cross-iteration layers of a model into batch norm, in place.

    The undoing of ``convert``: a layer gets the class that it had (nn.SyncBatchNorm, timm's
    BatchNormAct2d, a subclass), one that was built as ours gets torch's class of its rank.
    A layer of ``fuse`` is first made two again, so the ReLU is back in its place.
    Eval outputs are bitwise the same; nothing of this package is left in the result, which prints
    and pickles as batch norm. Batch norm knows no freezing, so a frozen layer is then an ordinary
    one; the step count stays.

    Args:
        model: changed in place; its other layers are left alone.
        momentum: of the batch norm layers, 0 to 1, or None for the plain average; ``"keep"``
            leaves what the layers have.
        include: the layers to turn back, as for ``convert``.
        exclude: the layers to leave, as for ``convert``.

    Returns:
        The model.

    Raises:
        ConversionError: layers that no batch norm class is equal to, all of them listed: an any-
            rank ``BatchRenorm`` or a ``BatchRenormAct2d`` that was not converted but built, and
            other subclasses; a fused layer without the nn.Identity that kept the place of its
            ReLU; or no normalization layer at all.
        ArgumentError: momentum out of range, or a selection that matches nothing. After either
            error the model is as it was.

    >>> from renorm.conversion import convert
    >>> model = to_batchnorm(convert(nn.BatchNorm1d(4)), momentum=0.1)
    >>> type(model) is nn.BatchNorm1d, model.momentum
    (True, 0.1)
    """
    number = isinstance(momentum, int | float) and 0 <= momentum <= 1
    if not (number or momentum is None or momentum == "keep"):
        raise ArgumentError(f"momentum is 'keep', None, or from 0 to 1, got {momentum!r}.")
    sites = select(norm_layers(model), include, exclude)
    ours = {site: site.layer for site in sites if isinstance(site.layer, OURS)}
    classes = {site: original(layer) for site, layer in ours.items()}
    places = places_of_relu(model)
    for site in classes:
        if was_fused(site.layer) and site.layer not in places:
            classes[site] = LOST
    refused = {site: why for site, why in classes.items() if isinstance(why, str)}
    if refused:
        lines = "\n".join(f"  {site} {why}" for site, why in refused.items())
        raise ConversionError(
            f"These layers are equal to no batch norm class:\n{lines}\nNothing was changed. "
            "Leave them with exclude=...: their eval graph is torch's batch norm anyway."
        )
    added = settings()
    for site, cls in classes.items():
        assert not isinstance(cls, str)
        if was_fused(site.layer):
            separate(site.layer, places[site.layer])
        group = _let_go(ours[site])
        become(site.layer, cls)
        for name in added & set(vars(site.layer)):
            delattr(site.layer, name)
        if issubclass(cls, nn.SyncBatchNorm):
            vars(site.layer)["process_group"] = group
        if momentum != "keep":
            site.layer.momentum = momentum
    return model


def _let_go(layer: BatchRenorm | CrossIterationBatchNorm) -> Group:
    """Part the layer from everything that acts on it; returns the group it shares with."""
    if isinstance(layer, CrossIterationBatchNorm):
        layer.detach()
        return None
    layer._leave_deferral()
    return layer.process_group
