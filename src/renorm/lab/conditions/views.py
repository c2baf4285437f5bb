"""Views: what a condition does to the images of a batch. They draw from their generator alone.

Sizes are in units of the input's standard deviation, as the data sets of this package are scaled
to mean 0 and deviation 1.
"""

import math

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError

# of one frame with the next, in each of the four quantities that drift in a clip
CORRELATION = 0.9
# standard deviations: of the place in sides of the image, of the gain and of the brightness
PLACE, GAIN, BRIGHTNESS = 1 / 16, 0.1, 0.1
# drifts are cut off here, in standard deviations: images move by an eighth of their side at most
FARTHEST = 2.0

SHIFT_CONTRAST, SHIFT_BRIGHTNESS, SHIFT_NOISE = 0.5, 0.5, 0.25


def filmed(inputs: Tensor, group: int, generator: Generator) -> Tensor:
    """Images as frames of clips: place, gain and brightness drift smoothly within each group.

    Each quantity is a stationary walk, w_t = 0.9 w_{t-1} + sqrt(1 - 0.9^2) e_t with e_t normal and
    w_0 as wide as the rest, cut off at 2: so a frame at any place of a clip, alone or not, has the
    same distribution. The place moves by whole pixels, round(w side / 16), the border repeated;
    values become (1 + 0.1 w) x + 0.1 w'.

    Args:
        inputs: (N, C, H, W), floating point; left as they are.
        group: consecutive images in a clip; the last clip may be shorter.
        generator: on the CPU.

    Returns:
        (N, C, H, W), of the same dtype and device.

    Raises:
        ArgumentError: inputs are not images of floating point.
    """
    _check_images(inputs)
    n, C, H, W = inputs.shape
    walks = _walks(math.ceil(n / group), group, generator)[:n].to(inputs.device)
    down, right, gain, brightness = walks.unbind(1)
    rows, columns = _source(H, down), _source(W, right)
    moved = inputs[
        torch.arange(n, device=inputs.device)[:, None, None, None],
        torch.arange(C, device=inputs.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    gain, brightness = (1 + GAIN * gain).to(inputs), (BRIGHTNESS * brightness).to(inputs)
    return moved * gain[:, None, None, None] + brightness[:, None, None, None]


def shifted(inputs: Tensor, group: int, generator: Generator) -> Tensor:
    """Images from another camera: x / 2 + 1/2 + e / 4, with e normal and drawn for each value.

    The same change for all images, so a batch's own statistics take most of it out again, while
    running statistics of unchanged images do not.

    Args:
        inputs: (N, C, H, W), floating point; left as they are.
        group: makes no difference.
        generator: on the CPU.

    Returns:
        (N, C, H, W), of the same dtype and device.

    Raises:
        ArgumentError: inputs are not images of floating point.
    """
    _check_images(inputs)
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    return inputs * SHIFT_CONTRAST + SHIFT_BRIGHTNESS + noise * SHIFT_NOISE


def _walks(clips: int, frames: int, generator: Generator) -> Tensor:
    """Four stationary walks a clip, (clips * frames, 4) in [-2, 2], frames of a clip in turn."""
    steps = torch.randn(frames, clips, 4, generator=generator)
    walk = [steps[0]]
    for step in steps[1:]:
        walk.append(CORRELATION * walk[-1] + math.sqrt(1 - CORRELATION**2) * step)
    return torch.stack(walk, 1).flatten(0, 1).clamp(-FARTHEST, FARTHEST)


def _source(side: int, place: Tensor) -> Tensor:
    """Where each pixel along a side comes from, (N, side), for images moved by ``place`` (N,)."""
    moved = (place * side * PLACE).round().long()
    pixels = torch.arange(side, device=place.device)
    return (pixels - moved[:, None]).clamp(0, side - 1)


def _check_images(inputs: Tensor) -> None:
    if inputs.dim() != 4 or not inputs.is_floating_point():
        raise ArgumentError(
            f"A view changes images (N, C, H, W) of floating point, got shape "
            f"{tuple(inputs.shape)} of {inputs.dtype}. Scale images first: their mean 0 and "
            "deviation 1."
        )
