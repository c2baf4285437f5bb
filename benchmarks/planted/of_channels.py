"""What is wrong with single channels."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from planted import tables
from planted.case import Case, Patient, classified
from planted.ground import Ground
from planted.nets import Rows
from planted.of_statistics import norms
from planted.training import BATCH, LR, STEPS, accuracy, fit, healthy, tested, well

METRE = 1e6  # micrometres
PRUNED = 0.5
PENALTY, NEGLIGIBLE = 2e-2, 1e-2  # of the norms' weights


def pruned_filters(ground: Ground) -> Patient:
    """Half the filters of two convolutions were set to zero by their norm, and not taken out.

    The rest was trained on for a while.
    """
    model = healthy(ground)
    pruned = [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:3]
    for convolution in pruned:
        prune.ln_structured(convolution, "weight", PRUNED, n=2, dim=0)
    fit(model, ground.batches(BATCH, 3), STEPS // 2, LR / 10)
    for convolution in pruned:
        prune.remove(convolution, "weight")
    return Patient(model, ground.given(BATCH, 40), tested(model, ground), well(ground))


def slimmed(ground: Ground) -> Patient:
    """The norms' weights had an L1 penalty, which made many zero (network slimming).

    Source: Liu, Li, Shen, Huang, Yan and Zhang 2017 (arXiv 1708.06519).
    """
    model = ground.net()
    layers = norms(model)

    def sparse(output: Tensor, batch: Sequence[Tensor]) -> Tensor:
        return classified(output, batch) + PENALTY * sum(n.weight.abs().sum() for n in layers)

    fit(model, ground.batches(BATCH), loss=sparse)
    with torch.no_grad():
        for norm in layers:
            norm.weight[norm.weight.abs() < NEGLIGIBLE] = 0.0
    return Patient(model, ground.given(BATCH, 40), tested(model, ground), well(ground))


def tiny_inputs(ground: Ground) -> Patient:
    """Micrometres given in metres, so that all columns vary by less than sqrt(eps).

    The one norm is that which scales what comes in.
    """
    scores, models = [], []
    for unit in (METRE, 1.0):
        data = tables.of(ground, unit)
        hidden, features = 2 if ground.deep else 1, data.train_images.shape[1]
        model = Rows(data.classes, features, hidden, norms=False)
        fit(model, tables.batches(data, BATCH, ground), STEPS // 2)
        scores.append(accuracy(model, data.test_images, data.test_labels))
        models.append(model)
    given = islice(tables.batches(tables.of(ground, METRE), BATCH, ground, 2), 24)
    return Patient(models[0], list(given), *scores)


def biased(ground: Ground) -> Patient:
    """Convolutions have a bias that the norm behind them takes away again."""
    model = fit(ground.net(bias=True), ground.batches(BATCH))
    return Patient(model, ground.given(BATCH, 40), tested(model, ground), well(ground))


CASES = (
    Case("pruned_filters", pruned_filters, "dead_channels"),
    Case("slimmed", slimmed, "dead_channels"),
    Case("tiny_inputs", tiny_inputs, "eps_dominated"),
    Case("biased", biased, "redundant_bias"),
)
