"""Which tensors the modules of a model pass to each other, seen in one forward."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from renorm.errors import ArgumentError
from renorm.nn.undisturbed import restored, undisturbed


class Output(NamedTuple):
    """A tensor that came out of a module."""

    module: nn.Module
    passed_on: bool  # the same object had gone in
    version: int


class Input(NamedTuple):
    """A tensor that went into a norm, and what had happened to it by then."""

    given: bool  # to the model itself
    version: int
    outputs: tuple[Output, ...]  # in the order in which calls ended: inner modules first
    operation: str | None  # the function that last made or changed it
    left_alone: str | None  # a function that gave it back as it took it
    last: nn.Module | None  # whose call had ended last


class Observation(TorchFunctionMode):
    """What the modules and functions of a forward took and gave; tensors are told by identity.

    Every tensor seen is kept, so that no two of them are the same object.
    """

    def __init__(self, example: Any) -> None:
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self.inputs: dict[nn.Module, Input] = {}
        self.replaced: set[nn.Module] = set()  # by a hook: the output is not what was computed
        self._given = {id(x) for x in _tensors(example)}
        self._outputs: defaultdict[int, list[Output]] = defaultdict(list)
        self._operations: dict[int, str] = {}
        self._left_alone: dict[int, str] = {}
        self._computed: dict[nn.Module, Any] = {}
        self._last: nn.Module | None = None
        self._kept: list[Tensor] = list(_tensors(example))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run a function of torch, and note what it gives."""
        taken = {id(x): _version(x) for x in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        name = resolve_name(func) or getattr(func, "__name__", "an operation")
        for x in _tensors(result):
            self._kept.append(x)
            if taken.get(id(x)) != _version(x):
                self._operations[id(x)] = name
            elif name.startswith("torch.nn.functional."):
                self._left_alone[id(x)] = name
        return result

    @contextlib.contextmanager
    def hooks(self, model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
        """See every call of a module."""
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                first = module.register_forward_hook(self._note_computed, prepend=True)
                stack.callback(first.remove)
                last = module.register_forward_hook(self._note_output, with_kwargs=True)
                stack.callback(last.remove)
            for layer in norms:
                handle = layer.register_forward_pre_hook(self._note_input, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _note_input(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        if isinstance(x, Tensor):  # else the forward says what is wrong
            self._kept.append(x)
            self.inputs[layer] = Input(
                given=id(x) in self._given,
                version=_version(x),
                outputs=tuple(self._outputs[id(x)]),
                operation=self._operations.get(id(x)),
                left_alone=self._left_alone.get(id(x)),
                last=self._last,
            )

    def _note_computed(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._computed[module] = output

    def _note_output(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.calls[module] += 1
        self._last = module
        if self._computed.pop(module, None) is not output:
            self.replaced.add(module)
        taken = {id(x) for x in _tensors((args, kwargs))}
        for x in _tensors(output):
            self._outputs[id(x)].append(Output(module, id(x) in taken, _version(x)))
            self._kept.append(x)


def observe(model: nn.Module, norms: Sequence[_BatchNorm], example: Any) -> Observation:
    """Run the model once in eval mode, without gradients, and leave it as it was.

    The inputs and outputs of all modules are held until the observation is dropped, as in a
    training forward.

    Args:
        model: initialized.
        norms: the layers of which inputs are noted.
        example: a tensor, a tuple or list of positional arguments, or a dict of keyword
            arguments, on the model's device.

    Raises:
        ArgumentError: an example of another type, one with which the model does not run, or a
            lazy model, which the forward would initialize.
    """
    args, kwargs = _arguments(example)
    lazy = [n for n, m in model.named_modules() if isinstance(m, LazyModuleMixin)]
    if lazy:
        raise ArgumentError(
            f"The example would initialize lazy layers of the model: {', '.join(lazy)}. Run the "
            "model once before it is converted."
        )
    seen = Observation(example)
    buffers = [b for b in model.buffers() if b.layout is torch.strided]
    with (
        undisturbed(model),
        torch.inference_mode(False),
        torch.no_grad(),
        restored(buffers),
        seen.hooks(model, norms),
        seen,
    ):
        for module in model.modules():
            module.training = False  # not eval(), which a model may have overridden
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise ArgumentError(
                f"The example did not run through {type(model).__name__}: "
                f"{type(error).__name__}: {error}\nNothing was changed. Give example= a tensor, a "
                "tuple of positional arguments or a dict of keyword arguments, on the model's "
                "device, with which model.eval() runs."
            ) from error
    return seen


def _arguments(example: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), example
    if isinstance(example, tuple | list):
        return example, {}
    raise ArgumentError(
        "example is a tensor, a tuple or list of positional arguments, or a dict of keyword "
        f"arguments, got {type(example).__name__}."
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # inference tensors have none
