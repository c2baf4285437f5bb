"""One run of ``compensation.py``: a net is trained, and its past iterations are looked at again.

Of each step that is measured, and of the iterations before it, the inputs of all convolutions and
their weights of then are at hand, and so is what the statistics are at the weights of now: truth.
The layers' own estimate of an earlier iteration is read from outside: a layer of window 2 whose
running statistics follow with momentum 1 has those of its window, and one of the two iterations in
it is known.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import renorm
from renorm.errors import ArgumentError
from renorm.lab.conditions import Shuffled
from renorm.lab.data import Images
from renorm.lab.isolation import isolated
from renorm.lab.models.resnet import Block
from renorm.lab.tasks.supervised import MOMENTUM, WEIGHT_DECAY
from renorm.nn import CrossIterationBatchNorm2d
from renorm.reference import as_patches, centred_first_order, centred_recomputed, observe

Array = NDArray[np.float64]
Moments = tuple[Array, Array]  # mean and biased variance, (C,) each

WIDTHS = (16, 32, 64)
LARGE = 28  # pixels from which the stem halves the resolution twice
EPS = 1e-5  # as in the layers: what a deviation is divided by is the root of var + eps
TRUTHS = ("own_layer", "whole_network")
STATISTICS = ("mu", "sigma")
ESTIMATES = ("none", "first_order", "paper_nu", "exact", "exact_16", "exact_8")
SAMPLES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Run:
    """Everything a result depends on, apart from the versions of the code.

    Args:
        data: name of the images.
        lr: learning rate, constant.
        seed: of the initial weights and of the data order.
        norm_batch: examples that are normalized together.
        batch: examples of a gradient step, a multiple of it.
        steps: gradient steps.
        every: so many steps apart are those that are measured; none before the window is full.
        window: iterations, the current one included: lags 1 to window - 1.
        draws: samples of positions of which bias and spread are taken.
    """

    data: str
    lr: float
    seed: int
    norm_batch: int
    batch: int
    steps: int
    every: int
    window: int
    draws: int

    def __post_init__(self) -> None:
        lowest = {"norm_batch": 1, "batch": 1, "every": 1, "seed": 0, "window": 2, "draws": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ArgumentError(
                    f"{name} must be at least {least}, got {getattr(self, name)}. Give more."
                )
        if self.batch % self.norm_batch:
            raise ArgumentError(
                f"A gradient batch is normalized in equal parts, so its size is a multiple of the "
                f"norm batch, got {self.batch} and {self.norm_batch}. Change one of them."
            )
        if not self.measured:
            raise ArgumentError(
                f"No step is measured: there are {self.steps}, every {self.every} of them is "
                f"looked at, and the window of {self.window} must be full. Give more steps."
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr is the learning rate, above 0, got {self.lr}. Give 0.1.")

    @property
    def measured(self) -> list[int]:
        """The steps that are measured, counted from 1."""
        steps = range(self.every, self.steps + 1, self.every)
        return [step for step in steps if step >= self.window]


@dataclass(frozen=True)
class Figures:
    """What a run found.

    Args:
        rms: of truth, statistic and estimate, a value a lag: the root of the mean square of the
            error over sigma, over channels, layers and steps.
        bias: of each sample size, the same mean of what the mean over all draws is off, over var.
        spread: of what one draw is off, likewise.
        loss: of the last step.
        seconds: of processor time.
    """

    rms: dict[str, dict[str, dict[str, list[float]]]]
    bias: dict[str, float]
    spread: dict[str, float]
    loss: float
    seconds: float


class Pass(NamedTuple):
    """One convolution in one iteration."""

    input: Tensor
    weight: Tensor


class Iteration(NamedTuple):
    """What is kept of an iteration, for the part of the batch that was normalized last."""

    images: Tensor
    passes: dict[str, Pass]  # by the name of the norm


class Mean:
    """A mean over many arrays, each of which may have another shape."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Array) -> None:
        """Take these in."""
        self.total += float(values.sum())
        self.count += values.size

    @property
    def root(self) -> float:
        """Of the mean; 0 where there was nothing."""
        return math.sqrt(self.total / self.count) if self.count else 0.0


