"""What is wrong with the batches: too few examples, or examples that depend on each other."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import renorm
from planted import photographs
from planted.case import Case, Patient, setting
from planted.ground import HELD_OUT, Batch, Ground
from planted.nets import Apart, Pooled, Projected
from planted.training import BATCH, LR, STEPS, accuracy, fit, tested, well
from renorm import limits
from renorm.lab.conditions import PK, Clustered, Sampler
from renorm.lab.models import UNet

# Weights that were trained in noise are cured by training without it: by what normalizes by more
# than these few examples.
NOISELESS = ("batch_renorm", "cross_iteration", "frozen")
# A momentum of 0.1 averages 19 batches, so 38 examples of batches of two: the statistics that the
# model is used with are as far off as those of a batch of 38 in training. Of that calibration cures
# it at once. Averages over many groups of one batch have no such noise.
NOISE = ("calibrate", *NOISELESS)
# What an example's batch has in common is left in by what does not normalize by that batch alone:
# a window has other batches in it, whose classes and sites are drawn anew.
APART = NOISELESS


def _trained(
    ground: Ground, sampler: Sampler | int, *, count: int, steps: int = STEPS, lr: float = LR
) -> Patient:
    """A plain net that was trained by the batches of a sampler."""
    model = fit(ground.net(), ground.batches(sampler), steps, lr)
    given, found = ground.given(sampler, count), tested(model, ground)
    return Patient(model, given, found, well(ground), held_out=ground.held_out())


def batch_of_two(ground: Ground) -> Patient:
    """Memory has room for two images; the learning rate was scaled to that."""
    patient = _trained(ground, 2, count=128, steps=4 * STEPS, lr=LR / 8)
    as_many = fit(ground.net(), ground.batches(BATCH), 4 * STEPS * 2 // BATCH)
    patient.well = tested(as_many, ground)
    return patient


def microbatch_of_two(ground: Ground) -> Patient:
    """Ghost batches of two examples, of one large batch."""
    model = renorm.convert(ground.net(), limits=limits.batch_norm(), microbatch=2, momentum=0.1)
    fit(model, ground.batches(BATCH))
    given, found = ground.given(BATCH, 32), tested(model, ground)
    return Patient(model, given, found, well(ground), held_out=ground.held_out())


def accumulated(ground: Ground) -> Patient:
    """Gradients of eight forwards with four examples each are added up to a step."""
    model = ground.net()
    parts = (part for batch in ground.batches(BATCH) for part in _split(batch, 4))
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    for i, (images, labels) in enumerate(islice(parts, 8 * STEPS), 1):
        (F.cross_entropy(model(images), labels) / 8).backward()
        if i % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()
    given, found = ground.given(4, 96), tested(model, ground)
    said = setting(steps=STEPS, accumulation=8)
    return Patient(model, given, found, well(ground), setting=said, held_out=ground.held_out())


def _split(batch: Batch, size: int) -> list[Batch]:
    images, labels = batch
    return list(zip(images.split(size), labels.split(size), strict=True))


def sorted_labels(ground: Ground) -> Patient:
    """Shards of sorted data: their order is random, the images of one are of one class."""
    return _trained(ground, Clustered(16, 16, 1), count=48)


def pk_sampler(ground: Ground) -> Patient:
    """Eight images of each of four classes in a batch, as losses on triplets need them."""
    return _trained(ground, PK(4, 8), count=40)


def few_classes(ground: Ground) -> Patient:
    """Episodes of two classes, as few-shot learning has them."""
    return _trained(ground, PK(2, 16), count=40)


def by_site(ground: Ground) -> Patient:
    """Each batch is from one scanner, which has a contrast and a brightness of its own.

    The net need not learn to tell them apart from the images, as long as the norms take them away.
    """
    model, mixed = (fit(ground.net(), _scanned(ground, 1, apart)) for apart in (True, False))
    images = _of_scanners(ground.images.test_images, ground.generator(5), 1)
    scores = [accuracy(net, images, ground.images.test_labels) for net in (model, mixed)]
    given = list(islice(_scanned(ground, 2, True), 64))
    parts = zip(images.split(HELD_OUT), ground.images.test_labels.split(HELD_OUT), strict=True)
    return Patient(model, given, scores[0], scores[1], held_out=list(parts))


def _scanned(ground: Ground, stream: int, apart: bool) -> Iterator[Batch]:
    """Batches of one scanner each, or of a scanner for each image."""
    draw = ground.generator(stream + 20)
    for images, labels in ground.batches(16, stream):
        yield _of_scanners(images, draw, len(images) if apart else 1), labels


def _of_scanners(images: Tensor, draw: torch.Generator, each: int) -> Tensor:
    """Images of which so many, one after the other, are from one scanner."""
    shape = (len(images) // each, 1, 1, 1)
    contrast = torch.exp(0.7 * torch.randn(shape, generator=draw)).repeat_interleave(each, 0)
    brightness = (1.5 * torch.randn(shape, generator=draw)).repeat_interleave(each, 0)
    return contrast * images + brightness


def video(ground: Ground) -> Patient:
    """The frames of few clips in a batch; the colours of every pixel are to be told."""
    size, clips, frames = (48, 3, 6) if ground.deep else (32, 4, 4)
    shapes = (size, clips, frames)
    test, scores, nets = photographs.held_out(size), [], []
    for batches in (
        photographs.clips(*shapes, ground.generator(1)),
        photographs.crops(size, clips * frames, ground.generator(1)),
    ):
        net = fit(UNet(2, channels=1), batches, STEPS, LR / 2, loss=photographs.off).eval()
        with torch.no_grad():
            scores.append(photographs.explained(net(test[0]), test))
        nets.append(net.train())
    given = list(islice(photographs.clips(*shapes, ground.generator(2)), 40))
    sick, good = scores
    return Patient(nets[0], given, sick, good, photographs.off, held_out=[test])


def one_value(ground: Ground) -> Patient:
    """One image a batch, and a branch with a norm behind the mean over all positions.

    A norm has no variance there: torch refuses to train on it.
    """
    model = fit(Pooled(ground.net()), ground.batches(BATCH))
    return Patient(model, ground.given(1, 96), well=tested(model, ground))


def contrastive(ground: Ground) -> Patient:
    """Two parts of each of 32 images, normalized four images at a time, always both parts.

    So it is where devices have statistics of their own, and the loss is over all devices: which
    images share statistics can be seen in the output, and narrows down which is the other part.
    Here the devices are microbatches. The net without the cause had the parts in other ones.

    Source: He, Fan, Wu, Xie and Girshick 2020 (arXiv 1911.05722), section 3.3, shuffling BN.
    """
    given = list(islice(_views(ground, 2), 32))
    models, scores = [], []
    for apart in (False, True):
        net = Projected(ground.net())
        model = renorm.convert(net, limits=limits.batch_norm(), microbatch=8, momentum=0.1)
        trained = Apart(model) if apart else model
        # so long, and so gently, that the nets learn on all data what they can without the cause
        fit(trained, _views(ground, 1), 4 * STEPS, 0.3 * LR, loss=same_image)
        models.append(model)
        scores.append(_told_apart(model, given))
    return Patient(models[0], given, *scores, loss=same_image)


def _views(ground: Ground, stream: int) -> Iterator[tuple[Tensor]]:
    """Images (32, 2, C, H, W): squares of half the side from anywhere, the rest is 0.

    They are of 5 pixels at least, for something to be seen in them. Each has another contrast and
    brightness. Zeros give the statistics of their batch away, as padding does: behind a norm they
    are the shift and the scale of it.
    """
    draw = ground.generator(stream + 10)
    for images, _ in ground.batches(BATCH, stream):
        both = images[:, None].expand(-1, 2, -1, -1, -1)
        contrast, brightness = 0.3 * torch.randn(2, *both.shape[:2], 1, 1, 1, generator=draw)
        side = images.shape[-1]
        length, place = max(side // 2, 5), torch.arange(side)
        first = torch.randint(side - length + 1, (2, *both.shape[:2], 1), generator=draw)
        rows, columns = (first <= place) & (place < first + length)
        inside = rows[..., :, None] & columns[..., None, :]
        yield ((both * (1 + contrast) + brightness) * inside[:, :, None],)


@torch.no_grad()
def _told_apart(model: nn.Module, batches: Sequence[tuple[Tensor]]) -> float:
    """The probability in percent, a geometric mean, that is given to the other part of an image.

    In eval mode; the mode stays.
    """
    model.eval()
    losses = [float(same_image(model(views), None)) for (views,) in batches]
    model.train()
    return 100 * math.exp(-fmean(losses))


def same_image(output: Tensor, _: object) -> Tensor:
    """The loss of SimCLR, at temperature 0.1: which of the others is the same image.

    Args:
        output: unit vectors (N, 2, width).
    """
    vectors = output.transpose(0, 1).flatten(0, 1)  # first all first views, then all second
    alike = vectors @ vectors.T / 0.1
    alike = alike.masked_fill(torch.eye(len(alike), dtype=torch.bool), -torch.inf)
    other = torch.arange(len(alike)).roll(len(output))
    return F.cross_entropy(alike, other)


CASES = (
    Case("batch_of_two", batch_of_two, "small_batch", fixes=NOISE),
    # its layers are batch renorm's already, which no fix converts: of NOISELESS that leaves one
    Case("microbatch_of_two", microbatch_of_two, "small_batch", fixes=("frozen",)),
    Case("accumulated", accumulated, "accumulation", fixes=NOISE),
    Case("sorted_labels", sorted_labels, "dependent_batches", fixes=APART),
    Case("pk_sampler", pk_sampler, "dependent_batches"),
    Case("few_classes", few_classes, "dependent_batches", fixes=APART),
    Case("by_site", by_site, "composition_overfit", ("dependent_batches",), fixes=APART),
    Case("video", video, "dependent_batches", fixes=APART),
    Case("one_value", one_value, "single_value"),
    Case("contrastive", contrastive, "batch_leak"),
)
