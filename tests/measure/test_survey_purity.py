"""A survey leaves everything as it was, bit for bit, however it ends."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import images, mixed, rows
from torch import Tensor, nn

from renorm import BatchRenorm1d, CrossIterationBatchNorm1d, accumulate, convert, freeze, limits
from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.records import BatchNoise, LayerFacts
from support.snapshots import everything


class Restless(nn.Module):
    """Draws, counts, remembers and rebinds in every forward."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, None
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.total = self.total + 1
        self.get_buffer("count").add_(1)
        return x + torch.randn_like(x) * random.random() * np.random.rand()


def spectral() -> Any:
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), Restless()
    )


def old_spectral() -> Any:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))


def shared() -> Any:
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Linear(3, 3), norm, nn.Dropout(0.3))


def half_frozen() -> Any:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    model[2].eval()
    model[1].requires_grad_(False)
    return model


def windowed() -> Any:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = convert(model.double(), to="cross_iteration", example=rows(1)[0])
    for x in rows(3):
        y = model(x)
        y.backward(torch.randn_like(y))
    return model


def ours() -> Any:
    return nn.Sequential(
        BatchRenorm1d(3, limits=limits.fixed(1.2, 0.1)),
        freeze(BatchRenorm1d(3)),
        nn.Linear(3, 3),
        BatchRenorm1d(3, track_running_stats=False),
        CrossIterationBatchNorm1d(3, compensation="none"),
    )


def untracked() -> Any:
    return nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, affine=False))


MAKES = [spectral, old_spectral, shared, half_frozen, windowed, ours, untracked]


def prepared(make: Any) -> Any:
    """With gradients and hooks, and float64."""
    model = make().double()
    y = model(rows(1)[0])
    y.backward(torch.randn_like(y))
    model.register_forward_hook(lambda module, args, output: None)
    return model


def state(model: nn.Module) -> tuple:
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    hosts = random.getstate(), [str(part) for part in np.random.get_state()]
    learning = [p.requires_grad for p in model.parameters()]
    return everything(model), gradients, hosts, learning, torch.is_grad_enabled()


def loss(output: Any, batch: Tensor) -> Tensor:
    return output.square().mean()


def test_lists_that_a_forward_appends_to() -> None:
    class Logging(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(3)
            self.means = [0.5]

        def forward(self, input: Tensor) -> Tensor:
            self.means.append(float(input.mean()))
            return super().forward(input)

    model = Logging().double()
    means = model.means
    survey(model, rows(3))
    assert model.means is means
    assert means == [0.5]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("training", [True, False, None])
def test_nothing_changes(make: Any, training: bool | None) -> None:
    model = prepared(make)
    if training is not None:
        model.train(training)
    batches = rows(4)
    before = state(model)
    found = survey(model, batches, loss)
    assert state(model) == before
    assert found.complete
    assert all(torch.equal(a, b) for a, b in zip(batches, rows(4), strict=True))


def test_nothing_changes_in_a_model_of_images() -> None:
    model = mixed()
    before = state(model)
    survey(model, images(4), loss, depth="deep")
    assert state(model) == before


class Ending:
    """Two batches, and in the given reading of them the end that is asked for."""

    def __init__(self, end: BaseException, reading: int) -> None:
        self.end, self.reading, self.readings = end, reading, 0

    def __iter__(self) -> Any:
        self.readings += 1
        yield from rows(2)
        if self.readings == self.reading:
            raise self.end
        yield from rows(2)


@pytest.mark.parametrize("make", MAKES)
def test_an_error_of_the_batches_is_the_users_own(make: Any) -> None:
    model = prepared(make)
    before = state(model)
    with pytest.raises(OSError, match="the disk"):
        survey(model, Ending(OSError("the disk"), 1), loss)
    assert state(model) == before


def test_an_interrupt_gives_what_there_is() -> None:
    model = prepared(half_frozen)
    before = state(model)
    found = survey(model, Ending(KeyboardInterrupt(), 1), loss)
    assert state(model) == before
    assert (found.interrupted, found.complete, found.batches) == (True, False, 2)
    assert len(found.of(LayerFacts)) == len(found.of(BatchNoise)) == 2


@pytest.mark.parametrize("at", range(0, 12, 3))
def test_an_interrupt_in_a_forward(at: int) -> None:
    model = prepared(half_frozen)
    calls = []

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(batch)
        y = model(batch)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return y

    before = state(model)
    found = survey(model, rows(12), forward=forward, quantities="batch_noise")
    assert state(model) == before
    assert found.interrupted
    assert found.batches == at


def test_an_interrupt_before_the_first_batch() -> None:
    model = prepared(shared)

    def never() -> Any:
        raise KeyboardInterrupt
        yield

    found = survey(model, never())
    assert found.interrupted
    assert [one.calls for one in found.of(LayerFacts)] == [0]
    assert found.of(BatchNoise) == ()


def test_a_graph_is_usable_afterwards() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double().eval()
    y = model(rows(1)[0])  # its backward reads the running statistics
    survey(model, rows(4))
    y.backward(torch.randn_like(y))
    assert model[0].weight.grad is not None


def test_training_goes_on_as_without() -> None:
    def trained(surveyed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model: Any = nn.Sequential(nn.Linear(3, 3), BatchRenorm1d(3), nn.Dropout()).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for i, x in enumerate(rows(4)):
            with accumulate(model):
                y = model(x)
                y.backward(torch.randn_like(y))
            optimizer.step()
            if surveyed and i == 1:
                survey(model, rows(3), loss)
        return [*model.state_dict().values()]

    pairs = zip(trained(False), trained(True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_in_any_grad_mode(outside: Any) -> None:
    model = prepared(shared)
    before = state(model)
    with outside():
        found = survey(model, rows(3), loss)
    assert state(model) == before
    assert found.records == survey(model, rows(3), loss).records


def test_inference_tensors() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.BatchNorm1d(3)).double().requires_grad_(False)
        batches = rows(3)
    before = everything(model)
    survey(model, batches, loss)
    assert everything(model) == before


def test_compiled() -> None:
    model = prepared(shared)
    compiled: Any = torch.compile(model, backend="eager")
    before = state(model)
    survey(compiled, rows(3), loss)
    assert state(model) == before


def test_a_refusal_changes_nothing() -> None:
    model = prepared(ours)
    before = state(model)
    with pytest.raises(ArgumentError, match="no batch"):
        survey(model, [])
    assert state(model) == before


def test_an_overridden_train_is_not_called() -> None:
    class Model(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("train was called")

    assert survey(Model(nn.BatchNorm1d(3)).double(), rows(2)).complete
