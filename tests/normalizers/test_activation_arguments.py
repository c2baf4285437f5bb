"""Arguments and inputs that the activation-based normalizers refuse, and odd ones they take."""

import math
from typing import Any

import pytest
import torch

from normalizers.activation_subjects import SUBJECTS, Subject
from renorm.errors import ArgumentError
from renorm.nn import (
    EvoNormB0,
    EvoNormS0,
    FilterResponseNorm,
    LpBatchNorm,
    NoisyBatchNorm,
    VarianceNorm,
)

each = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.id)
CLASSES = [FilterResponseNorm, VarianceNorm, EvoNormB0, EvoNormS0, LpBatchNorm, NoisyBatchNorm]
RUNNING = [VarianceNorm, EvoNormB0, LpBatchNorm, NoisyBatchNorm]
every = pytest.mark.parametrize("cls", CLASSES)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (VarianceNorm, {"num_features": 0}, r"number of channels, an int of at least 1, got 0"),
        (VarianceNorm, {"num_features": 2.0}, r"an int of at least 1, got 2.0"),
        (EvoNormB0, {"eps": 0}, r"eps must be positive, got 0"),
        (LpBatchNorm, {"eps": float("nan")}, r"eps must be positive, got nan"),
        (NoisyBatchNorm, {"momentum": 1.5}, r"from 0 to 1, or None .* got 1.5"),
        (VarianceNorm, {"momentum": -0.1}, r"from 0 to 1, or None .* got -0.1"),
        (LpBatchNorm, {"p": 3}, r"1, 2 or math.inf, got 3"),
        (FilterResponseNorm, {"learned_eps": 0.0}, r"above 0, got 0.0. Use None"),
        (EvoNormS0, {"groups": 5}, r"groups must divide the 8 channels, got 5. .* 1, 2, 4, 8"),
        (EvoNormS0, {"group_size": 3}, r"group_size must divide the 8 channels, got 3"),
        (EvoNormS0, {"groups": 0}, r"groups must divide the 8 channels, got 0"),
        (EvoNormS0, {"groups": 2.0}, r"groups must divide the 8 channels, got 2.0"),
        (EvoNormS0, {"groups": 2, "group_size": 4}, r"groups=2 and group_size=4. Give one"),
        (EvoNormS0, {"num_features": 48}, r"groups must divide the 48 channels, got 32"),
        (NoisyBatchNorm, {"n_sigma": 0.9}, r"n_sigma must be finite and at least 1, got 0.9"),
        (NoisyBatchNorm, {"n_mu": -1}, r"n_mu must be finite and at least 0, got -1"),
        (NoisyBatchNorm, {"r_mu": math.inf}, r"r_mu must be finite and at least 0, got inf"),
        (NoisyBatchNorm, {"r_sigma": math.nan}, r"r_sigma must be finite and at least 0, got nan"),
    ],
)
def test_bad_argument_is_named(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        cls(**{"num_features": 8, **arguments})


@every
def test_bad_input_is_named(cls: Any) -> None:
    layer = cls(8)
    with pytest.raises(ArgumentError, match=r"8 channels in dimension 1, got shape \(2, 4, 3\)"):
        layer(torch.randn(2, 4, 3))
    with pytest.raises(ArgumentError, match=r"8 channels in dimension 1, got shape \(8,\)"):
        layer(torch.randn(8))
    with pytest.raises(ArgumentError, match=r"floating point input, got torch.int64. Convert"):
        layer(torch.ones(2, 8, 3, dtype=torch.long))


@pytest.mark.parametrize("cls", [VarianceNorm, LpBatchNorm, NoisyBatchNorm])
@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 1, 1)])
def test_single_value_per_channel_is_refused_in_training(cls: Any, shape: tuple[int, ...]) -> None:
    layer, x = cls(8), torch.randn(shape)
    with pytest.raises(ArgumentError, match=r"single value per channel.*more examples"):
        layer(x)
    assert int(layer.num_batches_tracked) == 0
    assert layer.eval()(x).shape == shape


@pytest.mark.parametrize("cls", [FilterResponseNorm, EvoNormB0])
@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 1), (4, 8, 1, 1)])
def test_single_position_is_refused_where_it_says_nothing(cls: Any, shape: tuple) -> None:
    layer = cls(8)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"positions of one channel of one example, and x"):
            layer(torch.randn(shape))
        layer.eval()


