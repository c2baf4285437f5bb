"""Which modules of a model run one directly after the other: certainly, or most likely."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from renorm.nn.hooks import watched


class Place(NamedTuple):
    """An entry of an nn.Sequential."""

    container: nn.Sequential
    key: str
    module: nn.Module

    def put(self, module: nn.Module) -> None:
        """Have this entry be another module; the key stays."""
        self.container.add_module(self.key, module)


def uses(model: nn.Module) -> Counter[nn.Module]:
    """How many places of the module tree hold each module; the model itself is in none."""
    return Counter(
        child
        for parent in model.modules()
        for child in parent._modules.values()
        if child is not None
    )


def neighbours(model: nn.Module) -> Iterator[tuple[Place, Place]]:
    """Every two entries of which the second takes what the first gives, and nothing else does.

    They are neighbours in an nn.Sequential, also across the end of one inside another. A
    subclass with a forward of its own may run its entries otherwise, so it shows none; nor does
    one inside that is used elsewhere too, or watched by hooks, show its ends.
    """
    used = uses(model)
    seen: set[tuple[nn.Module, str]] = set()
    for container in model.modules():
        if not _runs_in_order(container):
            continue
        for first, second in pairwise(_entries(container, used)):
            if (first.container, first.key) not in seen:
                seen.add((first.container, first.key))
                yield first, second


def predecessor(model: nn.Module) -> Callable[[nn.Module], nn.Module | None]:
    """What most likely runs directly before a module, by the order in which the model has them.

    That is its neighbour in an nn.Sequential, else the child that its parent registered just
    before, as authors write conv1, bn1, conv2, bn2. An nn.Identity is passed over, and of an
    nn.Sequential it is the last entry that runs. A guess: only a forward can tell.
    """
    used = uses(model)
    before: dict[nn.Module, nn.Module] = {}
    for parent in model.modules():
        children = [child for child in parent._modules.values() if child is not None]
        before |= {second: first for first, second in pairwise(children)}
    before |= {second.module: first.module for first, second in neighbours(model)}

    def find(module: nn.Module) -> nn.Module | None:
        found = before.get(module)
        while found is not None and used[found] == 1:
            if _runs_in_order(found) and found._modules:
                found = list(found._modules.values())[-1]
            elif type(found) is nn.Identity:
                found = before.get(found)
            else:
                break
        return found

    return find


def _entries(container: nn.Module, used: Counter[nn.Module]) -> Iterator[Place]:
    assert isinstance(container, nn.Sequential)
    for key, child in container._modules.items():
        assert child is not None
        if _runs_in_order(child) and used[child] == 1 and not watched(child):
            yield from _entries(child, used)
        else:
            yield Place(container, key, child)


def _runs_in_order(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in module.__dict__
        and None not in module._modules.values()
    )