def build(side: int) -> nn.Sequential:
    """A net of 9 convolutions, each with batch norm: the ResNet-8 of ``small_batches_training``.

    Of images below ``LARGE`` the stem keeps the resolution.
    """
    inside, large = WIDTHS[0], side >= LARGE
    layers: list[nn.Module] = [
        nn.Conv2d(1, inside, 3, stride=2 if large else 1, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
    ]
    if large:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    for outside in WIDTHS:
        layers.append(Block(inside, outside, 1 if outside == inside else 2))
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def sources(model: nn.Module, side: int) -> dict[str, str]:
    """The convolution that feeds each norm, by names: what ``renorm.convert`` finds."""
    example = torch.zeros(2, 1, side, side, dtype=torch.float64)
    converted = renorm.convert(copy.deepcopy(model), to="cross_iteration", example=example)
    return {row.name: row.source for row in renorm.summary(converted).rows}


class Inputs:
    """The inputs of some modules while they run; a context manager."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                self.seen[name] = args[0].detach()

            return hook

        self._hooks = [m.register_forward_pre_hook(keep(n)) for n, m in self.modules.items()]
        return self.seen

    def __exit__(self, *raised: object) -> None:
        for hook in self._hooks:
            hook.remove()


class Probe:
    """What cross-iteration layers take the statistics of an earlier iteration to be.

    Args:
        source: a convolution like the one in front of them.
        settings: of each layer, by the name of its estimate.
    """

    def __init__(self, source: nn.Conv2d, settings: Mapping[str, dict[str, Any]]) -> None:
        self.source = copy.deepcopy(source)
        self.layers: dict[str, CrossIterationBatchNorm2d] = {}
        for name, options in settings.items():
            layer = CrossIterationBatchNorm2d(
                source.out_channels, EPS, 1.0, dtype=torch.float64, window=2, **options
            )
            layer.attach(self.source)
            self.layers[name] = layer

    def lag(self, then: Pass, now: Pass) -> dict[str, Moments]:
        """Mean and variance of ``then`` at the weights of ``now``, by each layer."""
        for given in (then, now):  # the window is these two, whatever came before
            self.source.weight.copy_(given.weight)
            y = self.source(given.input)
            for layer in self.layers.values():
                layer(y)
        values = (then.input.shape[0] + now.input.shape[0]) * y.shape[2] * y.shape[3]
        own = torch.var_mean(y, (0, 2, 3), correction=0)[::-1]
        return {name: _lag(layer, own, values) for name, layer in self.layers.items()}


def _lag(layer: CrossIterationBatchNorm2d, own: Sequence[Tensor], values: int) -> Moments:
    """The other iteration of a window of two, of which one is known."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    other = 2 * mean - own[0]
    biased = var * (1 - 1 / values)
    return other.numpy(), (2 * (biased - ((other - own[0]) / 2) ** 2) - own[1]).numpy()


def probes(source: nn.Conv2d, positions: int) -> tuple[Probe, Probe]:
    """The estimates that are compared, and those of which bias and spread are taken.

    Exact compensation on all positions is a sample of them all: without one a layer has it where
    the covariance of patches is affordable, and here the truth about the formula is asked for.
    """
    exact = {"compensation": "exact"}
    compared = {
        "first_order": {"compensation": "first_order"},
        "exact": exact | {"sample": positions},
        "exact_16": exact | {"sample": 16},
        "exact_8": exact | {"sample": 8},
    }
    return Probe(source, compared), Probe(source, {str(s): exact | {"sample": s} for s in SAMPLES})


def by_reference(source: nn.Conv2d, then: Pass, now: Pass) -> dict[str, Moments]:
    """The iteration as it was, by the paper's expansion of nu, and ``truth``, a second forward."""
    assert isinstance(source.padding, tuple)
    patches = as_patches(
        then.input.numpy(), source.kernel_size, stride=source.stride, padding=source.padding
    )
    old, new = (given.weight.flatten(1).numpy() for given in (then, now))
    past = observe(patches, old)
    mean, var = centred_first_order(past, new, expand="nu")
    return {
        "none": centred_recomputed(past, old),
        "paper_nu": (mean, np.maximum(var, 0)),
        "truth": centred_recomputed(past, new),
    }


class Comparison:
    """Errors of all estimates, summed up over channels, layers and steps."""

    def __init__(self, model: nn.Module, pairs: Mapping[str, str], window: int) -> None:
        self.model = model
        self.norms = {name: model.get_submodule(name) for name in pairs}
        self.sources = {name: _conv(model, source) for name, source in pairs.items()}
        self.probes: dict[str, tuple[Probe, Probe]] = {}
        self.window = window
        self.errors = {
            (truth, statistic, estimate, lag): Mean()
            for truth in TRUTHS
            for statistic in STATISTICS
            for estimate in ESTIMATES
            for lag in range(1, window)
        }
        self.bias = {s: Mean() for s in SAMPLES}
        self.spread = {s: Mean() for s in SAMPLES}

    def take(self, past: Sequence[Iteration]) -> None:
        """Compare the iterations before the last one of ``past``, which is now."""
        now = past[-1]
        for lag in range(1, self.window):
            then = past[-1 - lag]
            whole = self._rerun(then.images)
            for name, source in self.sources.items():
                found = by_reference(source, then.passes[name], now.passes[name])
                truths = {"own_layer": found.pop("truth"), "whole_network": whole[name]}
                found |= self._probes(name, now)[0].lag(then.passes[name], now.passes[name])
                for truth, true in truths.items():
                    for estimate, moments in found.items():
                        for statistic, off in zip(STATISTICS, _off(moments, true), strict=True):
                            self.errors[truth, statistic, estimate, lag].add(off**2)

    def sample(self, then: Iteration, now: Iteration, draws: int) -> None:
        """Compensate one iteration by many samples of its positions, and by all of them."""
        for name, source in self.sources.items():
            passes = then.passes[name], now.passes[name]
            _, var = by_reference(source, *passes)["truth"]
            drawn = [self._probes(name, now)[1].lag(*passes) for _ in range(draws)]
            for s in SAMPLES:
                if self._positions(name, now) <= s:
                    continue
                off = (np.stack([one[str(s)][1] for one in drawn]) - var) / (var + EPS)
                self.bias[s].add(off.mean(axis=0) ** 2)
                self.spread[s].add(off**2)

    def rms(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        """Of truth, statistic and estimate, a value a lag."""
        lags = range(1, self.window)
        return {
            truth: {
                statistic: {
                    estimate: [self.errors[truth, statistic, estimate, lag].root for lag in lags]
                    for estimate in ESTIMATES
                }
                for statistic in STATISTICS
            }
            for truth in TRUTHS
        }

    def _rerun(self, images: Tensor) -> dict[str, Moments]:
        """Mean and variance that each norm sees of these images, all weights being those of now."""
        with Inputs(self.norms) as seen:
            self.model(images)
        moments = {n: torch.var_mean(x, (0, 2, 3), correction=0) for n, x in seen.items()}
        return {name: (mean.numpy(), var.numpy()) for name, (var, mean) in moments.items()}

    def _probes(self, name: str, now: Iteration) -> tuple[Probe, Probe]:
        if name not in self.probes:
            self.probes[name] = probes(self.sources[name], self._positions(name, now))
        return self.probes[name]

    def _positions(self, name: str, now: Iteration) -> int:
        x, source = now.passes[name].input, self.sources[name]
        assert isinstance(source.padding, tuple)
        sizes = zip(x.shape[2:], source.kernel_size, source.stride, source.padding, strict=True)
        return len(x) * math.prod((n + 2 * pad - k) // step + 1 for n, k, step, pad in sizes)


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    source = model.get_submodule(name)
    assert isinstance(source, nn.Conv2d)
    return source


def _off(moments: Moments, truth: Moments) -> tuple[Array, Array]:
    """What mean and deviation are off, in deviations."""
    (mean, var), (true_mean, true_var) = moments, truth
    scale = np.sqrt(true_var + EPS)
    # an estimate that is 0 may come out a rounding error below it, as a difference
    return (mean - true_mean) / scale, (np.sqrt(np.maximum(var, 0)) - np.sqrt(true_var)) / scale


def train(run: Run, task: Images) -> Figures:
    """Train one net in float64 and measure; the same run gives the same figures.

    Raises:
        ArgumentError: the loss is not finite.
    """
    started = time.process_time()
    with isolated(run.seed):
        images = task.train_images.double()
        model = build(images.shape[-1]).double()
        pairs = sources(model, images.shape[-1])
        comparison = Comparison(model, pairs, run.window)
        optimizer = torch.optim.SGD(model.parameters(), run.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
        order = Generator().manual_seed(run.seed)
        batches = Shuffled(run.batch, run.batch).batches(task.train_labels, order)
        past: deque[Iteration] = deque(maxlen=run.window)
        loss = math.nan
        for step, indices in enumerate(islice(batches, run.steps), start=1):
            optimizer.zero_grad()
            with Inputs(comparison.sources) as seen:
                last, loss = _backward(model, images[indices], task.train_labels[indices], run)
            weights = {name: source.weight for name, source in comparison.sources.items()}
            past.append(
                Iteration(
                    last,
                    {n: Pass(x, weights[n].detach().clone()) for n, x in seen.items()},
                )
            )
            if not math.isfinite(loss):
                raise ArgumentError(f"The loss of step {step} is not finite. Lower --lr.")
            if step in run.measured:
                with torch.no_grad():
                    comparison.take(past)
            if step == run.measured[-1]:
                with torch.no_grad():
                    comparison.sample(past[0], past[-1], run.draws)
            optimizer.step()
    bias, spread = (
        {str(s): mean.root for s, mean in means.items()}
        for means in (comparison.bias, comparison.spread)
    )
    seconds = round(time.process_time() - started, 3)
    return Figures(comparison.rms(), bias, spread, loss, seconds)


def _backward(model: nn.Module, images: Tensor, labels: Tensor, run: Run) -> tuple[Tensor, float]:
    """Add the gradient of the mean loss, part by part; the part that came last, and the loss."""
    count, total = run.batch // run.norm_batch, 0.0
    part = images
    for part, target in zip(images.chunk(count), labels.chunk(count), strict=True):
        loss = F.cross_entropy(model(part), target) / count
        loss.backward()
        total += loss.item()
    return part, total
