"""What a layer refuses, and by which name; and odd cases that it computes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import renorm
from cross_iteration.networks import batches, network, norms, optimizer_of, state, trained
from cross_iteration.test_state import kinds
from renorm.errors import ArgumentError, ConversionError

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"window": 0}, "window counts iterations, at least 1, got 0"),
    ({"window": 2.0}, "window counts iterations"),
    ({"window": True}, "window counts iterations"),
    ({"burn_in": -1}, "burn_in counts iterations, at least 0, got -1"),
    ({"compensation": "second_order"}, "compensation must be one of .* got 'second_order'"),
    ({"sample": 0}, "at least 1, got 0"),
    ({"sample": 0.5}, "sample is a number of positions"),
    ({"sample": 8, "compensation": "none"}, "with compensation='none'"),
    ({"follow": "running"}, "follow must be one of"),
    ({"history": True}, "history must be one of"),
    ({"limits": (3, 5)}, "limits is called with the step"),
    ({"momentum": 1.5}, "momentum is the update rate"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        renorm.CrossIterationBatchNorm2d(4, **settings)
    model = renorm.to_batchnorm(network())
    before = state(model)
    with pytest.raises(ArgumentError, match=message):
        renorm.convert(model, to="cross_iteration", **settings)
    assert type(model[1]) is nn.BatchNorm2d
    assert state(model).keys() == before.keys()


def test_eps_of_zero_and_unknown_options_are_refused() -> None:
    with pytest.raises(ArgumentError, match="eps must be positive"):
        renorm.CrossIterationBatchNorm1d(4, eps=0.0)
    with pytest.raises(ArgumentError, match="no option kernel; there are momentum, window"):
        renorm.convert(nn.Sequential(nn.BatchNorm1d(3)), to="cross_iteration", kernel="cpu")
    with pytest.raises(ArgumentError, match="example is for to='cross_iteration'"):
        renorm.convert(nn.Sequential(nn.BatchNorm1d(3)), example=torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="to is 'batch_renorm', 'cross_iteration'"):
        renorm.convert(nn.Sequential(nn.BatchNorm1d(3)), to="crossiteration")


@pytest.mark.parametrize(
    ("cls", "shape"),
    [("1d", (2, 4, 3, 3)), ("2d", (2, 4)), ("3d", (2, 4, 3, 3)), ("2d", (2, 5, 3, 3))],
)
def test_wrong_shapes_are_refused(cls: str, shape: tuple[int, ...]) -> None:
    norm = getattr(renorm, f"CrossIterationBatchNorm{cls}")(4)
    with pytest.raises(ArgumentError, match="takes"):
        norm(torch.randn(shape))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (nn.Conv2d(3, 5, 1), "gives 5 channels"),
        (nn.ConvTranspose2d(3, 4, 2), "transposed convolution"),
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), "no parameter of its own"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1)), "no parameter of its own"),
    ],
)
def test_what_cannot_be_a_source_is_refused(source: Any, words: str) -> None:
    norm = renorm.CrossIterationBatchNorm2d(4)
    with pytest.raises(ArgumentError, match=words):
        norm.attach(source)
    assert norm.source is None
    assert not source._forward_hooks


def test_a_layer_without_source_is_refused_in_training_alone() -> None:
    norm = renorm.CrossIterationBatchNorm2d(4)
    x = torch.randn(2, 4, 3, 3)
    with pytest.raises(ArgumentError, match=r"has no source, .* attach"):
        norm(x)
    assert norm.eval()(x).shape == x.shape
    assert renorm.CrossIterationBatchNorm2d(4, window=1)(x).shape == x.shape
    assert renorm.CrossIterationBatchNorm2d(4, compensation="none")(x).shape == x.shape


class Between(nn.Module):
    """A convolution and a norm that is its, with an operation between them in training."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.operation = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.operation(self.conv(x)))


@pytest.mark.parametrize(
    "operation",
    [
        lambda y: y + 1,
        lambda y: y.flatten(2).clone().view(y.shape),
        lambda y: F.avg_pool2d(y, 2),
        lambda y: torch.cat([y, y]),
        lambda y: y.contiguous(memory_format=torch.channels_last),
    ],
)
def test_a_wrong_guess_of_the_source_is_refused_at_run_time_by_name(operation: Any) -> None:
    model = renorm.convert(Between(operation), to="cross_iteration")
    with pytest.raises(ArgumentError, match=r"bn \(.*normalizes the output of conv, but its input"):
        model(torch.randn(2, 2, 8, 8))
    plain, example = Between(operation), torch.zeros(1, 2, 8, 8)
    with pytest.raises(ConversionError, match="bn"):
        renorm.convert(plain, to="cross_iteration", example=example)


def test_a_change_in_place_between_source_and_norm_is_refused() -> None:
    model = renorm.convert(Between(lambda y: y.mul_(2)), to="cross_iteration")
    with pytest.raises(ArgumentError, match=r"bn .* changed in place"):
        model(torch.randn(2, 2, 8, 8))


def test_a_source_that_is_called_for_something_else_between_is_refused() -> None:
    model = network()
    x, _ = next(batches(1))
    y = model[0](x)
    model[0](2 * x)
    with pytest.raises(ArgumentError, match=r"1 \(.*normalizes the output of 0, but its input"):
        model[1](y)
    with pytest.raises(ArgumentError, match="not at all"):
        model[1](y)
    assert all(norm._history.empty for norm in norms(model))
    model(x)


def test_a_parametrization_that_comes_later_is_refused() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(2))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ArgumentError, match="no parameter of its own"):
        model(torch.randn(2, 2, 7, 7))


