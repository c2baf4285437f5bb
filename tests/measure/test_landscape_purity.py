"""Looking at the loss around a model leaves everything as it was, however it ends."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, accumulate, convert, freeze, limits
from renorm.measure import Monitor, covariate_shift, gradient_reduction, landscape, propagation
from support.snapshots import everything

X = torch.randn(8, 3, dtype=torch.float64)


class Restless(nn.Module):
    """Draws, counts, remembers and rebinds in every forward."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last, self.seen = 0, None, [1]
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.seen.append(2)
        self.total = self.total + 1
        self.get_buffer("count").add_(1)
        return x + torch.randn_like(x) * random.random() * np.random.rand()


def loss(output: Tensor, batch: Any) -> Tensor:
    return output.pow(3).mean()


def landscape_of(model: nn.Module) -> Any:
    return landscape(model, X, loss, step_sizes=(0.1, 0.2))


def covariate_shift_of(model: nn.Module) -> Any:
    return covariate_shift(model, X, loss, 0.1)


def propagation_of(model: nn.Module) -> Any:
    return propagation(model, X, loss)


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.BatchNorm1d(3),
        Restless(),
        BatchRenorm1d(3),
        nn.Dropout(0.3),
        freeze(BatchRenorm1d(3)),
    )


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    model[2].eval()
    model[1].requires_grad_(False)
    return model


def windowed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    return convert(model.double(), to="cross_iteration", example=X)


Look = Callable[[Any, Callable[..., Any]], Any]


def by_landscape(model: nn.Module, loss: Any) -> Any:
    return landscape(model, X, loss, step_sizes=(0.1, 0.2))


def by_shift(model: nn.Module, loss: Any) -> Any:
    return covariate_shift(model, X, loss, 0.1)


def by_reduction(model: nn.Module, loss: Any) -> Any:
    return gradient_reduction(model, X, loss)


LOOKS: list[Look] = [by_landscape, by_shift, by_reduction]


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    """With gradients and hooks, and float64."""
    model = make().double()
    y = model(X)
    y.backward(torch.randn_like(y))
    model.register_forward_hook(lambda module, args, output: None)
    return model


def state(model: nn.Module) -> tuple:
    gradients = [None if p.grad is None else (id(p.grad), p.grad.tolist())
                 for p in model.parameters()]  # fmt: skip
    hosts = random.getstate(), [str(part) for part in np.random.get_state()]
    learning = [(p.requires_grad, p._version) for p in model.parameters()]
    versions = [b._version for b in model.buffers()]
    return everything(model), gradients, hosts, learning, versions, torch.is_grad_enabled()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("make", [mixed, half_frozen, windowed])
@pytest.mark.parametrize("training", [True, False, None])
def test_nothing_changes(look: Look, make: Any, training: bool | None) -> None:
    model, batch = prepared(make), X.clone()
    if training is not None:
        model.train(training)
    if make is windowed and look is by_reduction:
        pytest.skip("it has no layer to compare")
    before = state(model)
    look(model, loss)
    assert state(model) == before
    assert torch.equal(X, batch)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [0, 1])
def test_errors_in_the_loss_and_in_the_backward(look: Look, error: Any, at: int) -> None:
    model, calls = prepared(mixed), []

    def failing(output: Tensor, batch: Any) -> Tensor:
        calls.append(output)
        if len(calls) > at and look is not by_reduction:
            raise error("the disk")
        if look is by_reduction:  # it has one forward, and the backward after it
            output.register_hook(raising)
            if at == 0:
                raise error("the disk")
        return loss(output, batch)

    def raising(gradient: Tensor) -> None:
        raise error("the disk")

    before = state(model)
    with pytest.raises(error, match="the disk"):
        look(model, failing)
    assert state(model) == before


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_in_any_grad_mode(look: Look, outside: Any) -> None:
    model = prepared(mixed)
    before = state(model)
    with outside():
        found = look(model, loss)
    assert state(model) == before
    assert found == look(model, loss)


@pytest.mark.parametrize("look", LOOKS)
def test_a_graph_is_usable_afterwards(look: Look) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double().eval()
    y = model(X)  # its backward reads the running statistics
    look(model, loss)
    y.backward(torch.randn_like(y))
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("look", LOOKS)
def test_training_goes_on_as_without(look: Look) -> None:
    def trained(looked: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model: Any = nn.Sequential(nn.Linear(3, 3), BatchRenorm1d(3), nn.Dropout()).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for i in range(4):
            with accumulate(model):
                y = model(X)
                if looked and i == 1:
                    look(model, loss)
                y.backward(torch.randn_like(y))
            optimizer.step()
            if looked and i == 2:
                look(model, loss)
        return [*model.state_dict().values()]

    pairs = zip(trained(False), trained(True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("look", LOOKS)
def test_compiled_models_are_those_that_they_run(look: Look) -> None:
    model = prepared(mixed)
    compiled = torch.compile(model, backend="eager")
    before = state(model)
    assert look(compiled, loss) == look(model, loss)
    assert state(model) == before


@pytest.mark.parametrize("look", LOOKS)
def test_a_monitor_sees_the_training_alone(look: Look) -> None:
    def observed(looked: bool) -> list[Any]:
        torch.manual_seed(3)
        model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), BatchRenorm1d(3)).double()
        with Monitor(model) as monitor:
            for _ in range(3):
                y = model(X)
                if looked:
                    look(model, loss)
                y.backward(torch.randn_like(y))
                monitor.step()
        return [(one.step, one.layer, one.r.tolist(), one.gap) for one in monitor.observations]

    assert observed(True) == observed(False)
    assert observed(True)


@pytest.mark.parametrize("look", [landscape_of, covariate_shift_of, propagation_of])
def test_moving_averages_of_gradients_stay(look: Callable[[nn.Module], Any]) -> None:
    layer = BatchRenorm1d(3, limits=limits.fixed(3, 5), backward="moving").double()
    model = nn.Sequential(nn.Linear(3, 3).double(), layer)
    loss(model(X), X).backward()
    averages = layer._averages
    assert averages is not None
    before = averages.values.clone()
    assert before.abs().min() > 0
    first, again = look(model), look(model)
    assert layer._averages is not None
    assert layer._averages.values is averages.values
    assert torch.equal(averages.values, before)
    assert averages.passes == 1
    assert first == again
