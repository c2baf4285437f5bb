"""``renorm bench``: what our layers cost beside nn.BatchNorm and beside others."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED

Names = Annotated[
    tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)
]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def bench(
    *,
    suite: Names = (),
    full: Flag = False,
    kernel: Names = ("auto",),
    peer: Names = (),
    device: Literal["cpu", "cuda"] = "cpu",
    repeats: int | None = None,
    json: Path | None = None,
) -> int:
    """Measure what a training step of each layer costs, as a ratio to nn.BatchNorm.

    Output, gradients and new statistics of our layers are first held against the papers' equations
    in float64: a layer that is wrong is not timed, and the exit code is 1. Then the providers take
    turns in one process, so that a change of the machine's speed meets all of them alike.

    Suites on CPU: `nchw`, `channels_last`, `rows`, `volumes`, `bfloat16`, `relu` (training steps),
    `eval` (forward), `memory` and `memory_relu` (what is kept for backward), `resnet18` (a whole
    net), `peers` and `peers_rows` (Keras, sb3-contrib, TorchRL, where they are installed). On
    CUDA: `gpu_nhwc_bfloat16`, `gpu_nchw_bfloat16`, `gpu_nhwc_float32`, `gpu_nchw_float32`, and
    `gpu_relu_...` of each.

    To begin with:

    - `renorm bench`: a few shapes of each suite, about a minute
    - `renorm bench --suite nchw relu --full --json results.jsonl`
    - `renorm bench --kernel aten`: as if the C extension were not built
    - `renorm bench --suite peers --peer some.package:BatchRenorm2d`

    Parameters
    ----------
    suite
        Which suites; all of the device if none is given.
    full
        All shapes of each suite, each for longer: several minutes.
    kernel
        Kernels of ours to measure: `auto` for the one a layer chooses, which is the default, or
        their names; `moving` for the layer with backward="moving".
    peer
        Classes to measure in `peers`, as package.module:Class; each is called with the number
        of channels.
    device
        Where to measure.
    repeats
        Turns for each shape. By default as many as the time allows.
    json
        Append records to this file: JSON lines, one a shape, provider and direction.
    """
    from rich.console import Console

    from renorm.bench import records, session, tables
    from renorm.cli.progress import Bar

    plan = session.Plan(_split(suite), _split(kernel), _split(peer), device, full, repeats)
    if json is not None:
        records.check_writable(json)
    with Bar(Console(stderr=True)) as bar:
        report = session.run(
            plan,
            keep=lambda record: None if json is None else records.append(json, record),
            show=lambda now: bar.show(now.done, now.total, now.now),
        )
    tables.show(report, Console())
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        messages.print(f"Records: {json}")
    if report.interrupted:
        messages.print("Interrupted. What was measured is above.")
        return INTERRUPTED
    return SOME_FAILED if report.refused else DONE


def _split(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for name in names for part in name.split(",") if part.strip())
