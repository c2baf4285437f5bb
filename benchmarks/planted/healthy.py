"""Healthy nets of several architectures, on which nothing may be called an error."""

from itertools import islice

import torch
from torch import nn

import renorm
from planted import photographs
from planted.case import Case, Patient, setting
from planted.ground import Ground
from planted.nets import Rows
from planted.of_use import residual
from planted.training import BATCH, LR, STEPS, accuracy, fit, healthy, tested
from renorm import limits
from renorm.lab.conditions import Shuffled
from renorm.lab.data import breast_cancer
from renorm.lab.models import ResNet20, SigmoidMLP, UNet


def _trained(model: nn.Module, ground: Ground, size: int = BATCH, steps: int = STEPS) -> Patient:
    fit(model, ground.batches(size), steps)
    return Patient(model, ground.given(size, max(12, 1280 // size)), tested(model, ground))


def plain(ground: Ground) -> Patient:
    """A plain convolutional net."""
    return _trained(ground.net(), ground)


def mlp(ground: Ground) -> Patient:
    """The fully connected net of the batch norm paper."""
    images = ground.images
    model = SigmoidMLP(images.classes, images.train_images[0].numel())
    return _trained(model, ground, 64)


def resnet(ground: Ground) -> Patient:
    """A ResNet-8, or a ResNet-14."""
    return _trained(residual(ground), ground)


def resnet_20(ground: Ground) -> Patient:
    """The ResNet-20 of He et al."""
    return _trained(ResNet20(ground.images.classes, ground.channels), ground, BATCH, STEPS * 3 // 5)


def grouped(ground: Ground) -> Patient:
    """Depthwise convolutions, and some in 4 groups."""
    return _trained(ground.net(grouped=True), ground)


def large_batch(ground: Ground) -> Patient:
    """256 examples a batch."""
    return _trained(ground.net(), ground, 256, STEPS // 2)


def renormalized(ground: Ground) -> Patient:
    """Batch renorm from the start, its limits open within the run.

    Momentum is that of batch norm, as in all runs below some thousands of steps: by the 0.01 of the
    paper the statistics would not have settled when the limits open.
    """
    model = renorm.convert(ground.net(), limits=limits.over(2 * STEPS), momentum=0.1)
    patient = _trained(model, ground, BATCH, 2 * STEPS)
    patient.setting = setting(steps=STEPS)
    return patient


def frozen(ground: Ground) -> Patient:
    """Fine-tuning on some of the classes with frozen statistics."""
    model = renorm.freeze(renorm.convert(healthy(ground)))
    fit(model, ground.half(True, BATCH, 2), STEPS // 2, LR / 10)
    given = list(islice(ground.half(True, BATCH, 3), 18))
    return Patient(model, given, setting=setting("finetuning", STEPS))


def exported(ground: Ground) -> Patient:
    """A net in eval mode, to be handed over."""
    model = healthy(ground).eval()
    score = tested(model, ground)
    return Patient(model, ground.given(BATCH, 40), score, setting=setting("export"))


def dense(ground: Ground) -> Patient:
    """A U-Net that tells the colours of crops from everywhere."""
    size = 48 if ground.deep else 32
    model = UNet(2, channels=1)
    train, given = (photographs.crops(size, 16, ground.generator(i)) for i in (1, 2))
    fit(model, train, STEPS, LR / 2, loss=photographs.off)
    test = photographs.held_out(size)
    with torch.no_grad():
        score = photographs.explained(model.eval()(test[0]), test)
    return Patient(model.train(), list(islice(given, 40)), score, loss=photographs.off)


def scaled_table(ground: Ground) -> Patient:
    """A table whose columns were scaled to a deviation of 1."""
    data = breast_cancer()
    orders = (
        Shuffled(BATCH, BATCH).batches(data.train_labels, ground.generator(i)) for i in (1, 2)
    )
    train, given = (((data.train_images[i], data.train_labels[i]) for i in each) for each in orders)
    model = fit(Rows(2, 30, hidden=3 if ground.deep else 2), train)
    score = accuracy(model, data.test_images, data.test_labels)
    return Patient(model, list(islice(given, 26)), score)


CASES = tuple(
    Case(make.__name__, make)
    for make in (
        plain,
        mlp,
        resnet,
        resnet_20,
        grouped,
        large_batch,
        renormalized,
        frozen,
        exported,
        dense,
        scaled_table,
    )
)
