import pytest
import torch
from torch import nn

import renorm
from renorm.errors import ArgumentError
from renorm.lab.models import MODELS, ConvNet, ResNet18, ResNet20, SigmoidMLP, UNet
from renorm.nn import CrossIterationBatchNorm

IMAGES = [name for name, model in MODELS.items() if model.least is not None]
# by hand, for 10 classes: weights of convolutions and layers, scales and shifts, biases at the end
COUNTS = {
    "convnet": (1, 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 65 * 10),
    "mlp": (1, 784 * 100 + 2 * 100 * 100 + 2 * 3 * 100 + 101 * 10),
    "vgg": (
        3,
        9 * (3 * 32 + 32**2 + 32 * 64 + 64**2 + 64 * 128 + 128**2)
        + 2 * 2 * (32 + 64 + 128)
        + 129 * 10,
    ),
    "resnet20": (3, 269_722),
    "resnet8": (
        1,
        9 * (16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2)
        + (16 * 32 + 32 * 64)
        + 2 * (3 * 16 + 3 * 32 + 3 * 64)
        + 65 * 10,
    ),
    "resnet14": (
        1,
        9 * (16 + 4 * 16**2 + 16 * 32 + 3 * 32**2 + 32 * 64 + 3 * 64**2)
        + (16 * 32 + 32 * 64)
        + 2 * (5 * 16 + 5 * 32 + 5 * 64)
        + 65 * 10,
    ),
    "resnet18": (3, 11_173_962),
    "unet": (
        3,
        9 * (3 * 16 + 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2)
        + 9 * ((64 + 32) * 32 + (32 + 16) * 16)
        + 2 * (2 * (16 + 32 + 64) + 32 + 16)
        + 17 * 10,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_parameters(name: str) -> None:
    channels, count = COUNTS[name]
    shape = (1, 28, 28) if channels == 1 else (3, 32, 32)
    model = MODELS[name].build(shape, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_the_seed(name: str) -> None:
    nets = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        nets.append(list(MODELS[name].build((3, 8, 8), 4).parameters()))
    assert all(torch.equal(a, b) for a, b in zip(nets[0], nets[1], strict=True))
    assert not torch.equal(nets[0][0], nets[2][0])


def test_the_convolutional_net_is_drawn_in_the_order_of_its_layers() -> None:
    torch.manual_seed(0)
    model = ConvNet(10, 1)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, bias=False), nn.Conv2d(16, 32, 3, bias=False)]
    layers += [nn.Conv2d(32, 64, 3, bias=False), nn.Linear(64, 10)]
    drawn = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(drawn, layers, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 17)])
def test_every_net_takes_images_of_other_sizes(name: str, shape: tuple[int, ...]) -> None:
    model = MODELS[name].build(shape, 4)
    scores = model(torch.randn(2, *shape))
    expected = (2, 4, -(-shape[1] // 2), -(-shape[2] // 2)) if name == "unet" else (2, 4)
    assert scores.shape == expected
    scores.backward(torch.randn(expected))
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", IMAGES)
def test_the_least_image_is_taken_and_smaller_ones_are_refused(name: str) -> None:
    least = MODELS[name].least
    assert least is not None
    MODELS[name].build((1, least, least), 4)(torch.randn(4, 1, least, least))
    for shape in ((1, least - 1, 32), (1, 32, least - 1), (30,)):
        with pytest.raises(ArgumentError, match=rf"net '{name}' takes .* at least {least} x .*got"):
            MODELS[name].build(shape, 4)


@pytest.mark.parametrize("name", MODELS)
def test_no_convolution_or_layer_in_front_of_a_norm_has_a_bias(name: str) -> None:
    model = MODELS[name].build((3, 8, 8), 4)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [m.bias is not None for m in weighted].count(True) == 1
    assert weighted[-1].bias is not None
    assert len(norms) == len(weighted) - 1


@pytest.mark.parametrize("name", MODELS)
def test_every_net_converts_to_both_kinds(name: str) -> None:
    shape = (3, 8, 8)
    example = torch.randn(2, *shape)
    norms = sum("BatchNorm" in type(m).__name__ for m in MODELS[name].build(shape, 4).modules())
    crossed = renorm.convert(
        MODELS[name].build(shape, 4), to="cross_iteration", example=example, burn_in=0
    )
    renormed = renorm.convert(MODELS[name].build(shape, 4))
    for model, kind in ((crossed, CrossIterationBatchNorm), (renormed, renorm.nn.BatchRenorm)):
        assert sum(isinstance(m, kind) for m in model.modules()) == norms
        scores = model(torch.randn(4, *shape))
        scores.backward(torch.randn_like(scores))


@pytest.mark.parametrize("make", [ResNet20, ResNet18])
def test_residual_nets_have_weights_of_he(make: type[ResNet20]) -> None:
    for module in make(10).modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / module.weight[0].numel()) ** 0.5
            # a sample's deviation is off by std / sqrt(2 n), here up to four times that
            slack = 4 * std / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, abs=slack)


def test_the_depths_of_the_residual_nets() -> None:
    for make, depth in ((ResNet20, 20), (ResNet18, 18)):
        weighted = [m for m in make(10).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        projections = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert len(weighted) - len(projections) == depth


def test_a_shortcut_without_weights_takes_every_other_position_and_adds_zeros() -> None:
    shortcut = ResNet20(10).blocks[3].get_submodule("shortcut")
    x = torch.randn(2, 16, 5, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 3, 2)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


def test_the_sigmoid_net_is_that_of_the_paper() -> None:
    model = SigmoidMLP(10, 784)
    kinds = [type(layer).__name__ for layer in model.hidden]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "Sigmoid"] * 3]
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(100, 784), (100, 100), (100, 100), (10, 100)]


def test_maps_follow_what_is_shown_where_it_is_shown() -> None:
    torch.manual_seed(0)
    model = UNet(2, 1).eval()
    plain = torch.zeros(1, 1, 64, 64)
    spot = plain.clone()
    spot[..., 32:34, 32:34] = 1
    with torch.no_grad():
        changed = (model(spot) - model(plain)).abs().amax((0, 1))
    assert changed[16, 16] > 0
    assert not changed[:2].any()
