"""Norms find the layer of which they normalize the output, in models as people build them."""

import pytest
import torch
from torch import nn

from renorm.conversion.observation import observe
from renorm.conversion.pairing import pair
from renorm.conversion.selection import norm_layers, select
from renorm.errors import ArgumentError, ConversionError
from support import torchvision_shim
from support.snapshots import everything

IMAGES = (2, 3, 32, 32)


def paired(model, example=None, exclude=None):
    """The name of each norm, to the name of its source."""
    names = {module: name for name, module in model.named_modules()}
    sites = select(norm_layers(model), None, exclude)
    return {names[norm]: names[source] for norm, source in pair(model, sites, example).items()}


def both_ways(model, example, exclude=None):
    """What is found with an example, which must be what is found without."""
    found = paired(model, example, exclude)
    assert paired(model, exclude=exclude) == found
    return found


def refused(model, example=None):
    """The reason for each norm that is refused."""
    with pytest.raises(ConversionError) as caught:
        paired(model, example)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    return {line.split()[0]: line.split(") ", 1)[1] for line in lines}


def test_torchvision_resnet18():
    model = torchvision_shim.torchvision_models().resnet18(weights=None)
    found = both_ways(model, torch.randn(1, *IMAGES[1:]))
    assert len(found) == 20
    assert {norm: source.replace("conv", "bn") for norm, source in found.items()} == {
        norm: norm.replace("downsample.1", "downsample.0") for norm in found
    }


def test_timm_efficientnet():
    timm = torchvision_shim.timm()
    model = timm.create_model("efficientnet_b0", pretrained=False)
    found = both_ways(model, torch.randn(1, *IMAGES[1:]))
    assert len(found) == 49
    assert found["blocks.1.0.bn1"] == "blocks.1.0.conv_pw"
    assert found["blocks.1.0.bn2"] == "blocks.1.0.conv_dw"
    assert found["blocks.1.0.bn3"] == "blocks.1.0.conv_pwl"


def test_timm_convolution_with_a_forward_of_its_own():
    timm = torchvision_shim.timm()
    model = timm.create_model("tf_efficientnet_b0", pretrained=False)
    why = refused(model, torch.randn(1, *IMAGES[1:]))
    assert len(why) == 5
    assert "conv_stem, which is a Conv2dSame and defines its own forward" in why["bn1"]


class UNet(nn.Module):
    """One level down and up, with a norm behind the transposed convolution too."""

    def __init__(self):
        super().__init__()
        self.down = self.twice(3, 4)
        self.pool = nn.MaxPool2d(2)
        self.bottom = self.twice(4, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.up_norm = nn.BatchNorm2d(4)
        self.merge = self.twice(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    @staticmethod
    def twice(taken, given):
        return nn.Sequential(
            nn.Conv2d(taken, given, 3, padding=1, bias=False),
            nn.BatchNorm2d(given),
            nn.ReLU(inplace=True),
            nn.Conv2d(given, given, 3, padding=1),
            nn.BatchNorm2d(given),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        skip = self.down(x)
        up = self.up_norm(self.up(self.bottom(self.pool(skip))))
        return self.head(self.merge(torch.cat([skip, up], 1)))


def test_u_net():
    model, x = UNet(), torch.randn(IMAGES)
    for example, how in ((None, "comes after"), (x, "is fed by")):
        why = refused(model, example)
        assert list(why) == ["up_norm"]
        assert f"{how} up, which is a ConvTranspose2d" in why["up_norm"]
    blocks = ("down", "bottom", "merge")
    assert both_ways(model, x, exclude="up_norm") == {
        f"{block}.{i + 1}": f"{block}.{i}" for block in blocks for i in (0, 3)
    }


class Dense(nn.Module):
    """Norm, ReLU and convolution, twice, on all features so far."""

    def __init__(self, taken):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(taken), nn.Conv2d(taken, 8, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, features):
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return [*features, self.conv2(self.relu(self.norm2(x)))]


class Listed(nn.Module):
    def forward(self, x):
        return [x]


def test_densenet():
    model = nn.Sequential(Listed(), Dense(3), Dense(7))
    x = torch.randn(IMAGES)
    why = refused(model, x)
    assert list(why) == ["1.norm1", "2.norm1"]
    assert "is fed by the result of torch.cat" in why["2.norm1"]
    assert "no layer; the last one called before is 1" in why["2.norm1"]
    assert list(refused(model)) == ["1.norm1", "2.norm1"]
    found = both_ways(model, x, exclude="*.norm1")
    assert found == {"1.norm2": "1.conv1", "2.norm2": "2.conv1"}


@pytest.mark.parametrize(
    ("source", "norm", "shape"),
    [
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (5, 3, 9)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (5, 4, 9, 9)),
        (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (5, 3, 5, 5, 5)),
        (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), (5, 3, 9, 9)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False), (5, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kinds_of_layers(source, norm, shape):
    assert both_ways(nn.Sequential(source, norm), torch.randn(shape)) == {"1": "0"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.BatchNorm1d(3)), {"1": "0.0"}),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3))), {"1.0": "0"}),
        (nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.BatchNorm1d(3)), {"2": "0"}),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Sequential(), nn.Identity(), nn.BatchNorm1d(3)),
            {"3": "0"},
        ),
    ],
    ids=["end of a container", "start of a container", "identity", "empty container"],
)
def test_containers_and_identities_between(model, expected):
    assert both_ways(model, torch.randn(5, 3)) == expected


