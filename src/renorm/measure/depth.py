"""How much a survey draws and keeps."""

from typing import NamedTuple

from renorm.errors import ArgumentError


class Depth(NamedTuple):
    """Bounds on what is kept and tried; what a survey holds does not grow with the batches.

    Args:
        name: of the depth.
        everything: whether all batches are compared in three modes, or the kept ones.
        every: one in so many of these batches is compared.
        batches: kept whole, for what is tried with them.
        rows: groups of a layer whose statistics are kept.
        example_batches: batches of which the means of examples are kept.
        examples: of them, in each.
        channels: whose means of examples are kept, in each layer.
        permutations: of these examples.
        replacements: examples that are exchanged to see who else is moved.
        shuffles: of the kept batches.
        thorough: whether it may take many times longer than forwards over all batches.
    """

    name: str
    everything: bool
    every: int
    batches: int
    rows: int
    example_batches: int
    examples: int
    channels: int
    permutations: int
    replacements: int
    shuffles: int
    thorough: bool


_DEPTHS = {
    depth.name: depth
    for depth in (
        Depth("quick", False, 1, 4, 16, 16, 32, 8, 199, 1, 1, False),
        Depth("standard", True, 2, 8, 32, 64, 32, 16, 499, 1, 1, False),
        Depth("deep", True, 1, 16, 256, 128, 64, 32, 1999, 4, 8, True),
    )
}


def depth_of(name: str) -> Depth:
    """The depth of this name.

    Raises:
        ArgumentError: there is none.
    """
    if name not in _DEPTHS:
        raise ArgumentError(f"depth is {', '.join(map(repr, _DEPTHS))}, got {name!r}.")
    return _DEPTHS[name]
