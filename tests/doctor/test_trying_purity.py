"""Trying fixes leaves everything as it was, bit for bit, however it ends."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, convert, freeze
from renorm.doctor.trying import AS_IT_IS, FIXES, FURTHER, try_fixes
from support.snapshots import everything


def rows(count: int, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (size, 3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


class Restless(nn.Module):
    """Draws and counts in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.get_buffer("count").add_(1)
        return x + 0.1 * torch.randn_like(x) * random.random() * np.random.rand()


def plain() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), Restless())


def half_frozen() -> Any:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.train()[0].eval()
    model[1].requires_grad_(False)
    return model


def ours() -> Any:
    return nn.Sequential(BatchRenorm1d(3), nn.Linear(3, 3), freeze(BatchRenorm1d(3)), nn.ReLU())


def windowed() -> Any:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    model = convert(model, to="cross_iteration")
    for x in rows(3):
        y = model(x)
        y.backward(torch.randn_like(y))
    return model


def prepared(make: Any) -> tuple[Any, torch.optim.Optimizer]:
    """With gradients and hooks, an optimizer under way, and float64."""
    model = make().double()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    y = model(rows(1)[0])
    y.backward(torch.randn_like(y))
    optimizer.step()
    model.register_forward_hook(lambda module, args, output: None)
    return model, optimizer


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    hosts = random.getstate(), [str(part) for part in np.random.get_state()]
    return (
        everything(model),
        gradients,
        hosts,
        str(optimizer.state_dict()),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )


def loss(output: Tensor, batch: Tensor) -> Tensor:
    return (output - batch.sum(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("make", [plain, half_frozen, ours, windowed])
@pytest.mark.parametrize("training", [True, False, None])
def test_nothing_changes(make: Any, training: bool | None) -> None:
    model, optimizer = prepared(make)
    if training is not None:
        model.train(training)
    before, batches = state(model, optimizer), rows(8)
    found = try_fixes(model, batches, loss, optimizer=optimizer, fixes=FIXES, steps=3, seeds=2)
    assert state(model, optimizer) == before
    assert {trial.fix for trial in found} == {AS_IT_IS, FURTHER, *FIXES}
    assert all(torch.equal(a, b) for a, b in zip(batches, rows(8), strict=True))


def test_the_same_twice() -> None:
    model, _ = prepared(plain)
    one, two = (try_fixes(model, rows(8), loss, steps=4, seeds=2, fixes=FIXES) for _ in range(2))
    assert [t.losses for t in one] == [t.losses for t in two]
    other = try_fixes(model, rows(8), loss, steps=4, seeds=2, fixes=FIXES, seed=1)
    assert {t.losses for t in one} != {t.losses for t in other}


@pytest.mark.parametrize("at", [0, 5, 30, 60])
def test_an_interrupt_gives_the_seeds_that_are_complete(at: int) -> None:
    model, optimizer = prepared(plain)
    calls = []

    def interrupting(output: Tensor, batch: Tensor) -> Tensor:
        calls.append(batch)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return loss(output, batch)

    before = state(model, optimizer)
    found = try_fixes(
        model, rows(8), interrupting, optimizer=optimizer, fixes="frozen", steps=10, seeds=3
    )
    assert state(model, optimizer) == before
    assert found.interrupted
    # one to check; of each seed 2 held out, and with 10 steps too further training and frozen
    complete = max(at - 1, 0) // 26
    assert [trial.seeds for trial in found] == [tuple(range(complete))] * (3 * bool(complete))


def test_an_error_of_the_batches_is_the_users_own() -> None:
    model, optimizer = prepared(plain)
    before = state(model, optimizer)

    def broken() -> Any:
        yield rows(1)[0]
        np.random.rand()
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        try_fixes(model, broken(), loss)
    assert state(model, optimizer) == before


def test_an_error_of_the_loss_is_the_users_own() -> None:
    model, optimizer = prepared(plain)
    before = state(model, optimizer)

    def broken(output: Tensor, batch: Tensor) -> Tensor:
        torch.rand(1)
        raise KeyError("targets")

    with pytest.raises(KeyError, match="targets"):
        try_fixes(model, rows(8), broken)
    assert state(model, optimizer) == before


def test_training_goes_on_as_without() -> None:
    model, _ = prepared(plain)
    twin = copy.deepcopy(model)
    try_fixes(model, rows(8), loss, steps=2, seeds=1)
    for one in (model, twin):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for x in rows(3):
            optimizer.zero_grad()
            loss(one(x), x).backward()
            optimizer.step()
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


@pytest.mark.parametrize("given", [True, False], ids=["with gradients", "without"])
def test_a_loss_that_goes_by_the_model_itself_leaves_it_no_gradient(given: bool) -> None:
    model, _ = prepared(plain)
    if not given:
        model.zero_grad()
    before = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()]

    def penalized(output: Tensor, batch: Tensor) -> Tensor:
        return output.square().mean() + sum(p.square().sum() for p in model.parameters())

    found = try_fixes(model, rows(8), penalized, steps=2, seeds=1, fixes="frozen")
    after = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()]
    assert after == before
    assert not any(trial.failure for trial in found)
