from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from renorm import kernels
from renorm.bench.gate import refusal
from renorm.bench.providers import AUTO, MOVING, Provider, ours
from renorm.bench.registry import SUITES, Shape
from renorm.kernels import cpu
from renorm.nn import BatchRenorm2d

GATED = ["nchw", "channels_last", "rows", "volumes", "bfloat16", "relu"]
MAPS = Shape("any", (2, 3, 4, 4))


@pytest.mark.parametrize("kernel", [AUTO, MOVING, *kernels.names()])
@pytest.mark.parametrize("suite", GATED)
def test_our_layers_pass(suite: str, kernel: str) -> None:
    if kernel == "cpu" and cpu.MISSING:
        pytest.skip(cpu.MISSING)
    if kernel not in (AUTO, MOVING, "cpu", "aten", "composite"):
        pytest.skip(f"the kernel {kernel} is for another device")
    assert refusal(ours(kernel), SUITES[suite].shapes[0]) is None


class WrongForward(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, mask) * (1 + 1e-4)


class WrongInEval(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(input, mask)
        return y if self.training else y + 1e-3


class WrongDx(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(input, mask)
        return y + 1e-3 * (input - input.detach())


class WrongDweight(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(input, mask)
        return y + 1e-3 * (self.weight - self.weight.detach()).sum()


class WrongDbias(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(input, mask)
        return y + 1e-3 * (self.bias - self.bias.detach()).sum()


class WithoutUpdate(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        before = [buffer.clone() for buffer in self.buffers()]
        y = super().forward(input, mask)
        with torch.no_grad():
            for buffer, value in zip(self.buffers(), before, strict=True):
                buffer.copy_(value)
        return y


class NotANumber(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, mask) * float("nan")


class Raising(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        raise RuntimeError("no code for this")


def planted(cls: type[BatchRenorm2d]) -> Provider:
    return Provider(cls.__name__, lambda shape, limits: cls(shape.sizes[1], limits=limits))


@pytest.mark.parametrize(
    ("cls", "part"),
    [
        (WrongForward, "the output"),
        (WrongInEval, "the output in eval mode"),
        (WrongDx, "dx"),
        (WrongDweight, "dweight"),
        (WrongDbias, "dbias"),
        (WithoutUpdate, "running_mean"),
        (NotANumber, "the output"),
        (Raising, "RuntimeError: no code for this"),
    ],
)
def test_a_wrong_layer_is_refused_with_what_is_wrong(cls: type[BatchRenorm2d], part: str) -> None:
    reason = refusal(planted(cls), MAPS)
    assert reason is not None
    assert reason.startswith(f"{cls.__name__} on 4x8x7x7 float32 contiguous: {part}")


def test_batch_norm_is_not_batch_renorm() -> None:
    plain = Provider("plain", lambda shape, limits: nn.BatchNorm2d(shape.sizes[1]))
    assert refusal(plain, MAPS)


def test_a_forgotten_relu_is_refused() -> None:
    assert refusal(planted(BatchRenorm2d), MAPS) is None
    reason = refusal(planted(BatchRenorm2d), replace(MAPS, relu=True))
    assert reason is not None
    assert "the output" in reason
