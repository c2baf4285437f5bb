"""What each normalizer will do to a net, measured at initialization, without training."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure import examples
from renorm.measure.apart import host_generators
from renorm.measure.passes import Forward
from renorm.measure.prediction import Prediction, predicted, ranked
from renorm.measure.propagating import propagation
from renorm.measure.surveying import Loss

Progress = Callable[[str, int, int | None], Any]


def predict(
    build: Callable[[str], nn.Module],
    normalizers: Iterable[str],
    batch: Any,
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
    seeds: int = 3,
    progress: Progress | None = None,
) -> tuple[Prediction, ...]:
    """Follow signals and gradients through fresh nets with each normalizer, and rank these.

    ``prediction.ranked`` has the rule. The random states of Python, NumPy and torch are afterwards
    as they were.

    Args:
        build: (name of a normalizer) -> a new net with it, its weights drawn from torch's
            generator, which is seeded alike for all normalizers.
        normalizers: names, at least one; what they mean is up to ``build``.
        batch: as ``propagation`` takes it.
        loss: ``(output, batch) -> a number``; without, the outputs times Gaussian numbers, summed.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        seeds: how many draws of the weights, at least 1.
        progress: called after each draw with the normalizer, the draws done, and their number.

    Returns:
        One for each name, the best first.

    Raises:
        ArgumentError: no name, no seeds, or as ``propagation``.

    >>> from renorm.nn.normalizers.blocks import block
    >>> def build(name):
    ...     layers = [block(nn.Linear(16, 16), name) for _ in range(8)]
    ...     return nn.Sequential(*layers, nn.Linear(16, 1))
    >>> found = predict(build, ["layer_norm", "batch_norm"], torch.randn(32, 16))
    >>> [one.normalizer for one in found]
    ['batch_norm', 'layer_norm']
    """
    names = tuple(dict.fromkeys(normalizers))
    if not names:
        raise ArgumentError("There is no normalizer to predict. Give the names of some.")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ArgumentError(f"seeds is how many draws of the weights, at least 1, got {seeds!r}.")
    total, done, found = len(names) * seeds, 0, []
    for name in names:
        draws = []
        for seed in range(seeds):
            with host_generators(), torch.random.fork_rng():
                torch.manual_seed(seed)
                model = build(name)
                draws.append(propagation(model, batch, loss or _Linear(seed), forward=forward))
            done += 1
            if progress is not None:
                progress(name, done, total)
        found.append(predicted(name, draws))
    return ranked(found)


class _Linear:
    """Outputs times Gaussian numbers, the same at every call."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, output: Any, batch: Any) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        parts = [t for t in examples.leaves(output) if t.is_floating_point()]
        if not parts:
            raise ArgumentError(
                f"The outputs of the model have no floating point numbers, got "
                f"{type(output).__name__}. Give loss=, which takes the output and the batch."
            )
        return sum(
            ((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in parts),
            parts[0].new_zeros(()),
        )
