"""Following a propagation leaves everything as it was, bit for bit, however it ends."""

from typing import Any

import pytest
import torch
from surveyed import images, mixed, rows
from test_survey_purity import MAKES, prepared, state
from torch import Tensor, nn

from renorm import accumulate
from renorm.measure import propagation
from renorm.nn import BatchRenorm1d


def loss(output: Tensor, batch: Any) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("statistics", ["batch", "running", "as it is"])
def test_nothing_changes(make: Any, statistics: Any) -> None:
    model = prepared(make)
    (batch,) = rows(1)
    batch.requires_grad_()
    before = state(model)
    found = propagation(model, batch, loss, statistics=statistics, similarity="everywhere")
    assert state(model) == before
    assert batch.grad is None
    assert torch.equal(batch, rows(1)[0])
    assert found.sites


def test_nothing_changes_in_a_model_of_images() -> None:
    model, (batch,) = mixed(), images(1)
    before = state(model)
    propagation(model, batch, loss)
    assert state(model) == before


@pytest.mark.parametrize("end", [OSError("the disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["forward", "loss", "backward"])
def test_however_it_ends(end: BaseException, where: str) -> None:
    model = prepared(MAKES[3])

    def fail(*_: Any) -> Any:
        raise end

    def forward(model: Any, batch: Tensor) -> Tensor:
        y = model(batch)
        if where == "backward":
            y.register_hook(fail)
        return fail() if where == "forward" else y

    before = state(model)
    with pytest.raises(type(end)):
        propagation(model, rows(1)[0], fail if where == "loss" else loss, forward=forward)
    assert state(model) == before


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_in_any_grad_mode(outside: Any) -> None:
    model, (batch,) = prepared(MAKES[2]), rows(1)
    before = state(model)
    with outside():
        found = propagation(model, batch, loss)
    assert state(model) == before
    assert found == propagation(model, batch, loss)
    assert found.sites[0].gradient_norm is not None


def test_compiled() -> None:
    model = prepared(MAKES[2])
    compiled: Any = torch.compile(model, backend="eager")
    before = state(model)
    assert propagation(compiled, rows(1)[0], loss) == propagation(model, rows(1)[0], loss)
    assert state(model) == before


def test_training_goes_on_as_without() -> None:
    def trained(followed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model: Any = nn.Sequential(nn.Linear(3, 3), BatchRenorm1d(3), nn.Dropout()).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for i, x in enumerate(rows(4)):
            with accumulate(model):
                y = model(x)
                y.backward(torch.randn_like(y))
            if followed and i == 1:
                propagation(model, x, loss)
            optimizer.step()
        return [*model.state_dict().values()]

    pairs = zip(trained(False), trained(True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
