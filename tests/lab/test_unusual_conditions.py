"""Runs of the conditions that change images, repeat examples or leave one example to a group."""

import pytest
import torch
from torch import Tensor, nn

from lab.drawing import drawn
from renorm.errors import ArgumentError
from renorm.lab import training
from renorm.lab.conditions import CONDITIONS
from renorm.lab.examples import Examples, TensorExamples, split
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.tasks import Plan, Supervised
from renorm.report.records import Specification


class Rows(Supervised):
    """Vectors, with batch norm over (N, C)."""

    def data(self) -> tuple[Examples, Examples]:
        labels = torch.arange(2).repeat(40)
        inputs = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) + labels[:, None]
        return split(TensorExamples(inputs, labels, labels), 2)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Maps(Rows):
    """The same as images, with batch norm over (N, C, H, W)."""

    def data(self) -> tuple[Examples, Examples]:
        labels = torch.arange(2).repeat(40)
        inputs = torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return split(TensorExamples(inputs + labels.view(-1, 1, 1, 1), labels, labels), 2)

    def model(self) -> nn.Module:
        layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
        return nn.Sequential(*layers)


class Pooled(Maps):
    """Images whose last batch norm is behind the mean over positions."""

    def model(self) -> nn.Module:
        layers = nn.Conv2d(1, 8, 4), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2)
        return nn.Sequential(*layers)


class Broken(Maps):
    """A model that fails for a reason of its own."""

    def model(self) -> nn.Module:
        class Refusing(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise ValueError("not today")

        return nn.Sequential(nn.BatchNorm2d(1), Refusing())


def planned(normalizer: str, condition: str, group: int) -> Plan:
    names = "own.py:Task", "", normalizer, condition
    return training.plan(Specification(*names, 0, 10, 0.1, 8, group))


@pytest.mark.parametrize("task", [Rows, Pooled])
@pytest.mark.parametrize("condition", ["microbatch", "accumulation", "sorted"])
@pytest.mark.parametrize("normalizer", ["batch_norm", "batch_renorm"])
def test_one_value_a_channel_is_refused_before_any_run(
    task: type[Rows], condition: str, normalizer: str
) -> None:
    message = f"'{normalizer}' cannot take statistics of a group of one example.*one value per ch"
    with pytest.raises(ArgumentError, match=message):
        task().check(planned(normalizer, condition, 1))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_groups_of_one_with_many_values_a_channel_are_trained(normalizer: str) -> None:
    plan = planned(normalizer, "microbatch", 1)
    Maps().check(plan)
    assert Maps().train(plan).score is not None


def test_groups_of_one_do_not_matter_where_examples_do_not_mix() -> None:
    plan = planned("group_norm", "microbatch", 1)
    Rows().check(plan)
    assert Rows().train(plan).score is not None


def test_the_trial_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    Maps().check(planned("batch_norm", "microbatch", 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_another_trouble_of_the_model_keeps_its_error() -> None:
    with pytest.raises(ValueError, match=r"^not today$") as raised:
        Broken().check(planned("batch_norm", "microbatch", 1))
    assert not isinstance(raised.value, ArgumentError)


@pytest.mark.parametrize("condition", ["frames", "shift"])
def test_views_are_refused_where_there_are_no_images(condition: str) -> None:
    with pytest.raises(ArgumentError, match=f"'{condition}' changes images.*shape"):
        Rows().check(planned("batch_norm", condition, 4))


@pytest.mark.parametrize("condition", ["pk", "sorted", "frames", "shift"])
@pytest.mark.parametrize("normalizer", ["batch_norm", "batch_renorm", "cross_iteration"])
def test_every_condition_trains(normalizer: str, condition: str) -> None:
    plan = planned(normalizer, condition, 4)
    Maps().check(plan)
    first, second = Maps(), Maps()
    outcomes = []
    for task in (first, second):
        torch.manual_seed(1)
        outcomes.append(task.train(plan))
    assert outcomes[0].curve == outcomes[1].curve
    assert outcomes[0].train_mode_score == outcomes[1].train_mode_score
    assert outcomes[0].score is not None


def test_test_batches_of_clips_cover_the_test_examples() -> None:
    seen: list[Tensor] = []

    class Watched(Maps):
        def score(self, outputs: Tensor, targets: Tensor) -> float:
            seen.append(targets)
            return super().score(outputs, targets)

    Watched().train(planned("group_norm", "frames", 4))
    _, test = Watched().data()
    in_batches = seen[-1]
    assert len(in_batches) == 4 * len(test)
    sampler = CONDITIONS["frames"].build(8, 4)
    assert test.labels is not None
    covered = torch.cat(drawn(sampler, test.labels, len(in_batches) // 8)).unique()
    assert len(covered) == len(test)


def test_shift_is_what_batch_statistics_absorb() -> None:
    plan = planned("batch_norm", "shift", 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False))
    inputs, _ = Maps().data()[1].batch(torch.arange(40))
    for _ in range(200):
        model.train()(inputs)
    view = plan.condition.test_view
    assert view is not None
    shifted = view(inputs, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        in_train, in_eval = model.train()(shifted), model.eval()(shifted)
    assert in_train.mean().abs() < 1e-4
    assert in_eval.std() < 0.8
    # halving about 0 leaves half the mean, and brightness adds 1/2
    mean = (inputs.mean() / 2 + 0.5 - inputs.mean()) / inputs.std()
    assert in_eval.mean().item() == pytest.approx(mean.item(), abs=0.1)