def test_learned_eps_takes_a_single_position() -> None:
    layer = FilterResponseNorm(3, learned_eps=1e-4)
    y = layer(torch.tensor([[0.01, 1.0, -1.0]])).detach()
    # 0.01 / sqrt(1e-4 + 1e-6 + 1e-4), nearly 1, and what is below the threshold of 0
    torch.testing.assert_close(y, torch.tensor([[0.705346, 0.99995, 0.0]]), rtol=1e-5, atol=1e-6)


def test_single_value_per_group_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"groups=8 of 8 channels .* fewer groups"):
        EvoNormS0(8)(torch.randn(4, 8))
    EvoNormS0(8, groups=4)(torch.randn(4, 8))
    EvoNormS0(8)(torch.randn(4, 8, 2))


def test_groups_and_group_size_say_the_same() -> None:
    assert EvoNormS0(64).groups == 32
    assert EvoNormS0(24).groups == 24
    assert EvoNormS0(24, group_size=4).groups == 6
    assert EvoNormS0(24, groups=6).groups == 6


def test_those_that_contain_the_nonlinearity_say_so() -> None:
    activating = {cls for cls in CLASSES if cls.activates}
    assert activating == {FilterResponseNorm, EvoNormB0, EvoNormS0}


@every
def test_new_layer_normalizes_alone(cls: Any) -> None:
    """At first, weight and bias do nothing, the threshold is ReLU's and v is 1."""
    layer = cls(8)
    values = {name: p.unique().tolist() for name, p in layer.named_parameters()}
    expected = {"weight": [1.0], "bias": [0.0], "threshold": [0.0], "v": [1.0]}
    assert values == {name: expected[name] for name in values}
    assert {"weight", "bias"} <= values.keys()
    assert not {"weight", "bias"} & dict(cls(8, affine=False).named_parameters()).keys()


@each
def test_empty_batch_comes_through_and_is_not_counted(subject: Subject) -> None:
    layer = subject.build()
    before = [b.clone() for b in layer.buffers()]
    x = torch.empty(0, 12, 4, 4, requires_grad=True)
    y = layer(x)
    y.backward(torch.empty_like(y))
    assert y.shape == x.shape
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@each
def test_half_layers_take_half_input(subject: Subject) -> None:
    layer, x = subject.build().half(), torch.randn(4, 12, 3, 3).half()
    exact = copy_in_double(layer, subject)
    if isinstance(layer, NoisyBatchNorm):  # the draws of another dtype are others
        layer, exact = layer.eval(), exact.eval()
    y = layer(x).detach()
    assert y.dtype == torch.float16
    value = exact(x.double()).detach()
    # computed in float32 and rounded once
    torch.testing.assert_close(
        y.double(), value, rtol=2.0**-11, atol=2e-6 * float(value.abs().max())
    )


def copy_in_double(layer: Any, subject: Subject) -> Any:
    exact = subject.build().double()
    exact.load_state_dict(layer.state_dict())
    return exact


@pytest.mark.parametrize("cls", RUNNING)
def test_what_a_half_buffer_cannot_hold_is_not_counted(cls: Any) -> None:
    layer = cls(2, momentum=1.0).half()
    x = torch.tensor([-6e4, 6e4], dtype=torch.float16).repeat(8).view(4, 2, 2)
    if cls is LpBatchNorm:
        layer = LpBatchNorm(2, p=2, momentum=1.0).half()
    layer(x)
    assert int(layer.num_batches_tracked) == 0
    assert all(bool(b.isfinite().all()) for b in layer.buffers())


@each
def test_meta_device_has_shapes(subject: Subject) -> None:
    layer = subject.cls(12, **subject.options, device="meta")
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert layer(torch.empty(4, 12, 3, 3, device="meta")).shape == (4, 12, 3, 3)


@each
def test_settings_are_shown(subject: Subject) -> None:
    text = repr(subject.cls(12, **subject.options))
    assert text.startswith(f"{subject.cls.__name__}(12, eps=1e-0")
    if "p" in subject.options:
        assert f"p={subject.options['p']}, centred={subject.options['centred']}" in text
