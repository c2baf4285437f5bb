"""A diagnosis leaves everything as it was, bit for bit, however it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from doctored import loss, model, rows, state
from torch import Tensor, nn

import renorm
from renorm.doctor.trying.procedure import STAGE


@pytest.fixture(params=[True, False, None], ids=["training", "evaluating", "mixed"])
def trained(request: pytest.FixtureRequest) -> tuple[Any, torch.optim.Optimizer]:
    """A model with gradients, hooks and a frozen weight, and an optimizer with a state."""
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        output = net(rows()[0])
        output.backward(torch.randn_like(output))
        optimizer.step()
    net[4].weight.requires_grad_(False)
    net[1].register_forward_hook(lambda module, args, output: None)
    net.register_forward_pre_hook(lambda module, args: None)
    net.train(bool(request.param))
    if request.param is None:
        net[5].train()
    return net, optimizer


class Batches(list[Tensor]):
    """Two batches, and in the given reading of them the end that is asked for."""

    def __init__(self, end: BaseException, reading: int) -> None:
        super().__init__(rows())
        self.end, self.reading, self.readings = end, reading, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.readings += 1
        yield from rows(2)
        if self.readings == self.reading:
            raise self.end
        yield from rows(2)


def ending(end: BaseException, call: int) -> Callable[..., Any]:
    """Stands in the way of a call: the given one raises."""
    calls: list[None] = []

    def tried(do: Callable[[], Any]) -> Any:
        calls.append(None)
        result = do()
        if len(calls) == call:
            raise end
        return result

    return tried


def test_nothing_changes(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    net, optimizer = trained
    other = model()
    before, batches = state(net, optimizer), rows()
    mode = [m.training for m in net.modules()]
    outputs = net.eval()(rows()[0])
    for module, was in zip(net.modules(), mode, strict=True):
        module.training = was
    found = renorm.diagnose(net, batches, loss, optimizer=optimizer, before=other)
    assert found.survey.complete
    assert state(net, optimizer) == before
    assert all(torch.equal(a, b) for a, b in zip(batches, rows(), strict=True))
    assert torch.equal(net.eval()(rows()[0]), outputs)


@pytest.mark.parametrize("call", [1, 7, 16])
def test_an_error_of_the_loss_is_the_callers_own(
    trained: tuple[Any, torch.optim.Optimizer], call: int
) -> None:
    net, optimizer = trained
    before = state(net, optimizer)
    stop = ending(ZeroDivisionError("in the loss"), call)
    with pytest.raises(ZeroDivisionError, match="in the loss") as raised:
        renorm.diagnose(net, rows(), lambda y, x: stop(lambda: loss(y, x)), optimizer=optimizer)
    assert Path(str(raised.traceback[-1].path)) == Path(__file__)
    assert state(net, optimizer) == before


@pytest.mark.parametrize("call", [1, 4, 9, 15])
@pytest.mark.parametrize("end", [OSError("in the forward"), KeyboardInterrupt()], ids=repr)
def test_the_forward_may_end_it(
    trained: tuple[Any, torch.optim.Optimizer], call: int, end: BaseException
) -> None:
    net, optimizer = trained
    stop = ending(end, call)

    class Ending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return stop(lambda: x + torch.randn_like(x))

    net.append(Ending())
    before = state(net, optimizer)
    if isinstance(end, Exception):
        with pytest.raises(OSError, match="in the forward"):
            renorm.diagnose(net, rows(), loss, optimizer=optimizer)
    else:
        found = renorm.diagnose(net, rows(), loss, optimizer=optimizer)
        assert found.survey.interrupted
        assert not found.survey.complete
    assert state(net, optimizer) == before


@pytest.mark.parametrize("reading", [1, 2])
@pytest.mark.parametrize("end", [OSError("the disk"), KeyboardInterrupt()], ids=repr)
def test_the_batches_may_end_it(
    trained: tuple[Any, torch.optim.Optimizer], reading: int, end: BaseException
) -> None:
    net, optimizer = trained
    before = state(net, optimizer)
    if isinstance(end, Exception):
        with pytest.raises(OSError, match="the disk"):
            renorm.diagnose(net, Batches(end, reading), loss, optimizer=optimizer)
    else:
        found = renorm.diagnose(net, Batches(end, reading), loss, optimizer=optimizer)
        assert found.survey.interrupted
        assert found.survey.batches == (2 if reading == 1 else 4)
    assert state(net, optimizer) == before


def test_an_interrupt_of_the_loss(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    net, optimizer = trained
    before = state(net, optimizer)
    stop = ending(KeyboardInterrupt(), 8)
    found = renorm.diagnose(net, rows(), lambda y, x: stop(lambda: loss(y, x)), optimizer=optimizer)
    assert found.survey.interrupted
    assert state(net, optimizer) == before


@pytest.mark.parametrize("interrupted", [False, True])
def test_trials_change_nothing(
    trained: tuple[Any, torch.optim.Optimizer], interrupted: bool
) -> None:
    net, optimizer = trained
    before = state(net, optimizer)

    def progress(stage: str, done: int, total: int | None) -> None:
        if interrupted and stage == STAGE and done == 2:
            raise KeyboardInterrupt

    found = renorm.diagnose(
        net, rows(), loss, optimizer=optimizer, try_fixes=True, fixes=["calibrate", "frozen"],
        trial_steps=2, trial_seeds=1, progress=progress,
    )  # fmt: skip
    assert found.survey.interrupted == interrupted
    assert interrupted or {"calibrate", "frozen"} <= {one.fix for one in found.trials}
    assert state(net, optimizer) == before


def test_a_refusal_changes_nothing(trained: tuple[Any, torch.optim.Optimizer]) -> None:
    net, optimizer = trained
    before = state(net, optimizer)
    with pytest.raises(ValueError, match="no batch"):
        renorm.diagnose(net, [], loss, optimizer=optimizer)
    assert state(net, optimizer) == before


def test_a_loader_draws_nothing_of_the_process() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(24, 3, dtype=torch.float64))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    net = model()
    before = state(net)
    renorm.diagnose(net, loader, loss)
    assert state(net) == before
