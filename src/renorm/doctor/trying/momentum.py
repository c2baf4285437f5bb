"""Which momentum averages statistics over a run of some length."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError

PAPER = 0.01  # of batch renorm; Ioffe 2017, section 4.1


def spanning(steps: int) -> float:
    """The momentum with which an average over so many batches is as precise as the plain one.

    An exponential average of momentum m over independent batches has the variance m / (2 - m) of
    one, the plain average over n of them 1 / n: m = 2 / (n + 1), to three digits.

    >>> spanning(50), spanning(199)
    (0.0392, 0.01)
    """
    return float(f"{2 / (steps + 1):.3g}")


def of_reference(steps: int) -> float:
    """The momentum of batch renorm for a run: the paper's, or what so few steps need; up to 0.1.

    >>> of_reference(50), of_reference(10_000), of_reference(5)
    (0.0392, 0.01, 0.1)
    """
    return min(max(PAPER, spanning(steps)), 0.1)


def longer(momentum: float, steps: int) -> float | None:
    """A momentum that averages longer than this one, and settles within so many steps.

    A tenth of it, but no less than ``spanning(steps)``, below which the average could not let go
    of where it began. One above 0.5 was most likely meant as the part that is kept, as other
    libraries have it: for 0.99 it is 0.01 that is aimed at.

    Returns:
        None if that is not below the momentum there is, so nothing can be tried.

    >>> longer(0.1, 50), longer(0.1, 1000), longer(0.99, 500), longer(0.01, 50)
    (0.0392, 0.01, 0.01, None)
    """
    aim = 1 - momentum if momentum > 0.5 else momentum / 10
    found = float(f"{max(aim, spanning(steps)):.3g}")
    return found if found < momentum else None


def averaging(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers, by name, whose running statistics move by a momentum in training."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.momentum
        and not getattr(module, "frozen", False)
    }


def lengthen(model: nn.Module, steps: int) -> dict[str, float]:
    """Set the momentum of every layer that averages over too few batches.

    Returns:
        What was set, by the names of the layers.

    Raises:
        ArgumentError: there is no such layer.
    """
    before = {name: float(layer.momentum or 0) for name, layer in averaging(model).items()}
    longest = {name: longer(momentum, steps) for name, momentum in before.items()}
    changed = {name: momentum for name, momentum in longest.items() if momentum is not None}
    if not changed:
        present = ", ".join(f"{m:g}" for m in sorted(set(before.values())))
        has = f"theirs is {present}" if present else "none has one"
        raise ArgumentError(
            f"No layer averages over fewer than {steps} batches by its momentum: {has}. Give more "
            "steps."
        )
    for name, momentum in changed.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, _BatchNorm)
        layer.momentum = momentum
    return changed
