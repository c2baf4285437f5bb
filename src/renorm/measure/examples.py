"""Batches and outputs as trees of tensors: the examples of one, and those of several mixed."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors in tensors, tuples, lists, mappings and dataclasses, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)
    elif _is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))


def outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a model returned, in order."""
    return [t.detach() for t in leaves(output) if t.is_floating_point()]


def size(batch: Any) -> int | None:
    """N, the length of all tensors of the batch; None if they do not agree or have none."""
    lengths = {len(t) if t.dim() else None for t in leaves(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def count(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor, 0 if it has none."""
    return next((len(t) for t in leaves(batch) if t.dim()), 0)


def taken(batch: Any, indices: Sequence[int]) -> Any:
    """A batch of these of its examples, in this order; indices may repeat."""

    def chosen(t: Tensor) -> Tensor:
        return t[torch.as_tensor(indices, dtype=torch.int64, device=t.device)]

    return _mapped([batch], lambda parts: chosen(parts[0]))


def joined(batches: Sequence[Any]) -> Any:
    """All examples of several batches of one form as one batch."""
    return _mapped(batches, torch.cat)


def cropped(batch: Any, size: Sequence[int], window: tuple[slice, ...]) -> Any:
    """The batch with a window cut out of all tensors whose last dimensions are of this size."""
    last = tuple(size)

    def cut(parts: list[Tensor]) -> Tensor:
        t = parts[0]
        return t[(..., *window)] if tuple(t.shape[-len(last) :]) == last else t

    return _mapped([batch], cut)


def alike(batches: Sequence[Any]) -> bool:
    """Whether batches can be joined: all that differs between them is N and the examples."""
    if any(size(batch) is None for batch in batches):
        return False
    forms = [_form(batch) for batch in batches]
    return all(form == forms[0] for form in forms)


def columns(parts: Sequence[Tensor]) -> Tensor:
    """(N, values) of tensors that have N rows each."""
    return torch.cat(list(parts), 1)


def _form(tree: Any) -> Any:
    """All of a tree but the values of its tensors and their first dimension."""
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device, tree.shape[1:]
    if isinstance(tree, Mapping):
        return {key: _form(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return [_form(value) for value in tree]
    if _is_dataclass(tree):
        return {f.name: _form(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    return tree if isinstance(tree, str | int | float | None) else id(tree)


def _mapped(trees: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """A tree like the first, with its tensors joined to those at the same places."""
    first = trees[0]
    if isinstance(first, Tensor):
        return join(list(trees))
    if isinstance(first, Mapping):
        values = {k: _mapped([tree[k] for tree in trees], join) for k in first}
        return values if type(first) is dict else _like(first, values)
    if isinstance(first, tuple | list):
        parts = [_mapped(each, join) for each in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if _is_dataclass(first):
        new = copy.copy(first)  # not by its __init__, which may take other arguments
        for name in (field.name for field in dataclasses.fields(first)):
            value = _mapped([getattr(tree, name) for tree in trees], join)
            object.__setattr__(new, name, value)  # of one that is frozen too
        return new
    return first


def _like(mapping: Any, values: dict) -> Any:
    new = mapping.copy()  # an OrderedDict, or a mapping with more to it than its entries
    new.update(values)
    return new


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)
