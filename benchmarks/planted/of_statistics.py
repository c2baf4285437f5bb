"""What is wrong with the running statistics of a net whose batches are as they should be."""

import copy
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from planted import tables
from planted.case import Case, Patient
from planted.ground import Ground
from planted.nets import Rows
from planted.training import BATCH, STEPS, accuracy, fit, healthy, tested, well

CALIBRATE = ("calibrate",)  # the weights are well: what trains them on cures no more
FINE = 1e-2  # the unit of the columns is a hundredth of the usual one


def norms(model: nn.Module) -> list[_BatchNorm]:
    """The norm layers."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _with_momentum(model: nn.Module, momentum: float) -> nn.Module:
    for norm in norms(model):
        norm.momentum = momentum
    return model


def _patient(model: nn.Module, ground: Ground) -> Patient:
    given, found = ground.given(BATCH, 40), tested(model, ground)
    return Patient(model, given, found, well(ground), held_out=ground.held_out())


def tiny_momentum(ground: Ground) -> Patient:
    """A momentum for runs of a million steps, in one of a few hundred."""
    return _patient(fit(_with_momentum(ground.net(), 1e-3), ground.batches(BATCH)), ground)


def updates_stopped(ground: Ground) -> Patient:
    """The statistics no longer follow, from a tenth of the training on; the batch is used."""
    model = ground.net()
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == STEPS // 10:
            _with_momentum(model, 0.0)

    fit(model, ground.batches(BATCH), after=stop)
    return _patient(_with_momentum(model, 0.1), ground)


def averaged_weights(ground: Ground) -> Patient:
    """A moving average of the parameters, with the buffers of the step it was begun at."""
    model = ground.net()
    averaged: list[nn.Module] = []
    steps = 0

    @torch.no_grad()
    def average() -> None:
        nonlocal steps
        steps += 1
        if steps == STEPS // 10:
            averaged.append(copy.deepcopy(model))
        elif averaged:
            for mean, new in zip(averaged[0].parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 0.05)

    fit(model, ground.batches(BATCH), after=average)
    return _patient(averaged[0], ground)


def parameters_alone(ground: Ground) -> Patient:
    """A checkpoint of ``named_parameters()``, which has no buffers, loaded with strict=False."""
    checkpoint = dict(healthy(ground).named_parameters())
    model = ground.net()
    model.load_state_dict(checkpoint, strict=False)
    return _patient(model.eval(), ground)


def keep_rate(ground: Ground) -> Patient:
    """A momentum of 0.99, as Keras means it: what is kept of the statistics."""
    model = fit(_with_momentum(ground.net(), 0.99), ground.batches(8), 2 * STEPS, 0.05)
    given, found = ground.given(8, 80), tested(model, ground)
    return Patient(model, given, found, well(ground), held_out=ground.held_out())


def nan_buffer(ground: Ground) -> Patient:
    """One image with a missing value went through in train mode."""
    model, images = healthy(ground), ground.images.train_images[:8].clone()
    images[3, 0, 2, 2] = torch.nan
    with torch.no_grad():
        model(images)
    return _patient(model, ground)


def half_buffer(ground: Ground) -> Patient:
    """A checkpoint in float16, which has no number as large as the variance of some columns."""
    data = tables.of(ground, FINE)
    model = Rows(data.classes, data.train_images.shape[1], hidden=3 if ground.deep else 1)
    fit(model, tables.batches(data, BATCH, ground))
    test = data.test_images, data.test_labels
    good = accuracy(model, *test)
    model.half().float()
    given = list(islice(tables.batches(data, BATCH, ground, 2), 24))
    return Patient(model, given, accuracy(model, *test), good, held_out=[test])


CASES = (
    Case("tiny_momentum", tiny_momentum, "stale_statistics", fixes=CALIBRATE),
    Case("updates_stopped", updates_stopped, "stale_statistics", fixes=CALIBRATE),
    Case("averaged_weights", averaged_weights, "stale_statistics", fixes=CALIBRATE),
    Case("parameters_alone", parameters_alone, "never_updated", fixes=CALIBRATE),
    # the average is of one batch: measured once it is right, and averaged over more it stays so
    Case("keep_rate", keep_rate, "momentum_convention", fixes=("calibrate", "longer_ema")),
    Case("nan_buffer", nan_buffer, "non_finite", fixes=CALIBRATE),
    Case("half_buffer", half_buffer, "non_finite", fixes=CALIBRATE),
)
