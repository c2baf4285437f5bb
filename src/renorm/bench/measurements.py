"""One shape at a time: from providers to records."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from renorm.bench import resnet, timing
from renorm.bench.providers import BASELINE, Provider, kernel_for, ready
from renorm.bench.records import Record
from renorm.bench.registry import Shape, Suite
from renorm.bench.saved import saved
from renorm.bench.timing import Step, Times
from renorm.environment import describe

COPY = "copy"
_MODEL_TURNS = 20


class Setting(NamedTuple):
    """Where everything is measured."""

    device: str
    threads: int
    allocator: str
    environment: dict[str, str | None]


def setting(device: str, allocator: str) -> Setting:
    """The setting of this process."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    # the version with its build, +cpu or +cu130
    environment = {**describe(), "torch": torch.__version__}
    return Setting(name, torch.get_num_threads(), allocator, environment)


def timed(
    suite: Suite,
    shape: Shape,
    providers: Sequence[Provider],
    setting: Setting,
    seconds: float,
    turns: int | None,
) -> Iterator[Record]:
    """Forward and backward of each provider, as ratios to the first of them."""
    x, dy = shape.tensor(0), shape.tensor(1)
    steps: dict[str, Step] = {}
    for provider in providers:
        layer = ready(provider, shape)
        if suite.kind == "inference":
            steps[provider.name] = timing.inference(layer, x)
        else:
            steps[provider.name] = timing.training(layer, x, dy)
    steps[COPY] = timing.copying(x)
    found, turns = timing.interleaved(steps, timing.clock(shape.device), seconds, turns)
    times = {name: timing.summarized(own) for name, own in found.items()}
    copied = 2 * shape.input_bytes / times.pop(COPY)["forward"].median / 1e6
    for provider in providers:
        kernel = kernel_for(provider, shape)
        for direction, own in times[provider.name].items():
            yield _record(
                shape,
                setting,
                provider.name,
                direction,
                own,
                times[providers[0].name][direction],
                baseline=providers[0].name,
                kernel=kernel,
                turns=turns,
                bytes=shape.least_bytes(direction),
                gb_per_s=shape.least_bytes(direction) / own.median / 1e6,
                two_pass_bytes=shape.two_pass_bytes(direction),
                copy_gb_per_s=copied,
            )


def memory(shape: Shape, providers: Sequence[Provider], setting: Setting) -> Iterator[Record]:
    """What each provider saves for backward; the ratio is the number of input-sized tensors."""
    for provider in providers:
        kept = saved(ready(provider, shape), shape.tensor(0))
        yield Record(
            suite=shape.suite,
            shape=shape.sizes,
            layout=shape.layout,
            dtype=shape.dtype,
            provider=provider.name,
            direction="saved",
            baseline=BASELINE,
            median_ratio=float(kept.input_sized),
            min_ratio=float(kept.input_sized),
            kernel=kernel_for(provider, shape),
            saved_bytes=kept.bytes,
            **setting._asdict(),
        )


def models(
    shape: Shape, providers: Sequence[Provider], setting: Setting, turns: int | None
) -> Iterator[Record]:
    """A training step of the whole net with nn.BatchNorm and with our layers."""
    nets = {name: make for one in providers for name, make in resnet.variants(one).items()}
    images = shape.tensor(0)
    steps = {name: resnet.step_of(make(), images) for name, make in nets.items()}
    found, turns = timing.interleaved(steps, timing.clock(shape.device), 0.0, turns or _MODEL_TURNS)
    times = {name: timing.summarized(own) for name, own in found.items()}
    for name, directions in times.items():
        for direction, own in directions.items():
            yield _record(
                shape, setting, name, direction, own, times[BASELINE][direction],
                baseline=BASELINE, turns=turns,
            )  # fmt: skip


def _record(
    shape: Shape,
    setting: Setting,
    provider: str,
    direction: str,
    own: Times,
    base: Times,
    **facts: Any,
) -> Record:
    return Record(
        suite=shape.suite,
        shape=shape.sizes,
        layout=shape.layout,
        dtype=shape.dtype,
        provider=provider,
        direction=direction,
        median_ratio=own.median / base.median,
        min_ratio=own.minimum / base.minimum,
        median_ms=own.median,
        min_ms=own.minimum,
        **facts,
        **setting._asdict(),
    )
