"""How smooth the loss is along the gradient: its range, its gradients, its effective smoothness."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from renorm.errors import ArgumentError
from renorm.measure.passes import Forward
from renorm.measure.points import Mode, Point, Points, Tensors, cosine, distance, norm
from renorm.measure.records import MODEL, Landscape
from renorm.measure.surveying import Loss

RANGES = {"vgg": (1 / 2, 4.0), "linear": (1 / 100, 30.0)}


def landscape(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    *,
    step_sizes: Iterable[float],
    mode: Mode = "train",
    forward: Forward | None = None,
) -> Landscape:
    """Loss and gradient on one batch along the negative gradient; the model stays as it is.

    With L the loss on the batch, theta the parameters with requires_grad, g = grad L(theta), and
    theta_s = theta - s * g for each step size s::

        losses        L(theta_s)
        distances     ||g - grad L(theta_s)||, the predictiveness of the gradient
        smoothness    max over s of ||g - grad L(theta_s)|| / ||theta - theta_s||

    The gradient is that of backward, so for batch renorm r and d are constants of it, while the
    losses are with the r and d of their place. All points are evaluated from one state: buffers
    do not move from point to point, and dropout draws the same mask at each. Where parameters run
    so far off that a loss or a gradient is not finite, the figure is infinite, and nothing is
    raised.

    Parameters, their ``grad``, buffers, modes, hooks, attributes and the random states of Python,
    NumPy and torch are afterwards bit for bit as they were, after an exception or Ctrl-C too.
    Hooks of the model are called, but a ``Monitor`` does not see these forwards; what user code
    changes elsewhere is not undone. Compiled and
    DDP models run uncompiled and alone, and layers of this package share nothing with other
    processes. Cross-iteration layers begin an empty window at each point, where they are as batch
    norm. It takes a forward and a backward for each step size, and one for theta.

    Args:
        model: in any mode.
        batch: a tensor; a tuple or list, of which the first element is the input; a dict of
            keyword arguments; or anything that ``forward`` takes. On the model's device.
        loss: ``(output, batch) -> a scalar tensor``, as in training. A penalty in it on the
            parameters of ``model`` is differentiated, too.
        step_sizes: s, each above 0; ``step_range`` has those of the paper.
        mode: ``"train"``: batch norm normalizes by the batch. A model in train mode is taken as it
            is, with what it has in eval mode; another one by its ``train()``. ``"eval"``: all of
            it in eval mode, so batch norm is a fixed affine map and the landscape another one.
        forward: ``(model, batch) -> output``, for any other way to call the model.

    Raises:
        ArgumentError: no batch, no step size or one that is not positive and finite, no parameter
            with requires_grad that the loss depends on, a loss that is no single number, one that
            is not finite at theta, or a model under fully_shard.

    Source: Santurkar et al. 2018 (arXiv 1805.11604), section 3.1.

    In training, every few steps, of the batch that the step is about to be taken with:

    >>> import torch
    >>> from torch.nn import functional as F
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> def loss(output, batch):
    ...     return F.cross_entropy(output, batch[1])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> course = []
    >>> for step in range(20):
    ...     batch = torch.randn(16, 3), torch.randint(2, (16,))
    ...     if step % 10 == 0:
    ...         course.append(landscape(model, batch, loss, step_sizes=step_range(0.1)))
    ...     optimizer.zero_grad()
    ...     loss(model(batch[0]), batch).backward()
    ...     optimizer.step()
    >>> [len(found.losses) for found in course]
    [8, 8]
    >>> all(low <= high for low, high in (found.loss_range for found in course))
    True
    """
    sizes = _checked(step_sizes)
    points = Points(model, batch, loss, mode, forward)
    here = points.here()
    there = [_moved(points, here, size) for size in sizes]
    moves = [length for _, length in there]
    distances = tuple(distance(here.gradient, point.gradient) for point, _ in there)
    slopes = [d / move for d, move in zip(distances, moves, strict=True) if move > 0]
    return Landscape(
        layer=MODEL,
        mode=mode,
        step_sizes=sizes,
        loss=here.loss,
        gradient_norm=norm(here.gradient.values()),
        losses=tuple(point.loss if math.isfinite(point.loss) else math.inf for point, _ in there),
        distances=distances,
        cosines=tuple(cosine(here.gradient, point.gradient) for point, _ in there),
        smoothness=max(slopes, default=None),
    )


def step_range(
    lr: float, net: Literal["vgg", "linear"] = "vgg", count: int = 8
) -> tuple[float, ...]:
    """Step sizes over the range that the paper looks at, each the same multiple of the one before.

    From lr / 2 to 4 * lr for the VGG net, from lr / 100 to 30 * lr for the deep linear one. These
    ends are as we know them, not quoted from the paper; the number of sizes between them is ours.

    Args:
        lr: learning rate of the training, above 0.
        net: ``"vgg"`` or ``"linear"``.
        count: step sizes, at least 2.

    Raises:
        ArgumentError: an argument outside the ranges above.

    >>> step_range(0.1, count=4)
    (0.05, 0.1, 0.2, 0.4)
    """
    if not _positive(lr):
        raise ArgumentError(f"A learning rate is above 0 and finite, got {lr!r}.")
    if net not in RANGES:
        raise ArgumentError(f"net is one of {', '.join(RANGES)}, got {net!r}.")
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise ArgumentError(f"count is how many step sizes to take, at least 2, got {count!r}.")
    low, high = RANGES[net]
    ratio = (high / low) ** (1 / (count - 1))
    return tuple(lr * low * ratio**i for i in range(count))


def _moved(points: Points, here: Point, size: float) -> tuple[Point, float]:
    """The point a step away, and how far that is, as the parameters' dtype rounds it."""
    own: Tensors = points.parameters
    moved = {name: p - size * here.gradient[name] for name, p in own.items()}
    return points.at(moved), distance(moved, own)


def _checked(step_sizes: Iterable[float]) -> tuple[float, ...]:
    sizes = tuple(step_sizes) if isinstance(step_sizes, Iterable) else (step_sizes,)
    if not sizes or not all(_positive(one) for one in sizes):
        raise ArgumentError(
            "step_sizes are lengths of steps along the negative gradient, above 0 and finite, at "
            f"least one, got {sizes}. renorm.measure.step_range(lr) has those of the paper."
        )
    return tuple(float(one) for one in sizes)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