def test_torch_func_is_refused_and_eval_is_not() -> None:
    model = network()
    x, _ = next(batches(1))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    with pytest.raises(ArgumentError, match=r"torch\.func cannot transform"):
        torch.func.grad(loss)(parameters)
    assert all(norm._history.empty for norm in norms(model))
    model.eval()
    torch.func.grad(loss)(parameters)


def test_frozen_sources_cost_nothing_and_are_compensated_by_nothing() -> None:
    model, expected = network(), network(compensation="none")
    for each in (model, expected):
        each[0].requires_grad_(False)
        each[3].requires_grad_(False)
        trained(each, optimizer_of(each), batches(6))
    for norm, other in zip(norms(model), norms(expected), strict=True):
        torch.testing.assert_close(norm.running_mean, other.running_mean)
        torch.testing.assert_close(norm.running_var, other.running_var)
        assert not norm._history.tensors["derivative"].any()
        assert not norm._history.tensors["mean_patch"].any()


def test_a_source_that_is_thawed_is_compensated_from_then_on() -> None:
    model = network()
    model[0].requires_grad_(False)
    trained(model, optimizer_of(model), batches(3))
    model[0].requires_grad_(True)
    outputs = trained(model, optimizer_of(model), batches(6, seed=3))
    assert all(y.isfinite().all() for y in outputs)
    assert bool(model[1]._history.tensors["derivative"].any(2).any(0).all())


def test_tied_weights_are_compensated_each_for_its_own_layer() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model: Any = nn.Sequential(*layers)
    model[2].weight = model[0].weight
    renorm.convert(model, to="cross_iteration", window=3, compensation="exact").double()
    data = torch.randn(3, 6, 4, dtype=torch.float64)
    for x in data[:2]:
        model(x)
    with torch.no_grad():
        model[0].weight.mul_(1.3)
    W = model[0].weight.detach().unsqueeze(0)
    mean = model[1]._history.means(W, model[0].bias.detach(), None)[:, 0]
    torch.testing.assert_close(mean, model[0](data[0]).mean(0).detach())


@pytest.mark.parametrize("compensation", ["first_order", "exact", "none"])
def test_one_example_of_one_position_is_normalized_once_the_window_has_two(
    compensation: str,
) -> None:
    torch.manual_seed(0)
    source = nn.Linear(3, 4)
    norm = renorm.CrossIterationBatchNorm1d(4, compensation=compensation, window=4)  # type: ignore[arg-type]
    norm.attach(source)
    data = torch.randn(6, 1, 3)
    first = norm(source(data[0]))
    torch.testing.assert_close(first, source(data[0]) / (1 + norm.eps) ** 0.5)  # by (0, 1)
    assert norm.num_batches_tracked == 0
    y = first
    for x in data[1:4]:
        y = norm(source(x))
    joint = source(data[:4, 0])
    mean, var = joint.mean(0), joint.var(0, correction=0)
    torch.testing.assert_close(y, (source(data[3]) - mean) / (var + norm.eps).sqrt())
    assert norm.num_batches_tracked == 3


def test_one_value_without_running_statistics_is_refused() -> None:
    norm = renorm.CrossIterationBatchNorm1d(4, track_running_stats=False, compensation="none")
    with pytest.raises(ArgumentError, match="one value per channel"):
        norm(torch.randn(1, 4))


@kinds
def test_empty_batches_pass_and_are_not_remembered(kind: dict[str, Any]) -> None:
    model = network(**kind)
    trained(model, optimizer_of(model), batches(3))
    before = state(model)
    y = model(torch.randn(0, 2, 7, 7))
    assert y.shape == (0, 6, 3, 3)
    y.backward(torch.randn(0, 6, 3, 3))
    after = state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


@kinds
def test_dead_channels_and_constant_input_give_no_infinity(kind: dict[str, Any]) -> None:
    model = network(**kind)
    with torch.no_grad():
        model[0].weight[0] = 0
    for _ in range(6):
        y = model(torch.ones(2, 2, 7, 7))
        y.backward(torch.randn_like(y))
        assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(t.isfinite().all() for t in state(model).values())


def test_large_mean_loses_no_variance_in_float32() -> None:
    torch.manual_seed(0)
    source = nn.Linear(4, 3)
    with torch.no_grad():
        source.bias.fill_(1e4)
    norm = renorm.CrossIterationBatchNorm1d(3, window=4, momentum=1.0)
    norm.attach(source)
    data = torch.randn(4, 64, 4)
    for x in data:
        norm(source(x))
    joint = source.double()(data.double().flatten(0, 1))
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), joint.var(0), rtol=3e-3, atol=0.0)


@pytest.mark.parametrize("module", [nn.SyncBatchNorm(4), nn.LazyBatchNorm2d()])
def test_batch_norms_with_no_counterpart_are_refused(module: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), module)
    with pytest.raises(ConversionError, match="1 "):
        renorm.convert(model, to="cross_iteration")
    assert model[1] is module


def test_convert_sync_batchnorm_does_not_drop_the_layers() -> None:
    with pytest.raises(ConversionError, match="CrossIterationBatchNorm2d"):
        nn.SyncBatchNorm.convert_sync_batchnorm(network())


def test_built_layers_convert_back_to_the_batch_norm_of_their_rank() -> None:
    for rank in ("1d", "2d", "3d"):
        layer = getattr(renorm, f"CrossIterationBatchNorm{rank}")(3, compensation="none")
        assert type(renorm.to_batchnorm(layer)) is getattr(nn, f"BatchNorm{rank}")
    activated = nn.Sequential(renorm.CrossIterationBatchNormAct2d(3, compensation="none"))
    with pytest.raises(ConversionError, match="activation"):
        renorm.to_batchnorm(activated)
