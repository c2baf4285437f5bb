"""Seeing what comes out of weights, normalizers and activations in a forward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from renorm.measure import signals
from renorm.measure.layers import normalizes
from renorm.measure.passes import version_of
from renorm.measure.propagated import Site
from renorm.measure.quantity import told
from renorm.measure.records import MODEL
from renorm.measure.signals import Moments
from renorm.nn.normalizers.base import Normalizer

_NAMES = tuple(
    name
    for line in (
        "celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu",
        "relu6 rrelu selu sigmoid silu softplus softsign tanh tanhshrink threshold",
    )
    for name in line.split()
)
ACTIVATIONS: dict[Any, str] = {
    getattr(place, spelled): name
    for place in (Tensor, torch, F)
    for name in _NAMES
    for spelled in (name, f"{name}_")
    if hasattr(place, spelled)
}
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, Normalizer)


def kind_of(module: nn.Module) -> str:
    """``"weights"`` or ``"norm"``; empty for modules that are neither."""
    if isinstance(module, _ConvNd | nn.Linear):
        return "weights"
    return "norm" if isinstance(module, _NORMS) or normalizes(module) else ""


class _Call(NamedTuple):
    """A call under way, of a module or an activation function."""

    name: str
    kind: str
    type: str
    taken: Moments | None = None  # of the input; None where there is no site


class Sites(TorchFunctionMode):
    """Sees the sites of one forward, in order.

    Weights and normalizers are modules; activations are calls of torch's functions, which those
    of its modules are too. An activation inside of a normalizer is part of that.

    Args:
        differentiates: whether gradients will be asked for; sites then begin a graph where there
            is none.
        everywhere: whether similarities are computed at all normalizers and activations, or at
            the penultimate one.
    """

    def __init__(self, differentiates: bool, everywhere: bool) -> None:
        super().__init__()
        self.found: list[Site] = []
        self.edges: dict[int, GradientEdge] = {}  # by the place of the site
        self.penultimate: int | None = None
        self._differentiates, self._everywhere = differentiates, everywhere
        self._calls: dict[tuple[str, str], int] = {}
        self._under_way: list[_Call] = []
        self._axis = 1  # of the channels, at the latest site
        self._given: tuple[Tensor, tuple[int, int], Moments] | None = None  # the latest output's
        self._latest: tuple[int, Tensor | None] | None = None
        self._activations: Tensor | None = None  # the penultimate ones

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Have the modules show their calls, and functions theirs."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    for handle in self._hooks(name or MODEL, module):
                        stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def similarity(self) -> tuple[float, float] | None:
        """Of the penultimate activations; None without any, or if all sites have theirs."""
        return None if self._activations is None else signals.similarity(self._activations)

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function."""
        kwargs = kwargs or {}
        name = ACTIVATIONS.get(func)
        x = args[0] if args else kwargs.get("input")
        if name is None or not _is_signal(x) or self._in_norm():
            return func(*args, **kwargs)
        layer = self._under_way[-1].name if self._under_way else MODEL
        taken = self._moments(x, self._axis)  # now, as x may be changed in place
        return self._met(_Call(layer, "activation", name, taken), taken, func(*args, **kwargs))

    def _hooks(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        kind, type = kind_of(module), type_before_parametrizations(module).__name__

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs.get("input", kwargs.get("x"))
            if not kind or not _is_signal(x) or self._in_norm():
                self._under_way.append(_Call(name, "", type))
                return
            if kind == "weights" and self._latest is not None:
                self.penultimate, self._activations = self._latest
            taken = self._moments(x, _axis_of(module, x))
            self._under_way.append(_Call(name, kind, type, taken))

        def end(module: nn.Module, args: tuple, output: Any) -> Any:
            call = self._under_way.pop()
            if call.taken is None or not _is_signal(output):
                return None
            self._axis = _axis_of(module, output)
            return self._met(call, call.taken, output)

        return [
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(end, always_call=True),  # after an error that is caught
        ]

    def _in_norm(self) -> bool:
        return any(call.kind == "norm" for call in self._under_way)

    def _moments(self, x: Tensor, axis: int) -> Moments:
        """Of a tensor, unless it is the latest output, whose are known."""
        key = (version_of(x), axis % x.dim())
        if self._given is None or self._given[0] is not x or self._given[1] != key:
            return signals.moments(x, axis)
        return self._given[2]

    def _met(self, call: _Call, taken: Moments, output: Tensor) -> Tensor:
        """Have a site; its output, with a graph if gradients are wanted."""
        if self._differentiates and torch.is_grad_enabled():
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()  # which may be changed in place
            self.edges[len(self.found)] = get_gradient_edge(output)
        alike = self._compared(output) if call.kind != "weights" else None
        given = signals.moments(output, self._axis)
        self._given = output, (version_of(output), self._axis % output.dim()), given
        key = (call.name, call.type)
        self._calls[key] = self._calls.get(key, -1) + 1
        self.found.append(
            Site(
                layer=call.name,
                kind=call.kind,
                type=call.type,
                call=self._calls[key],
                shape=tuple(output.shape),
                variance_in=told(taken.variance),
                mean_square_in=told(taken.mean_square),
                variance=told(given.variance),
                mean_square=told(given.mean_square),
                gradient_norm=None,
                gradient_square=None,
                cosine=None if alike is None else told(alike[0]),
                stable_rank=None if alike is None else told(alike[1]),
            )
        )
        return output

    def _compared(self, output: Tensor) -> tuple[float, float] | None:
        """The similarity of examples, or None if only the penultimate ones are compared."""
        kept = None if self._everywhere else output.detach().clone()
        self._latest = len(self.found), kept
        return signals.similarity(output) if self._everywhere else None


def _is_signal(x: Any) -> TypeGuard[Tensor]:
    return (
        isinstance(x, Tensor) and x.dim() >= 2 and x.is_floating_point() and x.numel() > 0
    ) and not x.is_meta


def _axis_of(module: nn.Module, x: Tensor) -> int:
    """The dimension of the channels."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 1 if len(module.normalized_shape) == x.dim() - 1 else x.dim() - 1
    return x.dim() - 1 if isinstance(module, nn.Linear) else 1
