"""The loss of a model and its gradient at any parameters; the model keeps its own."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from renorm.errors import ArgumentError
from renorm.measure.apart import apart
from renorm.measure.monitoring import set_aside
from renorm.measure.passes import Forward
from renorm.measure.quantity import number
from renorm.measure.surveying import Loss, unwrapped
from renorm.measure.user_calls import told_forward, told_loss
from renorm.nn import BatchRenorm

Mode = Literal["train", "eval"]
Tensors = Mapping[str, Tensor]
R = TypeVar("R")


class Point(NamedTuple):
    """What the loss is at some parameters.

    Args:
        loss: may be infinite or NaN.
        gradient: for each of ``Points.parameters``; 0 for one that the loss does not depend on.
    """

    loss: float
    gradient: dict[str, Tensor]


class Points:
    """The loss on a batch as a function of the parameters that learn.

    All points are evaluated from the same state: buffers, random states and the windows of
    cross-iteration layers begin anew with each, so dropout draws the same mask. Running
    statistics are read and not moved.

    Args:
        model, batch, loss, mode, forward: as ``landscape`` takes them.

    Raises:
        ArgumentError: as ``landscape``, before anything is run.
    """

    def __init__(
        self, model: nn.Module, batch: Any, loss: Loss, mode: str, forward: Forward | None
    ) -> None:
        _check(batch, loss, mode, forward)
        self.model = unwrapped(model)
        _check_whole(self.model)
        _check_values(self.model)
        self.parameters = {
            name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad
        }
        if not self.parameters:
            raise ArgumentError(
                f"{type(self.model).__name__} has no parameter that learns, so the loss has no "
                "gradient to look along. Set requires_grad for those that training moves."
            )
        self._batch, self._mode = batch, mode
        self._forward, self._loss = told_forward(forward), told_loss(loss)

    def at(self, parameters: Tensors | None = None) -> Point:
        """The loss and its gradient where these parameters stand for the model's own.

        Args:
            parameters: by name; the model's own for those left out.
        """
        return self.run(self._point, parameters)

    def here(self) -> Point:
        """The same at the model's own parameters.

        Raises:
            ArgumentError: the loss or its gradient is not finite there.
        """
        point = self.at()
        if not _finite(point):
            raise ArgumentError(
                f"The loss at the model's parameters is {point.loss}, and it or its gradient is "
                "not finite, so there is no direction to look along. Look before the training "
                "diverges, or find what makes the loss overflow in the batch."
            )
        return point

    def run(
        self,
        work: Callable[[Tensor, dict[str, Tensor]], R],
        parameters: Tensors | None = None,
    ) -> R:
        """``work(loss, parameters)``, done while these parameters stand for the model's own.

        A backward that is part of it finds them too when it repeats forwards (checkpointing).
        """
        with apart(self.model), torch.inference_mode(False), torch.enable_grad():
            _set_mode(self.model, self._mode)
            set_aside(self.model)  # these forwards are no part of the training that they watch
            given = {**self.parameters, **(parameters or {})}
            used = {name: given[name].clone().requires_grad_() for name in self.parameters}
            buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
            inside = _Inside(self.model, lambda: work(self._value(), used))
            tensors = {f"model.{name}": t for name, t in (used | buffers).items()}
            return torch.func.functional_call(inside, tensors, ())

    def _value(self) -> Tensor:
        """The loss, of the batch, as a tensor that a gradient can be taken of."""
        value = self._loss(self._forward(self.model, self._batch), self._batch)
        number(value)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ArgumentError(
                "The loss does not depend on a parameter that learns, so it has no gradient, got "
                f"{value!r}. Return it as the tensor that backward() is called on in training, "
                "without item(), detach() or no_grad()."
            )
        return value.reshape(())

    def _point(self, value: Tensor, parameters: dict[str, Tensor]) -> Point:
        found = torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        gradient = {name: g.detach() for name, g in zip(parameters, found, strict=True)}
        return Point(float(value.detach()), gradient)


class _Inside(nn.Module):
    """Something to do while ``functional_call`` has put other tensors into the model."""

    def __init__(self, model: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self._work = model, work

    def forward(self) -> Any:
        return self._work()


def norm(tensors: Iterable[Tensor]) -> float:
    """The l2 norm of all values of the tensors together; infinite where one is not finite."""
    parts = [torch.linalg.vector_norm(t, dtype=_wide(t)).cpu().double() for t in tensors]
    value = float(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0
    return value if value < torch.inf else torch.inf  # NaN is neither


def distance(left: Tensors, right: Tensors) -> float:
    """The l2 distance of tensors by name; infinite where one is not finite."""
    return norm(_wider(left[name]) - _wider(right[name]) for name in left)


def cosine(left: Tensors, right: Tensors) -> float | None:
    """The cosine of the angle between tensors by name; None where one is 0 or not finite."""
    lengths = norm(left.values()) * norm(right.values())
    if not 0 < lengths < torch.inf:
        return None
    product = sum(float((_wider(left[name]) * _wider(right[name])).sum()) for name in left)
    return max(-1.0, min(1.0, product / lengths))


def _wide(t: Tensor) -> torch.dtype:
    return t.dtype if t.device.type == "mps" else torch.float64  # it has no float64


def _wider(t: Tensor) -> Tensor:
    return t.to(_wide(t))


def _finite(point: Point) -> bool:
    return abs(point.loss) < torch.inf and norm(point.gradient.values()) < torch.inf


def _set_mode(model: nn.Module, mode: str) -> None:
    """Have the model as it trains, or all of it in eval mode; nothing moves statistics."""
    if mode == "eval":
        for module in model.modules():
            module.training = False  # not eval(), which a model may have overridden
    elif not model.training:
        model.train()  # which may keep layers in eval mode, as in the user's training
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        if isinstance(module, BatchRenorm):
            module._memory = type(module._memory)()


def _check(batch: Any, loss: Any, mode: str, forward: Any) -> None:
    if batch is None:
        raise ArgumentError(
            "There is no batch, got None. Give one, as the model takes it, with what the loss "
            "needs: a tensor, a tuple that begins with the input, or a dict of keyword arguments."
        )
    for name, given, call, optional in (
        ("loss", loss, "(output, batch) -> a number", False),
        ("forward", forward, "(model, batch) -> output", True),
    ):
        if not callable(given) and not (optional and given is None):
            raise ArgumentError(f"{name} is called, {call}, got {given!r}. Give a function.")
    if mode not in ("train", "eval"):
        raise ArgumentError(
            f"mode is 'train' or 'eval', got {mode!r}. In train mode batch norm normalizes by the "
            "batch, as the training sees it; in eval mode by its running statistics."
        )


def _check_whole(model: nn.Module) -> None:
    """Refuse a model of which this process has parts."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # else nothing is sharded
    if fsdp and any(isinstance(m, fsdp.FSDPModule) for m in model.modules()):
        raise ArgumentError(
            f"{type(model).__name__} is under fully_shard, so that no process has its parameters "
            "whole, to stand others in their place. Give a model that is not sharded."
        )


def _check_values(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, t in tensors if is_lazy(t) or t.is_meta]
    if missing:
        raise ArgumentError(
            f"These have no values yet: {', '.join(missing)}. Initialize the model by a forward, "
            "or load it from the meta device, first."
        )