class Named(nn.Module):
    """A container that is no nn.Sequential, followed by a norm."""

    def __init__(self, inner, norm):
        super().__init__()
        self.inner = inner
        self.register_module("absent", None)  # as torchvision registers what is left out
        self.norm = norm

    def forward(self, x, scale=1.0):
        return scale * self.norm(self.inner(x))


@pytest.mark.parametrize(
    "last", [[nn.Linear(3, 3)], [nn.Linear(3, 3), nn.Identity()]], ids=["source", "identity"]
)
def test_container_before_a_norm_outside_it(last):
    model = Named(nn.Sequential(nn.ReLU(), *last), nn.BatchNorm1d(3))
    assert both_ways(model, torch.randn(5, 3)) == {"norm": "inner.1"}


def test_container_of_a_class_of_its_own_needs_an_example():
    class Wrapper(nn.Module):
        def __init__(self, wrapped):
            super().__init__()
            self.wrapped = wrapped

        def forward(self, x):
            return self.wrapped(x)

    model = nn.Sequential(Wrapper(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    assert paired(model, torch.randn(5, 3)) == {"1": "0.wrapped"}
    assert "comes after 0, which is a Wrapper" in refused(model)["1"]


@pytest.mark.parametrize(
    "example",
    [(torch.randn(5, 3), 2.0), [torch.randn(5, 3)], {"x": torch.randn(5, 3), "scale": 2.0}],
    ids=["tuple", "list", "dict"],
)
def test_forms_of_an_example(example):
    assert paired(Named(nn.Linear(3, 3), nn.BatchNorm1d(3)), example) == {"norm": "inner"}


def test_keyword_call_of_a_norm():
    class Model(Named):
        def forward(self, x, scale=1.0):
            return self.norm(input=self.inner(x))

    model = Model(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert paired(model, torch.randn(5, 3)) == {"norm": "inner"}


class Wrong(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_example_sees_what_the_order_of_registration_hides():
    assert paired(Wrong()) == {"norm": "second"}
    assert paired(Wrong(), torch.randn(5, 3)) == {"norm": "first"}


def test_what_happens_after_the_norm_does_not_count():
    class Later(Named):
        def forward(self, x, scale=1.0):
            y = self.inner(x)
            z = self.norm(y)
            return (
                z
                + nn.functional.dropout(y, training=self.training)
                + self.get_submodule("drop")(y).relu_()
            )

    model = Later(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.add_module("drop", nn.Dropout())
    assert paired(model, torch.randn(5, 3)) == {"norm": "inner"}


def test_tensors_that_are_gone_are_not_taken_for_later_ones():
    class Forgetful(Named):
        def forward(self, x, scale=1.0):
            nn.functional.dropout(torch.ones(()), training=self.training)  # gone at once
            return super().forward(x, scale)

    blocks = [Forgetful(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(9)]
    found = paired(nn.Sequential(*blocks), torch.randn(5, 3))
    assert found == {f"{i}.norm": f"{i}.inner" for i in range(9)}


def test_meta_device():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to("meta")
    assert both_ways(model, torch.empty(5, 3, device="meta")) == {"1": "0"}


def test_inference_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    with torch.inference_mode():
        assert both_ways(model, torch.randn(5, 3)) == {"1": "0"}
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert both_ways(model, torch.randn(5, 3)) == {"1": "0"}


def test_compiled_model_runs_uncompiled():
    model = torch.compile(Wrong(), backend="eager")
    model(torch.randn(5, 3))
    assert paired(model, torch.randn(5, 3)) == {"_orig_mod.norm": "_orig_mod.first"}


def test_scripted_layers_are_passed_over():
    model = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert paired(model, torch.randn(5, 3)) == {"2": "1"}


class Eventful(nn.Module):
    """Draws random numbers and writes a buffer in eval mode too."""

    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + torch.randn_like(x)


def eventful():
    """A network in training, layers in mixed modes, with hooks."""
    model = nn.Sequential(
        Eventful(), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)
    ).train()
    model(torch.randn(5, 3))
    model[2].register_forward_pre_hook(lambda module, args: None)
    model[1].register_forward_hook(lambda module, args, output: None)
    model[4].eval()
    return model


@pytest.mark.parametrize(
    ("shape", "error"), [((5, 3), None), ((5, 4), ArgumentError)], ids=["success", "failure"]
)
def test_the_model_stays_as_it_was(shape, error):
    model = eventful()
    x = torch.randn(shape)
    before = everything(model)
    if error is None:
        assert paired(model, x) == {"2": "1"}
    else:
        with pytest.raises(error, match="did not run through Sequential: RuntimeError"):
            paired(model, x)
    assert everything(model) == before


def test_interrupt_leaves_the_model_as_it_was():
    def interrupt(module, args):
        raise KeyboardInterrupt

    model = eventful()
    model[3].register_forward_pre_hook(interrupt)
    x = torch.randn(5, 3)
    before = everything(model)
    with pytest.raises(KeyboardInterrupt):
        paired(model, x)
    assert everything(model) == before


def test_refusal_leaves_the_model_as_it_was():
    model = nn.Sequential(eventful(), nn.ReLU(), nn.BatchNorm1d(2))
    x = torch.randn(5, 3)
    before = everything(model)
    assert list(refused(model, x)) == ["2"]
    assert everything(model) == before


def test_no_graph_is_built_and_overridden_eval_is_not_called():
    class Model(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError("train was called")

    seen = []
    model = Model(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_forward_hook(lambda m, args, y: seen.append((y.requires_grad, m.training)))
    observe(model, [], torch.randn(5, 3, requires_grad=True))
    assert seen == [(False, False)]


def test_cause_of_a_failure_is_kept():
    with pytest.raises(ArgumentError, match=r"example=.*model\.eval") as caught:
        paired(eventful(), {"y": torch.randn(5, 3)})
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("example", [3, "x", {1, 2}], ids=str)
def test_example_of_another_type(example):
    with pytest.raises(ArgumentError, match=f"got {type(example).__name__}"):
        paired(eventful(), example)


def test_example_does_not_initialize_a_lazy_model():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    with pytest.raises(ArgumentError, match=r"lazy layers of the model: 0, 1\. Run"):
        paired(model, torch.randn(5, 3))
    assert "lazy" in refused(model)["1"]
    model(torch.randn(5, 3))
    assert both_ways(model, torch.randn(5, 3)) == {"1": "0"}
