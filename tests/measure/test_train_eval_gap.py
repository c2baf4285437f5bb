"""Train mode against eval mode, by layers run one after another in float64."""

import math
from typing import Any

import pytest
import torch
from surveyed import FrozenBatchNorm2d, images, mixed, rows
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d, calibrate, limits
from renorm.measure import saving, survey
from renorm.measure.records import OutputGap, TrainEvalGap


def of_layer(model: nn.Module, batches: list) -> TrainEvalGap:
    (found,) = survey(model, batches, quantities="train_eval_gap").of(TrainEvalGap)
    return found


def off(layer: Any) -> Any:
    """The layer in float64 with statistics that are not the population's."""
    layer = layer.double()
    nn.init.uniform_(layer.running_mean, -2, 2)
    nn.init.uniform_(layer.running_var, 0.5, 9)
    return layer


def rms(pairs: list[tuple[Tensor, Tensor]]) -> float:
    squares = [float(v) ** 2 for a, b in pairs for v in (a - b).flatten()]
    return math.sqrt(sum(squares) / len(squares))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(3, affine=False),
        lambda: nn.BatchNorm2d(3, eps=0.5, affine=False),
        lambda: BatchRenorm2d(3, limits=limits.fixed(1.2, 0.3), affine=False),
        lambda: BatchRenorm2d(3, limits=limits.fixed(1.2, 0.3), microbatch=2, affine=False),
        lambda: FrozenBatchNorm2d(3),
    ],
    ids=["torch", "large eps", "renorm", "microbatch", "frozen"],
)
def test_a_layer_against_its_own_forwards(make: Any) -> None:
    layer, batches = off(make()), images(5)
    found = of_layer(layer, batches)
    statistics = [layer.running_mean.clone(), layer.running_var.clone()]

    def train(x: Tensor) -> Tensor:
        y = layer.train()(x).detach()
        for buffer, value in zip((layer.running_mean, layer.running_var), statistics, strict=True):
            buffer.data.copy_(value)
        return y

    by_batch = [train(x) for x in batches]
    by_running = [layer.eval()(x).detach() for x in batches]
    x = torch.cat(batches).transpose(0, 1).flatten(1)
    layer.running_mean, layer.running_var = x.mean(1), x.var(1, correction=0)
    by_population = [layer(x).detach() for x in batches]
    assert found.gap == pytest.approx(rms(list(zip(by_batch, by_running, strict=True))))
    assert found.staleness == pytest.approx(rms(list(zip(by_running, by_population, strict=True))))
    assert found.noise == pytest.approx(rms(list(zip(by_batch, by_population, strict=True))))


def test_shift_and_ratio_by_hand() -> None:
    layer = nn.BatchNorm1d(1, eps=1e-12).double()
    nn.init.constant_(layer.get_buffer("running_mean"), 4)
    nn.init.constant_(layer.get_buffer("running_var"), 36)
    batch = torch.tensor([[-1.0], [5.0]]).double()  # mean 2, deviation 3
    found = of_layer(layer, [batch])
    assert found.shift == pytest.approx(2 / 3)
    assert found.log_ratio == pytest.approx(math.log(2))
    # eval gives -5/6 and 1/6, and both of the others -1 and 1
    assert found.staleness == pytest.approx(math.sqrt((1 / 36 + 25 / 36) / 2))
    assert found.noise == pytest.approx(0, abs=1e-12)


def test_batch_renorm_within_its_limits_has_no_gap() -> None:
    layer = off(BatchRenorm1d(3, limits=limits.fixed(math.inf, math.inf)))
    found = of_layer(layer, rows(5))
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.staleness is not None
    assert found.staleness > 0.1


def test_without_running_statistics_there_is_noise_alone() -> None:
    found = of_layer(nn.BatchNorm1d(3, track_running_stats=False).double(), rows(5))
    assert (found.gap, found.staleness, found.shift) == (None, None, None)
    assert found.noise is not None
    assert found.noise > 0.1


def test_calibrated_statistics_are_not_stale() -> None:
    model, batches = mixed(), images(5)
    calibrate(model, batches, uncalled="keep")
    for found in survey(model, batches, quantities="train_eval_gap").of(TrainEvalGap):
        if found.layer in ("1", "5"):  # before any that corrects by the statistics of before
            assert found.staleness == pytest.approx(0, abs=1e-6)


