"""Nothing but the statistics changes, and on failure not even these."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm import BatchRenorm1d, LazyBatchRenorm1d, freeze
from renorm.calibration import calibrate
from renorm.errors import ArgumentError
from support.snapshots import everything


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return x + torch.randn_like(x)


def network() -> Any:
    model = nn.Sequential(
        nn.Linear(3, 3), BatchRenorm1d(3), Noisy(), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU()
    )
    model(torch.randn(8, 3)).backward(torch.randn(8, 3))
    model.train()
    model[3].eval()
    model[5].eval()
    model[3].register_forward_pre_hook(lambda module, args: None)
    return model


def without_statistics(snapshot):
    seen, generator = snapshot
    names = ("running_mean", "running_var")
    return [s for s in seen if not (s[0] == "_buffers" and s[1] in names)], generator


class Interrupted:
    """A batch, and then the end that is asked for."""

    def __init__(self, end):
        self.end = end

    def __iter__(self):
        yield torch.randn(8, 3)
        raise self.end


@pytest.mark.parametrize("upstream", ["train", "calibrated"])
def test_success_changes_statistics_alone(upstream):
    model = network()
    before = everything(model)
    calibrate(model, [torch.ones(8, 3)], upstream=upstream)
    after = everything(model)
    assert without_statistics(after) == without_statistics(before)
    assert after != before


@pytest.mark.parametrize("upstream", ["train", "calibrated"])
@pytest.mark.parametrize(
    "end", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_exception_changes_nothing(upstream, end):
    model = network()
    batches = Interrupted(end)
    before = everything(model)
    with pytest.raises(type(end)):
        calibrate(model, batches, upstream=upstream)
    assert everything(model) == before


def test_exception_in_a_late_pass_changes_nothing():
    model = network()
    passes = []

    def forward(model, batch):
        passes.append(batch)
        if len(passes) == 2:
            raise ValueError("broken")
        model(batch)

    batches = [torch.randn(8, 3)]
    before = everything(model)
    with pytest.raises(ValueError, match="broken"):
        calibrate(model, batches, upstream="calibrated", forward=forward)
    assert everything(model) == before


@pytest.mark.parametrize("upstream", ["train", "calibrated"])
def test_statistics_that_are_not_finite_are_refused_by_name(upstream):
    model = network()
    batch = torch.randn(8, 3)
    batch[0] = torch.inf
    before = everything(model)
    with pytest.raises(ArgumentError, match="statistics of 1 are not finite"):
        calibrate(model, [batch], upstream=upstream)
    assert everything(model) == before


def test_statistics_too_large_for_their_dtype():
    layer = nn.BatchNorm1d(3).half()
    with pytest.raises(ArgumentError, match="the model are not finite in torch"):
        calibrate(layer, [torch.tensor([[6e4] * 3, [-6e4] * 3]).half()])


def test_interrupt_while_writing_restores_all(monkeypatch):
    model = network()
    before = everything(model)
    copy_, calls = torch.Tensor.copy_, []

    def interrupted(tensor, value):
        calls.append(tensor)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return copy_(tensor, value)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [torch.ones(8, 3)])
    monkeypatch.undo()
    assert everything(model) == before


def test_layer_that_writes_in_spite_of_its_flag():
    class Stubborn(_BatchNorm):
        def forward(self, input):
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            return input

    layer, x = Stubborn(3), torch.randn(8, 3)
    calibrate(layer, [x])
    assert layer.num_batches_tracked == 0
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_overridden_train_is_not_called():
    class Model(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError("train was called")

    calibrate(Model(nn.BatchNorm1d(3)), [torch.randn(8, 3)])


def test_inference_tensors():
    with torch.inference_mode():
        layer = nn.BatchNorm1d(3).requires_grad_(False)
    x = torch.randn(8, 3)
    calibrate(layer, [x])
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_failure_leaves_a_graph_usable():
    layer = nn.BatchNorm1d(3).eval()
    y = layer(torch.randn(8, 3)).sum()  # its backward reads the statistics
    with pytest.raises(ArgumentError, match="not finite"):
        calibrate(layer, [torch.full((8, 3), torch.inf)])
    y.backward()
    assert layer.weight.grad is not None


def test_no_graph_is_built():
    seen = []
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    calibrate(model, [torch.randn(8, 3)])
    assert seen == [False]


def lazy():
    return LazyBatchRenorm1d()


@pytest.mark.parametrize(
    ("make", "batches", "options", "message"),
    [
        (network, [], {}, "no batch to calibrate by"),
        (network, [], {"upstream": "calibrated"}, "no batch to calibrate by"),
        (network, torch.ones(8, 3), {}, r"got Tensor. For a single batch give \[batch\]"),
        (network, {"x": torch.ones(8, 3)}, {}, "got dict"),
        (network, 3, {}, "got int"),
        (network, iter([]), {"upstream": "calibrated"}, "list_iterator ends for good"),
        (network, [], {"pool": "mean"}, "pool is 'population' or 'paper', got 'mean'"),
        (network, [], {"upstream": "eval"}, "upstream is 'train' or 'calibrated', got 'eval'"),
        (network, [], {"uncalled": "skip"}, "uncalled is 'raise' or 'keep', got 'skip'"),
        (nn.ReLU, [], {}, "ReLU has no layer to calibrate"),
        (lambda: freeze(BatchRenorm1d(3)), [], {}, "no layer to calibrate.*It has 1 others"),
        (lambda: nn.Sequential(lazy()), [], {}, "no statistics yet: 0. Initialize"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3)),
            [torch.ones(4, 3), torch.ones(1, 3)],
            {"pool": "paper"},
            r"layer '0' got an input of shape \(1, 3\) with 1",
        ),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_refused(make, batches, options, message):
    with pytest.raises(ArgumentError, match=message):
        calibrate(make(), batches, **options)


def test_wrong_call_of_a_layer_is_its_own_error():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(values=x)

    with pytest.raises(TypeError, match="values"):
        calibrate(Model(), [torch.randn(8, 3)])
