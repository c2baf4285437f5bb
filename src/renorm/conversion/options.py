"""The options of a conversion, and layers that it refuses."""

import inspect
from typing import Any

from renorm.conversion.selection import Site
from renorm.errors import ArgumentError, ConversionError

_OF_THE_LAYER = {"num_features", "eps", "affine", "bias", "track_running_stats", "device", "dtype"}


def check_options(cls: Any, options: dict[str, Any]) -> None:
    """Refuse options that are no settings of the class that layers become."""
    allowed = ["momentum", *list(inspect.signature(cls.configure).parameters)[1:]]
    unknown = sorted(set(options) - set(allowed))
    kept = [name for name in unknown if name in _OF_THE_LAYER]
    if unknown:
        hint = f" {', '.join(kept)} stay as each layer has them." if kept else ""
        raise ArgumentError(
            f"convert has no option {', '.join(unknown)}; there are {', '.join(allowed)}.{hint}"
        )


def refusal(refused: dict[Site, str]) -> ConversionError:
    """The error that lists layers which cannot be converted, and why."""
    lines = "\n".join(f"  {site} {why}" for site, why in refused.items())
    return ConversionError(
        f"These layers cannot be converted faithfully:\n{lines}\nNothing was changed. Leave them "
        "as they are with exclude=..., or make the replacement with to=callable."
    )
