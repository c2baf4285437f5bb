"""Which layer's output each norm normalizes: its source."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from renorm.conversion.observation import Input, Observation, Output, observe
from renorm.conversion.selection import Site
from renorm.conversion.sequence import predecessor
from renorm.errors import ConversionError
from renorm.nn.source import Source, obstacle

Names = dict[nn.Module, list[str]]
Finding = Source | str  # a str says why there is none


def pair(model: nn.Module, sites: Sequence[Site], example: Any = None) -> dict[_BatchNorm, Source]:
    """Find the linear or convolution layer of which each norm takes the output, and nothing else.

    With an example the model is run on it once, in eval mode and without gradients; modes,
    buffers, hooks and torch's random state are afterwards as they were, after an exception too.
    A norm's input must be the very tensor that the only call of its source gave, unchanged.
    Without, the order of the modules tells: a norm's source is what its nn.Sequential runs, or its
    parent registered, just before it. That is a guess, to be confirmed at the first forward.

    Args:
        model: holds all layers; is not changed.
        sites: the norms.
        example: an input of the model: a tensor, a tuple or list of positional arguments, or a
            dict of keyword arguments.

    Returns:
        For each norm its source, a different one for each.

    Raises:
        ConversionError: norms without a source, all of them listed.
        ArgumentError: the model does not run on the example.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> pair(model, [Site(model[1], ("1",))])[model[1]]
    Linear(in_features=3, out_features=4, bias=True)
    """
    names = _names(model)
    if example is None:
        find = predecessor(model)
        found = {site: _in_order(site, find(site.layer), names) for site in sites}
    else:
        seen = observe(model, [site.layer for site in sites], example)
        found = {site: _in_forward(site, seen, names) for site in sites}
    found |= _claimed_twice(found, names)
    refused = {site: why for site, why in found.items() if isinstance(why, str)}
    if refused:
        raise _refusal(refused, example is not None)
    return {site.layer: source for site, source in found.items() if not isinstance(source, str)}


def _in_order(site: Site, found: nn.Module | None, names: Names) -> Finding:
    if len(site.names) > 1:
        return "is used in several places"
    if found is None:
        return "has no layer registered before it"
    return _checked(site, found, f"comes after {_name(found, names)}", len(names[found]))


def _in_forward(site: Site, seen: Observation, names: Names) -> Finding:
    taken = seen.inputs.get(site.layer)
    if taken is None:
        return "is not called by the example in eval mode"
    if seen.calls[site.layer] > 1:
        return f"is called {seen.calls[site.layer]} times in a forward"
    outputs = [o for o in taken.outputs if not _passes_on(o)]
    if not outputs:
        return f"is fed by {_origin(taken, names)}"
    last = next((o for o in reversed(outputs) if o.passed_on), outputs[0])
    fed = f"is fed by {_name(last.module, names)}"
    source = _checked(site, last.module, fed, seen.calls[last.module])
    return source if isinstance(source, str) else _disturbed(taken, last, seen, fed) or source


def _passes_on(output: Output) -> bool:
    """Whether this is no more than the end of modules that never change what they are given."""
    return output.passed_on and type(output.module) in (nn.Identity, nn.Sequential)


def _origin(taken: Input, names: Names) -> str:
    if taken.given:
        return "the model's own input"
    what = f"the result of {taken.operation}" if taken.operation else "a tensor"
    after = "" if taken.last is None else f"; the last one called before is {names[taken.last][0]}"
    return f"{what}, which is the output of no layer{after}"


def _disturbed(taken: Input, output: Output, seen: Observation, fed: str) -> str | None:
    """What happens to the output of a possible source on its way to the norm."""
    if taken.version != output.version:
        return f"{fed}, whose output {taken.operation or 'an operation'} changes in place before"
    if output.module in seen.replaced:
        return f"{fed}, whose output is replaced by a forward hook"
    if taken.left_alone:
        return f"{fed}, but through {taken.left_alone}, which may change it in training"
    return None


def _checked(site: Site, source: nn.Module, how: str, times: int) -> Finding:
    if isinstance(site.layer, _LazyNormBase):
        return "is lazy and has no channels yet: run the model once before"
    why = obstacle(source, site.layer.num_features)
    if why is not None:
        return f"{how}, which {why}"
    if times > 1:
        return f"{how}, which is used {times} times"
    assert isinstance(source, Source)
    return source


def _claimed_twice(found: dict[Site, Finding], names: Names) -> dict[Site, Finding]:
    claims: dict[Source, list[Site]] = {}
    for site, source in found.items():
        if not isinstance(source, str):
            claims.setdefault(source, []).append(site)
    return {
        site: f"shares its source, {_name(source, names)}, with "
        + ", ".join(other.names[0] for other in sites if other is not site)
        for source, sites in claims.items()
        if len(sites) > 1
        for site in sites
    }


def _names(model: nn.Module) -> Names:
    names: Names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _name(module: nn.Module, names: Names) -> str:
    return " = ".join(names[module]) or "the model itself"


def _refusal(refused: dict[Site, str], observed: bool) -> ConversionError:
    lines = "\n".join(f"  {site} {why}" for site, why in refused.items())
    settle = "" if observed else "An input of the model, as example=..., would settle it. "
    return ConversionError(
        "These layers take no output of a linear or convolution layer of their own, as far as can "
        f"be seen:\n{lines}\nNothing was changed. {settle}Leave them as they are with exclude=..., "
        "or convert them with compensation='none', which needs no source."
    )
