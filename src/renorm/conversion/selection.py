"""Which normalization layers of a model are meant."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError, ConversionError

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Selection = Selector | Iterable[Selector] | None


class Site(NamedTuple):
    """A layer, once, with every name it goes by."""

    layer: _BatchNorm
    names: tuple[str, ...]

    def __str__(self) -> str:
        name = " = ".join(self.names) if self.names != ("",) else "the model itself"
        return f"{name} ({type(self.layer).__module__}.{type(self.layer).__qualname__})"


def norm_layers(model: nn.Module) -> list[Site]:
    """Every batch norm or batch renorm layer of the model.

    Raises:
        ConversionError: there is none.
    """
    names: dict[_BatchNorm, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            names.setdefault(module, []).append(name)
    if not names:
        raise ConversionError(
            f"{type(model).__name__} has no batch norm layer. Give a model that is built of "
            "nn.BatchNorm; one that was scripted, exported or traced through its layers has none "
            "left and is converted before that."
        )
    return [Site(layer, tuple(found)) for layer, found in names.items()]


def select(sites: Sequence[Site], include: Selection, exclude: Selection) -> list[Site]:
    """The sites that are included and not excluded; a shared layer by any of its names.

    Raises:
        ArgumentError: a pattern matches no layer, a selector is of no known kind, or nothing is
            left.
    """
    included = [_test(s, sites) for s in _listed(include)]
    excluded = [_test(s, sites) for s in _listed(exclude)]
    chosen = [
        site
        for site in sites
        if (include is None or any(test(site) for test in included))
        and not any(test(site) for test in excluded)
    ]
    if not chosen:
        raise ArgumentError(
            f"include={include!r} and exclude={exclude!r} leave none of the {len(sites)} "
            f"normalization layers, such as {sites[0]}. Widen the one or narrow the other."
        )
    return chosen


def _listed(selection: Selection) -> list[Selector]:
    if selection is None:
        return []
    if isinstance(selection, str | type) or callable(selection):
        return [selection]
    if isinstance(selection, Iterable):
        return list(selection)
    raise _unknown(selection)


def _test(selector: Selector, sites: Sequence[Site]) -> Callable[[Site], bool]:
    if isinstance(selector, str):
        _check_pattern(selector, sites)
        return lambda site: any(fnmatchcase(name, selector) for name in site.names)
    if isinstance(selector, type):
        return lambda site: isinstance(site.layer, selector)
    if callable(selector):
        return lambda site: any(selector(name, site.layer) for name in site.names)
    raise _unknown(selector)


def _check_pattern(pattern: str, sites: Sequence[Site]) -> None:
    names = [name for site in sites for name in site.names]
    if any(fnmatchcase(name, pattern) for name in names):
        return
    if any(name.startswith(f"{pattern}.") for name in names):
        advice = f"The layers inside are {pattern + '.*'!r}."
    else:
        nearest = difflib.get_close_matches(pattern, names, n=5, cutoff=0) or names[:5]
        advice = f"The nearest names are {', '.join(map(repr, nearest))}."
    raise ArgumentError(f"No normalization layer has a name like {pattern!r}. {advice}")


def _unknown(selector: object) -> ArgumentError:
    return ArgumentError(
        "include and exclude take a glob on qualified names ('layer4.*'), a module class, a "
        f"predicate (name, module) -> bool, or an iterable of these; got {selector!r}."
    )
