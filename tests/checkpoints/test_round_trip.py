"""Our own checkpoints through safetensors: the same state, and the same training from there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm2d, BatchRenormAct2d
from renorm.limits import Limits, Ramp

STEPS = 4


def _model() -> nn.Module:
    # the limits open while it trains, so that another step count would show
    limits = Limits(Ramp(1.0, 3.0, 0, 3 * STEPS), Ramp(0.0, 5.0, 0, 3 * STEPS))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        BatchRenorm2d(6, momentum=0.2, limits=limits),
        nn.Conv2d(6, 6, 3),
        BatchRenormAct2d(6, momentum=0.2, limits=limits),
    )


def _train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, cotangent in batches:
        optimizer.zero_grad()
        loss = (model(x) * cotangent).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [(1 + 2 * torch.randn(4, 3, 9, 9), torch.randn(4, 6, 5, 5)) for _ in range(STEPS)]


def test_training_goes_on_bit_for_bit_from_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="reads and writes its files")
    model, again = _model(), _model()
    _train(model, _batches())
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = safetensors.load_file(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    assert int(loaded["1.num_batches_tracked"]) == int(loaded["3.num_batches_tracked"]) == STEPS
    again.load_state_dict(loaded, strict=True)

    rest = _batches()
    assert torch.stack(_train(model, rest)).equal(torch.stack(_train(again, rest)))
    end = again.state_dict()
    assert all(torch.equal(value, end[name]) for name, value in model.state_dict().items())
    assert int(end["1.num_batches_tracked"]) == 2 * STEPS
    assert not torch.equal(end["1.running_var"], loaded["1.running_var"])
