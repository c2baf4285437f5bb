"""What is wrong with how a sound net is used: its mode, its data, its limits, its conversion."""

import copy
from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import renorm
from planted.case import Case, Patient, setting
from planted.ground import Batch, Ground
from planted.training import BATCH, LR, STEPS, accuracy, fit, healthy, tested, well
from renorm import limits
from renorm.lab.models.resnet import Padded, ResNet

CONTRAST, BRIGHTNESS = 0.7, 0.5  # of another camera, in deviations of the input


def _served(model: nn.Module, ground: Ground) -> Patient:
    """A net that is handed over as it is; requests come four at a time."""
    images = ground.images
    kept = copy.deepcopy(model)
    parts = images.test_images.split(4), images.test_labels.split(4)
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in parts[0]])
    sick = 100 * float((found == images.test_labels).double().mean())
    given = list(zip(*parts, strict=True))[:100]
    return Patient(kept, given, sick, well(ground), setting=setting("export"))


def train_mode_export(ground: Ground) -> Patient:
    """A net is handed over without ``eval()``."""
    return _served(healthy(ground), ground)


def half_exported(ground: Ground) -> Patient:
    """``eval()`` was called, but the last norms are in train mode: they were put there later."""
    model = healthy(ground).eval()
    for module in list(model.features)[-3:]:
        module.train()
    return _served(model, ground)


def residual(ground: Ground) -> ResNet:
    """A ResNet-8, or a ResNet-14."""
    return ResNet(ground.images.classes, ground.channels, (16, 32, 64), ground.blocks, Padded)


def mixed_modes(ground: Ground) -> Patient:
    """After the features were drawn, the stem and the blocks but the last stay in eval mode."""

    def trained_on(model: ResNet) -> None:
        model.train()
        model.stem.eval()
        model.blocks[:-1].eval()

    model = fit(residual(ground), ground.batches(BATCH), 10, LR)
    better = fit(copy.deepcopy(model), ground.batches(BATCH, 3), STEPS, LR)
    fit(model, ground.batches(BATCH, 3), STEPS, LR, mode=trained_on)
    scores = tested(model, ground), tested(better, ground)
    return Patient(model, ground.given(BATCH, 40), *scores, setting=setting(steps=STEPS))


def shifted_domain(ground: Ground) -> Patient:
    """The images of another camera: less contrast, and brighter."""
    model = healthy(ground).eval()

    def seen(batches: Iterable[Batch]) -> list[Batch]:
        return [(CONTRAST * images + BRIGHTNESS, labels) for images, labels in batches]

    test = seen([(ground.images.test_images, ground.images.test_labels)])
    given, found = seen(ground.given(BATCH, 24)), accuracy(model, *test[0])
    return Patient(model, given, found, well(ground), held_out=test)


def limits_open_early(ground: Ground) -> Patient:
    """Fine-tuning on new classes with the step count of the checkpoint: r and d are free."""
    model = renorm.convert(ground.net(), limits=limits.over(STEPS))
    fit(model, ground.half(False, BATCH, 1))
    model.head = nn.Linear(model.head.in_features, model.head.out_features)
    given = list(islice(ground.half(True, BATCH, 2), 18))
    return Patient(model, given, setting=setting("finetuning", STEPS))


def limits_never_open(ground: Ground) -> Patient:
    """The paper's schedule, whose limits begin to open at step 5,000, in a run of 2,000."""
    model = renorm.convert(ground.net())
    fit(model, ground.batches(4), 4 * STEPS, LR / 8)
    given = ground.given(4, 96)
    return Patient(model, given, tested(model, ground), well(ground), setting=setting(steps=1000))


def _synchronized(model: nn.Module) -> nn.Module:
    """What converters of training frameworks do that know a norm by its base class."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _BatchNorm):
            new = nn.SyncBatchNorm(layer.num_features, layer.eps, 0.1)
            new.load_state_dict(layer.state_dict())
            model.set_submodule(name, new)
    return model


def norm_lost(ground: Ground) -> Patient:
    """Batch renorm became nn.SyncBatchNorm, which takes any batch norm for its own."""
    before = renorm.convert(ground.net(), limits=limits.over(4 * STEPS))
    fit(before, ground.batches(4), 4 * STEPS, LR / 8)
    after = _synchronized(copy.deepcopy(before))
    said = setting(steps=1000)
    return Patient(after, ground.given(4, 96), setting=said, before=before)


CASES = (
    Case("train_mode_export", train_mode_export, "train_mode_export"),
    Case("half_exported", half_exported, "mixed_modes", ("train_mode_export",)),
    Case("mixed_modes", mixed_modes, "mixed_modes"),
    Case(
        "shifted_domain",
        shifted_domain,
        "shifted_domain",
        ("stale_statistics",),
        fixes=("calibrate",),
    ),
    Case("limits_open_early", limits_open_early, "limits_open_early"),
    Case("limits_never_open", limits_never_open, "limits_never_open"),
    Case("norm_lost", norm_lost, "norm_lost"),
)
