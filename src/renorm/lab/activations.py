"""Which activations take what the norms of a model give, seen in one forward."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from renorm.errors import ArgumentError
from renorm.nn.undisturbed import undisturbed

ACTIVATIONS = (
    nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU,
    nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh,
)  # fmt: skip
FUNCTIONS = {cls.__name__.lower().replace("leakyrelu", "leaky_relu") for cls in ACTIVATIONS}


@dataclass
class Seen:
    """What a forward showed.

    Args:
        dims: spatial dimensions of what each norm takes; none for a norm that is not called.
        after: activation module -> for each of its calls, the norm whose output it took, or None.
        functions: (norm, function) for each activation that is no module.
    """

    dims: dict[nn.Module, int] = field(default_factory=dict)
    after: dict[nn.Module, list[nn.Module | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    functions: list[tuple[nn.Module, str]] = field(default_factory=list)


def look(model: nn.Module, norms: Iterable[_BatchNorm], example: Tensor) -> Seen:
    """Run the model once in eval mode; it is afterwards as it was.

    Args:
        model: in any mode.
        norms: layers of the model.
        example: an input of the model.
    """
    watch = _Watch()
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for norm in norms:
            handle = norm.register_forward_hook(watch.normalized)
            stack.callback(handle.remove)
        for module in model.modules():
            module.training = False  # not eval(), which a model may have overridden
            if isinstance(module, ACTIVATIONS):
                before = module.register_forward_pre_hook(watch.enter)
                stack.callback(before.remove)
                behind = module.register_forward_hook(watch.leave)
                stack.callback(behind.remove)
        stack.enter_context(watch)
        model(example)
    return watch.seen


def redundant(model: nn.Module, seen: Seen) -> list[nn.Module]:
    """The activations to leave out where the norms are replaced by layers that contain one.

    Raises:
        ArgumentError: an activation is a function, or a module that serves other places too.
    """
    names = {module: name for name, module in model.named_modules()}
    if seen.functions:
        norm, function = seen.functions[0]
        raise ArgumentError(
            f"A normalizer that contains the nonlinearity takes the place of a norm and the "
            f"activation after it, but {names[norm]} is followed by the function {function}, which "
            "cannot be left out. Make it a module, such as nn.ReLU(), in the model."
        )
    found = []
    for module, calls in seen.after.items():
        taken = [norm for norm in calls if norm is not None]
        if taken and len(taken) < len(calls):
            raise ArgumentError(
                f"A normalizer that contains the nonlinearity takes the place of a norm and the "
                f"activation after it, but {names[module]}, after {names[taken[0]]}, serves "
                "another place of the model too. Give each place a module of its own."
            )
        found += [module] if taken else []
    return found


class _Watch(TorchFunctionMode):
    """Tell tensors by identity; every one seen is kept, so that no two are the same object."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self._outputs: dict[int, tuple[nn.Module, int, Tensor]] = {}
        self._inside = 0  # activation modules that are being called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run a function of torch; note an activation that is no module."""
        name = getattr(func, "__name__", "").rstrip("_")
        if name in FUNCTIONS and not self._inside and args:
            norm = self._origin(args[0])
            if norm is not None:
                self.seen.functions.append((norm, name))
        return func(*args, **(kwargs or {}))

    def normalized(self, norm: nn.Module, args: tuple, output: Tensor) -> None:
        """Note what a norm took and gave."""
        self.seen.dims[norm] = output.dim() - 2
        self._outputs[id(output)] = norm, output._version, output

    def enter(self, module: nn.Module, args: tuple) -> None:
        """Note what an activation takes."""
        self.seen.after[module].append(self._origin(args[0]) if args else None)
        self._inside += 1

    def leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """An activation is done."""
        self._inside -= 1

    def _origin(self, x: Any) -> nn.Module | None:
        """The norm that gave this very tensor, unless it was changed in place since."""
        norm, version, kept = self._outputs.get(id(x), (None, 0, None))
        return norm if kept is x and isinstance(x, Tensor) and x._version == version else None
