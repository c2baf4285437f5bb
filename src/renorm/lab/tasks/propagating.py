"""Fresh nets, measured instead of trained: how signals and gradients propagate through them."""

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab import models
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import Setting
from renorm.lab.tasks.base import Metric, Outcome, Plan, Task
from renorm.measure import Propagation, Site, propagation
from renorm.measure.prediction import Prediction, predicted
from renorm.report.records import Record

OUTPUTS = 10
_SUMMARY = (
    "cosine",
    "stable_rank",
    "contrast",
    "activation_growth",
    "gradient_ratio",
    "gradient_growth",
)


class Propagating(Task):
    """A net with a normalizer at initialization, one batch of Gaussian numbers, a linear loss.

    The loss is the outputs times Gaussian numbers, summed. Nothing is trained; the batch size is
    how many examples there are. The figures are those of a ``renorm.measure.Prediction``, and by
    the place l of a layer, from 1 on:

    - ``cosine l``: of two examples, at the activation l.
    - ``growth l``: of the squared gradient, backward through hidden layer l.
    - ``stream l``: mean square of what block l of a residual net gives.

    Args:
        shape: of an example.
        model: name of the net.
    """

    metric: ClassVar[Metric] = Metric(
        "dissimilarity", "1 less the cosine of two examples' last activations", percent=False
    )
    conditions: ClassVar[tuple[str, ...]] = ("iid",)

    def __init__(self, shape: tuple[int, ...], model: str) -> None:
        self._shape, self._model = shape, model

    def check(self, plan: Plan) -> None:
        """Build the net.

        Raises:
            ArgumentError: another condition than iid, a batch of one example, or a normalizer that
                does not fit the net.
        """
        if plan.condition.name != "iid":
            raise ArgumentError(
                f"A fresh net is measured by one batch as a whole, got the condition "
                f"{plan.condition.name!r}. Use iid."
            )
        if plan.specification.batch_size < 2:
            raise ArgumentError("A batch has at least 2 examples, which are compared, got 1.")
        with isolated(plan.specification.seed):
            self._net(plan)

    def train(self, plan: Plan) -> Outcome:
        """Measure once."""
        net, x = self._net(plan), self._inputs(plan)
        cotangent = torch.randn(len(x), OUTPUTS)

        def loss(output: Tensor, batch: Tensor) -> Tensor:
            return (output * cotangent).sum()

        found = propagation(net, x, loss, similarity="everywhere")
        score = None if found.cosine is None else 1 - found.cosine
        return Outcome(score=score, figures=tuple(figures_of(plan.normalizer.name, found)))

    def _net(self, plan: Plan) -> nn.Module:
        net = models.find(self._model).build(self._shape, OUTPUTS)
        setting = Setting(None, plan.specification.steps, torch.zeros(2, *self._shape))
        return plan.normalizer.apply(net, setting)

    def _inputs(self, plan: Plan) -> Tensor:
        return torch.randn(plan.specification.batch_size, *self._shape)


def prediction_of(record: Record) -> Prediction:
    """The prediction that the figures of a run of ``Propagating`` are of."""
    found, specification = dict(record.figures), record.specification
    summary = {name: found.get(name) for name in _SUMMARY}
    finite = bool(found["finite"])
    return Prediction(
        specification.normalizer, 1, specification.batch_size, **summary, finite=finite
    )


def figures_of(normalizer: str, found: Propagation) -> Iterator[tuple[str, float]]:
    """What ``Propagating`` keeps, those that are finite."""
    summary = predicted(normalizer, [found])
    yield "finite", float(summary.finite)
    named: list[tuple[str, float | None]] = [(name, getattr(summary, name)) for name in _SUMMARY]
    named += [(f"cosine {i}", site.cosine) for i, site in enumerate(_activations(found), 1)]
    hidden = found.hidden
    for i, (site, after) in enumerate(pairwise(hidden[1:]), 2):
        if site.gradient_square is not None and after.gradient_square:
            named.append((f"growth {i}", site.gradient_square / after.gradient_square))
    # a residual net has a layer, and two in each block, whose first takes the stream
    named += [(f"stream {i}", site.mean_square_in) for i, site in enumerate(hidden[3::2], 1)]
    yield from ((name, value) for name, value in named if value is not None)


def _activations(found: Propagation) -> tuple[Site, ...]:
    """The activations, or the normalizers that contain them."""
    return found.of("activation") or found.of("norm")
