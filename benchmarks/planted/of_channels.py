"""What is wrong with single channels."""

from itertools import islice

import torch
from planted import tables
from planted.case import Case, Patient
from planted.ground import Ground
from planted.nets import Rows
from planted.of_statistics import norms
from planted.training import BATCH, STEPS, accuracy, fit, healthy, tested, well
from torch import nn
from torch.nn.utils import prune

TINY = 1e-4  # metres of a tenth of a millimetre
PRUNED = 0.5


def pruned_filters(ground: Ground) -> Patient:
    """Half the filters of two convolutions are set to zero by their norm, and not taken out."""
    model = healthy(ground)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for convolution in convolutions[1:3]:
        prune.ln_structured(convolution, "weight", PRUNED, n=2, dim=0)
        prune.remove(convolution, "weight")
    return Patient(model, ground.given(BATCH, 40), tested(model, ground), well(ground))


def slimmed(ground: Ground) -> Patient:
    """The norms' weights that an L1 penalty made small are set to zero (network slimming).

    Source: Liu, Li, Shen, Huang, Yan and Zhang 2017 (arXiv 1708.06519).
    """
    model = healthy(ground)
    with torch.no_grad():
        for norm in norms(model)[1:]:
            least = norm.weight.abs().argsort()[: int(PRUNED * len(norm.weight))]
            norm.weight[least] = 0.0
            norm.bias[least] = 0.0
    return Patient(model, ground.given(BATCH, 40), tested(model, ground), well(ground))


def tiny_inputs(ground: Ground) -> Patient:
    """Columns of a table in a unit in which nearly all vary by less than sqrt(eps)."""
    data = tables.of(ground)
    test = data.test_labels
    scores = []
    models = []
    for unit in (TINY, 1.0):
        model = Rows(data.classes, data.train_images.shape[1], hidden=3 if ground.deep else 1)
        batches = ((unit * rows, labels) for rows, labels in tables.batches(data, BATCH, ground))
        fit(model, batches, STEPS // 2)
        scores.append(accuracy(model, unit * data.test_images, test))
        models.append(model)
    given = islice(tables.batches(data, BATCH, ground, 2), 24)
    return Patient(models[0], [(TINY * rows, labels) for rows, labels in given], *scores)


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
