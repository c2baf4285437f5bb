"""Whole models to cross-iteration layers and back: pairs, training, eval outputs, refusals."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import renorm
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import CrossIterationBatchNorm
from support.torchvision_shim import timm, torchvision_models


def resnet18() -> Any:
    return torchvision_models().resnet18(num_classes=5)


def efficientnet() -> Any:
    return timm().create_model("efficientnet_b0", num_classes=5)


class UNet(nn.Module):
    """Two levels, with a concatenated skip and a learned upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool = double(3, 8), nn.MaxPool2d(2)
        self.deep = double(8, 16)
        self.up, self.merged = nn.ConvTranspose2d(16, 8, 2, stride=2), double(16, 8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        x = self.up(self.deep(self.pool(skip)))
        return self.head(self.merged(torch.cat([x, skip], 1)))


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


models = pytest.mark.parametrize(
    ("build", "count"), [(resnet18, 20), (efficientnet, 49), (UNet, 6)], ids=lambda p: str(p)[:20]
)
EXAMPLE = torch.zeros(1, 3, 32, 32)


@models
@pytest.mark.parametrize("example", [None, EXAMPLE], ids=["by order", "by example"])
def test_every_norm_is_paired_trains_and_goes_back(build: Any, count: int, example: Any) -> None:
    torch.manual_seed(0)
    model = build()
    original = copy.deepcopy(model)
    classes = [type(m) for m in model.modules()]
    parameters = list(model.parameters())
    renorm.convert(model, to="cross_iteration", window=3, sample=8, example=example)
    norms = [m for m in model.modules() if isinstance(m, CrossIterationBatchNorm)]
    assert len(norms) == count
    assert len({norm.source for norm in norms}) == count
    assert list(model.state_dict()) == list(original.state_dict())
    optimizer = torch.optim.SGD(parameters, 1e-6)  # such a batch has gradients of 1e7
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        y = model(torch.randn(2, 3, 32, 32))
        y.backward(torch.randn_like(y))
        optimizer.step()
    assert all(norm._history.position == 4 for norm in norms)
    assert all(p.isfinite().all() for p in parameters)
    x = torch.randn(2, 3, 32, 32)
    found = model.eval()(x)
    renorm.to_batchnorm(model)
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(model(x), found)
    original.load_state_dict(model.state_dict())
    assert torch.equal(original.eval()(x), found)


def test_conversion_changes_no_eval_output_and_keeps_the_layers() -> None:
    model = resnet18().eval()
    x = torch.randn(1, 3, 32, 32)
    expected, layers = model(x), [m for m in model.modules() if isinstance(m, _BatchNorm)]
    model.bn1.num_batches_tracked.fill_(7)
    renorm.convert(model, to="cross_iteration", example=x)
    assert torch.equal(model(x), expected)
    assert layers == [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert model.bn1.num_batches_tracked == 0
    assert model.bn1.momentum == 0.1


def test_summary_shows_pairs_compensation_and_memory() -> None:
    model = resnet18()
    renorm.convert(model, to="cross_iteration", exclude="layer[34]*", compensation="exact")
    rows = {row.name: row for row in renorm.summary(model).rows}
    assert rows["bn1"].source == "conv1"
    assert rows["bn1"].compensation == "first order"  # K = 147 is above 2 * 64
    assert rows["layer2.0.downsample.1"].source == "layer2.0.downsample.0"
    assert rows["layer2.0.downsample.1"].compensation == "exact"
    assert rows["layer4.0.bn1"].source == rows["layer4.0.bn1"].compensation == ""
    assert rows["layer1.0.bn1"].history == 4 * (64 * 7 * 576 + 576 * 8 + 64 * (8 + 7 + 7) + 7)
    text = str(renorm.summary(model))
    assert "source" in text.splitlines()[0]
    assert "batch norm over 8 iterations" in text
    assert f"history: {sum(r.history for r in rows.values()) / 2**20:.2f} MiB in all" in text


def test_summary_says_that_a_layer_has_no_source() -> None:
    row = renorm.summary(nn.Sequential(renorm.CrossIterationBatchNorm1d(4))).rows[0]
    assert (row.source, row.history) == ("not attached", 0)
    row = renorm.summary(renorm.CrossIterationBatchNorm1d(4, compensation="none")).rows[0]
    assert (row.compensation, row.history) == ("none", 4 * (4 * 8 + 4 * 7 + 7))
    row = renorm.summary(renorm.CrossIterationBatchNorm1d(4, window=1)).rows[0]
    assert (row.compensation, row.history) == ("", 0)


def test_what_cannot_be_paired_is_refused_by_name_and_can_be_left_out_or_uncompensated() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.BatchNorm2d(4))
    with pytest.raises(ConversionError, match=r"(?s)3 \(.*MaxPool2d.*compensation='none'"):
        renorm.convert(model, to="cross_iteration")
    assert type(model[1]) is nn.BatchNorm2d
    assert not model[0]._forward_hooks
    renorm.convert(model, to="cross_iteration", exclude="3")
    renorm.convert(model, to="cross_iteration", compensation="none")
    assert [type(m).__name__ for m in (model[1], model[3])] == ["CrossIterationBatchNorm2d"] * 2
    y = model(torch.randn(2, 3, 8, 8))
    y.backward(torch.randn_like(y))


def test_both_families_live_in_one_model() -> None:
    model = resnet18()
    renorm.convert(model, include="layer1*", limits=renorm.limits.fixed(2, 1))
    renorm.convert(model, to="cross_iteration", exclude="layer1*", sample=4)
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, _BatchNorm)}
    assert kinds == {"BatchRenorm2d", "CrossIterationBatchNorm2d"}
    with renorm.accumulate(model):
        for _ in range(2):
            model(torch.randn(2, 3, 32, 32))
    assert model.layer1[0].bn1.num_batches_tracked == 1
    assert model.bn1.num_batches_tracked == 2
    renorm.freeze(model)
    renorm.to_batchnorm(model)
    assert {type(m) for m in model.modules() if isinstance(m, _BatchNorm)} == {nn.BatchNorm2d}


def test_a_model_of_activated_norms_computes_what_one_of_plain_norms_does() -> None:
    torch.manual_seed(0)
    activated = nn.Sequential(nn.Conv2d(3, 4, 3), renorm.CrossIterationBatchNormAct2d(4, window=3))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), renorm.CrossIterationBatchNorm2d(4, window=3))
    plain.load_state_dict(activated.state_dict())
    for model in (activated, plain):
        norm: Any = model[1]
        norm.attach(model[0])
    for _ in range(4):
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(activated(x), plain(x).relu())


@pytest.mark.parametrize("example", ["text", {"y": EXAMPLE}, (EXAMPLE, EXAMPLE)])
def test_an_example_that_does_not_run_is_refused(example: Any) -> None:
    model = resnet18()
    with pytest.raises(ArgumentError, match="example"):
        renorm.convert(model, to="cross_iteration", example=example)
    assert type(model.bn1) is nn.BatchNorm2d