class Outputs(nn.Module):
    """A dict with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(x)
        return {"scores": self.linear(y), "features": y.sum(1)}


def loss(output: dict[str, Tensor], batch: Tensor) -> Tensor:
    return (output["scores"].sum(1) - batch.sum(1)).square().mean()


def modes(model: Any, batches: list[Tensor]) -> list[list[dict[str, Tensor]]]:
    """Outputs by batch, running and population statistics."""
    layer = model.norm
    running = layer.running_mean, layer.running_var
    with torch.no_grad():
        layer.train()
        layer.running_mean, layer.running_var = (t.clone() for t in running)
        found = [[model(x) for x in batches]]
        layer.eval()
        layer.running_mean, layer.running_var = running
        found.append([model(x) for x in batches])
        x = torch.cat(batches)
        layer.running_mean, layer.running_var = x.mean(0), x.var(0, correction=0)
        found.append([model(x) for x in batches])
    layer.running_mean, layer.running_var = running
    return found


@pytest.mark.parametrize("count", [1, 5])
def test_outputs_and_losses_of_a_model(count: int) -> None:
    model, batches = Outputs().double(), rows(count)
    off(model.norm)
    (found,) = survey(model, batches, loss, quantities="train_eval_gap", depth="deep").of(OutputGap)
    three = modes(model, batches)
    flat = [[torch.cat([t.flatten() for t in y.values()]) for y in each] for each in three]
    deviation = float(torch.cat(flat[2]).std(correction=0))
    assert found.batches == count
    assert found.deviation == pytest.approx(deviation)
    for value, (i, j) in zip(
        (found.gap, found.staleness, found.noise), ((0, 1), (1, 2), (0, 2)), strict=True
    ):
        assert value == pytest.approx(rms(list(zip(flat[i], flat[j], strict=True))) / deviation)
    losses = torch.tensor(
        [[loss(y, x) for y, x in zip(each, batches, strict=True)] for each in three]
    ).double()
    means = (found.loss_batch, found.loss_running, found.loss_population)
    assert means == pytest.approx(losses.mean(1).tolist(), rel=1e-6)
    mean, error = found.loss_noise
    differences = losses[0] - losses[2]
    assert mean == pytest.approx(float(differences.mean()), rel=1e-5)
    if count == 1:
        assert error is None
    else:
        assert error == pytest.approx(float(differences.std()) / math.sqrt(count), rel=1e-5)
    assert found.loss_gap[0] == pytest.approx(float((losses[0] - losses[1]).mean()), rel=1e-5)


def test_without_loss() -> None:
    (found,) = survey(Outputs().double(), rows(3)).of(OutputGap)
    assert (found.loss_batch, found.loss_gap) == (None, (None, None))


def test_outputs_of_other_shapes_are_not_compared() -> None:
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y[y[:, 0] > 0.1]

    found = survey(Selecting().double(), rows(3), lambda y, x: y.square().mean())
    (gap,) = found.of(OutputGap)
    assert gap.noise is None
    assert gap.loss_noise[0] is not None


def test_statistics_that_are_not_finite() -> None:
    layer = nn.BatchNorm1d(3).double()
    nn.init.constant_(layer.get_buffer("running_mean"), math.nan)
    found = survey(layer, rows(3))
    (gap,) = found.of(TrainEvalGap)
    assert (gap.gap, gap.staleness) == (None, None)
    assert gap.noise is not None
    assert found.of(OutputGap)[0].gap is None
    assert saving.from_lines(saving.to_lines(found)) == found


def test_a_loss_that_raises_is_the_users_own() -> None:
    def broken(output: Tensor, batch: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        survey(nn.BatchNorm1d(3).double(), rows(3), broken)


@pytest.mark.parametrize("depth", ["quick", "standard"])
def test_iterators_and_quick_surveys_compare_the_kept_batches(depth: str) -> None:
    (found,) = survey(Outputs().double(), iter(rows(20)), loss, depth=depth).of(OutputGap)
    assert found.batches == {"quick": 4, "standard": 8}[depth]


def test_standard_surveys_compare_every_second_batch() -> None:
    model, batches = Outputs().double(), rows(5)
    (found,) = survey(model, batches, loss, quantities="train_eval_gap").of(OutputGap)
    with torch.no_grad():
        losses = [float(loss(model.eval()(x), x)) for x in batches[::2]]
    assert found.batches == 3
    assert found.loss_running == pytest.approx(sum(losses) / 3)
