from dataclasses import replace

import pytest
import torch

from renorm.lab import training
from renorm.lab.conditions import Clustered
from renorm.lab.normalizers import NORMALIZERS, Normalizer
from renorm.lab.tasks import digits
from renorm.report.records import Specification

SHORT = Specification("digits", "batch_renorm", "clustered", 0, 20, 0.1, 32, 4)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_same_specification_gives_the_same_record(normalizer: str) -> None:
    specification = replace(SHORT, normalizer=normalizer, steps=10)
    first = training.run(specification)
    torch.rand(1)
    assert training.run(specification) == first
    assert first.environment["torch"]
    assert first.cpu_seconds > 0


def test_seeds_and_conditions_make_a_difference() -> None:
    accuracies = {
        training.run(one).curve
        for one in (SHORT, replace(SHORT, seed=1), replace(SHORT, condition="microbatch"))
    }
    assert len(accuracies) == 3


def test_a_run_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    training.run(replace(SHORT, steps=10))
    assert torch.equal(torch.get_rng_state(), state)


def test_normalizers_share_initial_weights_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, orders = [], []

    def spy(model, task, batches, specification):
        weights.append([conv.clone() for conv in model.parameters() if conv.dim() > 1])
        orders.append(torch.cat([next(batches) for _ in range(3)]))
        return [(1, 0.5)], [1.0], None

    monkeypatch.setattr(training, "_train", spy)
    for name in NORMALIZERS:
        training.run(replace(SHORT, normalizer=name))
    for others, order in zip(weights[1:], orders[1:], strict=True):
        assert all(map(torch.equal, others, weights[0]))
        assert torch.equal(order, orders[0])
    training.run(replace(SHORT, seed=1))
    assert not torch.equal(weights[-1][0], weights[0][0])
    assert not torch.equal(orders[-1], orders[0])


def test_curve_and_loss_cover_the_run() -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", steps=25))
    assert [step for step, _ in record.curve] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert record.accuracy == record.curve[-1][1]
    assert record.loss is not None
    assert 0 < record.loss < 2.4


def test_training_learns() -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", condition="iid", steps=60))
    assert record.accuracy is not None
    assert record.accuracy > 0.8
    assert record.gap == 0


@pytest.mark.parametrize(("lr", "by"), [(1e30, 4), (1e38, 4)])
def test_a_loss_that_is_not_finite_is_a_record(lr: float, by: int) -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", lr=lr))
    assert record.diverged_at is not None
    assert 1 < record.diverged_at <= by
    figures = (record.accuracy, record.train_mode_accuracy, record.eval_mode_accuracy, record.loss)
    assert figures == (None, None, None, None)


def test_weights_that_end_without_finite_scores_are_a_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(model, task, batches, specification):
        torch.nn.init.constant_(model.head.weight, torch.nan)
        return [(20, 0.1)], [1.0], None

    monkeypatch.setattr(training, "_train", broken)
    assert training.run(SHORT).diverged_at == SHORT.steps


class ClassMean(torch.nn.Module):
    """Tells the classes of a group apart from its images in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.sizes.append(len(images))
        task = digits()
        right = (images.flatten(1).unsqueeze(1) == task.test_images.flatten(1)).all(2)
        labels = task.test_labels[right.int().argmax(1)]
        return torch.nn.functional.one_hot(labels if self.training else 0 * labels, 10).float()


def test_both_modes_judge_the_same_images_and_leave_the_model_alone() -> None:
    model, task = ClassMean(), digits()
    generator = torch.Generator().manual_seed(0)
    train_mode, eval_mode = training.both_modes(model, task, Clustered(40, 4, 1), generator)
    assert train_mode == 1
    assert eval_mode == pytest.approx(0.1)  # 40 of 10 classes: balanced
    assert not model.training
    assert sum(model.sizes) == 40 * -(-len(task.test_labels) // 40)
    assert model.seen == len(model.sizes)


def test_train_mode_moves_no_running_statistics() -> None:
    model = training.build(SHORT, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sampler = training.sampler_of(SHORT)
    training.both_modes(model, digits(), sampler, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_norm_that_raises_ends_the_run_and_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(channels: int, group: int, steps: int) -> torch.nn.Module:
        raise RuntimeError("no such layer")

    monkeypatch.setitem(NORMALIZERS, "batch_renorm", Normalizer("batch_renorm", "", broken))
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no such layer"):
        training.run(SHORT)
    assert torch.equal(torch.get_rng_state(), state)


def test_clustered_groups_break_batch_norm_and_not_batch_renorm() -> None:
    accuracy = {}
    for name in ("batch_norm", "batch_renorm"):
        record = training.run(replace(SHORT, normalizer=name, steps=300))
        accuracy[name] = record.accuracy
        if name == "batch_norm":
            assert record.gap is not None
            assert record.gap > 0.4
    assert accuracy["batch_norm"] + 0.3 < accuracy["batch_renorm"]
