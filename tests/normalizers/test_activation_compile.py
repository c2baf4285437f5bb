"""The activation-based normalizers in one graph of torch.compile, and against timm's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from normalizers.activation_subjects import B0, NOISY, S0, Subject
from renorm.nn import EvoNormB0, EvoNormS0, FilterResponseNorm, NoisyBatchNorm
from support import torchvision_shim


def _train(layer: Any, sizes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    results: list[Tensor] = []
    for size in sizes:
        x = torch.randn(size, 12, 3, 3, generator=g).requires_grad_()
        torch.manual_seed(0)
        y = layer(x)
        y.backward(torch.randn(y.shape, generator=g))
        assert x.grad is not None
        results += [y.detach(), x.grad]
    return [*results, *(b.clone() for b in layer.buffers())]


# what could break a graph: buffers that are written, channels that are split, noise that is drawn
@pytest.mark.parametrize("subject", [B0, S0, NOISY], ids=lambda subject: subject.id)
def test_training_compiles_to_one_graph(subject: Subject) -> None:
    layer = subject.build()
    if isinstance(layer, NoisyBatchNorm):
        layer.generator = None
    eager = copy.deepcopy(layer)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, plain in zip(_train(compiled, (4, 6)), _train(eager, (4, 6)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["frn", "b0", "s0"])
def test_timm_has_the_same_numbers(name: str) -> None:
    timm = torchvision_shim.timm()
    layers = timm.layers
    ours, theirs = {
        "frn": lambda: (
            FilterResponseNorm(12, eps=1e-5), layers.FilterResponseNormTlu2d(12, eps=1e-5)
        ),
        "b0": lambda: (EvoNormB0(12, eps=1e-3), layers.EvoNorm2dB0(12, eps=1e-3)),
        "s0": lambda: (EvoNormS0(12, groups=3), layers.EvoNorm2dS0(12, groups=3, eps=1e-5)),
    }[name]()  # fmt: skip
    state = dict(S0.build().state_dict())  # weight, bias and v away from 1 and 0
    state["threshold"] = state["tau"] = 0.1 * state["bias"]
    for layer in (ours, theirs):
        layer.load_state_dict({k: state.get(k, v) for k, v in layer.state_dict().items()})
    results = []
    for layer in (ours, theirs):
        trained = _train_maps(layer)
        results.append([*trained, layer.eval()(torch.ones(1, 12, 2, 2) / 3).detach()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _train_maps(layer: Any) -> list[Tensor]:
    return [t for t in _train(layer, (4, 6)) if t.is_floating_point()]
