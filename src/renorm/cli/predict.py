"""``renorm predict``: what each normalizer will do to a net, without training it."""

import json as encoder
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from renorm.cli import DONE
from renorm.cli.progress import Stages
from renorm.lab.prediction import Net, gaussian, net_of
from renorm.lab.prediction import predict as predicted
from renorm.measure import Prediction
from renorm.report import prediction_console

Flag = Annotated[bool, Parameter(negative="")]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]
Sizes = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")]
NORMALIZERS = (
    "batch_norm",
    "layer_norm",
    "instance_norm",
    "group_norm",
    "filter_response_norm",
    "variance_norm",
    "evonorm_s0",
    "weight_norm",
    "scaled_weight_standardization",
    "none",
)
# those that take statistics over the positions of one channel of one example
OF_POSITIONS = ("instance_norm", "filter_response_norm")


def predict(
    *,
    model: str = "plain",
    depth: int | None = None,
    width: int | None = None,
    stages: int | None = None,
    batch_size: int = 32,
    shape: Sizes = (3, 16, 16),
    normalizers: Names | None = None,
    seeds: int = 1,
    json: Flag = False,
) -> int:
    """Tell what each normalizer will do to a net, in seconds and without training it.

    Fresh nets take one batch of Gaussian numbers forward, and gradients of a random linear function
    of their outputs backward. Two things are told by that: whether the net can tell examples apart
    (if not, it learns slowly, or nothing), and whether gradients grow or fade over its depth (then
    training is unstable). They pull in different directions: groups of few channels keep examples
    apart, and groups of many keep gradients level.

    The ranking is a rule of thumb, printed below the table. It knows nothing of your data, of
    learning rates, and of what normalizers do in eval mode or with groups of few examples.

    To begin with:

    - `renorm predict --depth 20`
    - `renorm predict --model residual --depth 8 --normalizers batch_norm layer_norm none`
    - `renorm predict --normalizers "group_norm(group_size=2)" "group_norm(group_size=16)"`
    - `renorm predict --model resnet20 --batch-size 64 --shape 3 32 32`
    - `renorm predict --model my_net.py:MyNet --shape 1 28 28`

    Parameters
    ----------
    model
        Which net: plain or residual, of any depth; a fixed one of `renorm compare`; or your own, as
        file.py:Name or module:Name, a class or function without arguments that gives a model with
        nn.BatchNorm layers, which the normalizers take the place of.
    depth
        Hidden layers of plain, blocks of residual; 10 without.
    width
        Their channels; 32 without.
    stages
        Parts of such a net, each but the first at half the resolution and with twice the channels
        of the one before; 1 without.
    batch_size
        Examples in the batch, at least 2.
    shape
        Of an example: channels, height and width of an image, or one number for a fully connected
        net.
    normalizers
        Which normalizers: names as for `renorm compare`, which may have options. Ten without, or
        for a fully connected net eight of them.
    seeds
        Draws of the weights that figures are means over.
    json
        Print one JSON object instead of a table.
    """
    if normalizers is None:
        left_out = OF_POSITIONS if len(shape) == 1 else ()
        normalizers = tuple(name for name in NORMALIZERS if name not in left_out)
    net = net_of(model, shape, depth=depth, width=width, stages=stages)
    batch = gaussian(shape, batch_size)
    with Stages(Console(stderr=True)) as stages_shown:

        def progress(name: str, done: int, total: int | None) -> None:
            if stages_shown.console.is_terminal:
                stages_shown.show(done, total, name)

        found = predicted(net, normalizers, batch, seeds=seeds, progress=progress)
    if json:
        text = encoder.dumps(_content(net, batch_size, shape, found), indent=2)
        Console().print(text, highlight=False, markup=False, soft_wrap=True)
    else:
        console = Console(highlight=False)
        console.print(f"{net.name}, {batch_size} examples of {shape}", markup=False)
        prediction_console.show(found, console)
    return DONE


def _content(
    net: Net, batch_size: int, shape: tuple[int, ...], found: tuple[Prediction, ...]
) -> dict[str, Any]:
    return {
        "model": net.name,
        "batch_size": batch_size,
        "shape": shape,
        "predictions": [asdict(one) | {"trouble": one.trouble} for one in found],
    }
