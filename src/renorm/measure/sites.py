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
from renorm.measure.propagated import Site
from renorm.measure.quantity import told
from renorm.measure.records import MODEL

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
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def kind_of(module: nn.Module) -> str:
    """``"weights"`` or ``"norm"``; empty for modules that are neither."""
    if isinstance(module, _ConvNd | nn.Linear):
        return "weights"
    return "norm" if isinstance(module, _NORMS) or normalizes(module) else ""


class _Call(NamedTuple):
    """A call of a module under way."""

    name: str
    kind: str
    variance: float  # of its input
    mean_square: float


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
        call = _call(layer, "activation", x, self._axis)  # now, as x may be changed in place
        return self._met(call, name, func(*args, **kwargs))

    def _hooks(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        kind = kind_of(module)

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs.get("input", kwargs.get("x"))
            if not kind or not _is_signal(x) or self._in_norm():
                self._under_way.append(_Call(name, "", 0.0, 0.0))
                return
            if kind == "weights" and self._latest is not None:
                self.penultimate, self._activations = self._latest
            self._under_way.append(_call(name, kind, x, _axis_of(module, x)))

        def end(module: nn.Module, args: tuple, output: Any) -> Any:
            call = self._under_way.pop()
            if not call.kind or not _is_signal(output):
                return None
            self._axis = _axis_of(module, output)
            return self._met(call, type_before_parametrizations(module).__name__, output)

        return [
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(end, always_call=True),  # after an error that is caught
        ]

    def _in_norm(self) -> bool:
        return any(call.kind == "norm" for call in self._under_way)

    def _met(self, call: _Call, type: str, output: Tensor) -> Tensor:
        """Have a site; its output, with a graph if gradients are wanted."""
        if self._differentiates and torch.is_grad_enabled():
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()  # which may be changed in place
            self.edges[len(self.found)] = get_gradient_edge(output)
        cosine = rank = None
        if call.kind != "weights":
            kept = None
            if self._everywhere:
                cosine, rank = signals.similarity(output)
            else:
                kept = output.detach().clone()
            self._latest = len(self.found), kept
        key = (call.name, type)
        self._calls[key] = self._calls.get(key, -1) + 1
        site = Site(
            layer=call.name,
            kind=call.kind,
            type=type,
            call=self._calls[key],
            shape=tuple(output.shape),
            variance_in=told(call.variance),
            mean_square_in=told(call.mean_square),
            variance=told(signals.variance(output, self._axis)),
            mean_square=told(signals.mean_square(output)),
            gradient_norm=None,
            gradient_square=None,
            cosine=None if cosine is None else told(cosine),
            stable_rank=None if rank is None else told(rank),
        )
        self.found.append(site)
        return output


def _call(name: str, kind: str, x: Tensor, axis: int) -> _Call:
    return _Call(name, kind, signals.variance(x, axis), signals.mean_square(x))


def _is_signal(x: Any) -> TypeGuard[Tensor]:
    return (
        isinstance(x, Tensor) and x.dim() >= 2 and x.is_floating_point() and x.numel() > 0
    ) and not x.is_meta


def _axis_of(module: nn.Module, x: Tensor) -> int:
    """The dimension of the channels."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return 1 if len(module.normalized_shape) == x.dim() - 1 else x.dim() - 1
    return x.dim() - 1 if isinstance(module, nn.Linear) else 1
