"""From batch norm to cross-iteration batch norm: each layer with the source that feeds it."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm import functional
from renorm.conversion.classes import become, counterpart
from renorm.conversion.options import check_options, refusal
from renorm.conversion.pairing import pair
from renorm.conversion.selection import Site
from renorm.nn import CrossIterationBatchNorm


def to_cross_iteration(
    model: nn.Module, targets: Sequence[Site], options: dict[str, Any], example: Any
) -> None:
    """Convert these layers in place, or none of them."""
    check_options(CrossIterationBatchNorm, options)
    layer = CrossIterationBatchNorm(1, device="meta", **_without_momentum(options))
    for site in targets:  # each has its own momentum, unless one is given
        momentum = options.get("momentum", site.layer.momentum)
        functional.check_settings(momentum, layer.eps, None, "raise")
    classes = {site: counterpart(site.layer, "cross_iteration") for site in targets}
    refused = {site: why for site, why in classes.items() if isinstance(why, str)}
    if refused:
        raise refusal(refused)
    needed = layer.window > 1 and layer.compensation != "none"
    sources = pair(model, targets, example) if needed else {}
    of_source = {module: name for name, module in model.named_modules()}
    for site, cls in classes.items():
        assert not isinstance(cls, str)
        came_from = type_before_parametrizations(site.layer)
        become(site.layer, cls)
        norm: Any = site.layer
        vars(norm)["_converted_from"] = came_from
        norm.momentum = options.get("momentum", norm.momentum)
        norm.configure(**_without_momentum(options))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()
        if norm in sources:
            source = sources[norm]
            norm.attach(source, (site.names[0], of_source[source]))


def _without_momentum(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "momentum"}
