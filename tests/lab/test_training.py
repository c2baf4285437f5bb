from dataclasses import replace

import pytest
import torch

from renorm.lab import training
from renorm.lab.conditions import CONDITIONS, View
from renorm.lab.data import digits
from renorm.lab.examples import TensorExamples
from renorm.lab.normalizers import NORMALIZERS, Normalizer
from renorm.lab.streams import ORDER, TEST_VIEWS, VIEWS, stream
from renorm.lab.tasks import Supervised, fitting
from renorm.lab.tasks.fitting import Problem
from renorm.report.records import Specification

SHORT = Specification("digits", "convnet", "batch_renorm", "clustered", 0, 20, 0.1, 32, 4)


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

    def spy(model, optimizer, problem, plan):
        weights.append([conv.clone() for conv in model.parameters() if conv.dim() > 1])
        labels = fitting.labels_of(problem.train)
        order = stream(plan.specification.seed, ORDER)
        batches = fitting.sampler_of(plan).batches(labels, order)
        orders.append(torch.cat([next(batches) for _ in range(3)]))
        return fitting.Course([(1, 0.5)], [1.0], [0.1])

    monkeypatch.setattr("renorm.lab.tasks.supervised.fit", spy)
    for name in NORMALIZERS:
        training.run(replace(SHORT, normalizer=name))
    for others, order in zip(weights[1:], orders[1:], strict=True):
        assert all(map(torch.equal, others, weights[0]))
        assert torch.equal(order, orders[0])
    training.run(replace(SHORT, seed=1))
    assert not torch.equal(weights[-1][0], weights[0][0])
    assert not torch.equal(orders[-1], orders[0])


def watch(model: torch.nn.Module, sizes: set[int]) -> None:
    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            sizes.add(len(inputs[0]))

    model.register_forward_pre_hook(note)


def test_a_group_is_normalized_apart_in_one_forward_or_in_its_own() -> None:
    sizes: dict[str, set[int]] = {}
    for name, condition in (
        ("group_norm", "microbatch"),
        ("batch_norm", "accumulation"),
        ("cross_iteration", "microbatch"),
        ("cross_iteration", "iid"),
    ):
        plan = training.plan(replace(SHORT, normalizer=name, condition=condition))
        task = training.task_of(SHORT)
        assert isinstance(task, Supervised)
        problem = task.problem(plan)
        model = fitting.normalized(task.model(), plan, problem.train)
        seen = sizes.setdefault(f"{name} {condition}", set())
        watch(model, seen)
        fitting.fit(model, task.optimizer(model, 0.1), problem, plan)
    assert sizes == {
        "group_norm microbatch": {32},
        "batch_norm accumulation": {4},
        "cross_iteration microbatch": {4},
        "cross_iteration iid": {32},
    }


def test_batch_renorm_takes_one_step_of_the_statistics_a_batch() -> None:
    for condition in ("microbatch", "accumulation"):
        plan = training.plan(replace(SHORT, condition=condition))
        task = training.task_of(SHORT)
        assert isinstance(task, Supervised)
        problem = task.problem(plan)
        model = fitting.normalized(task.model(), plan, problem.train)
        fitting.fit(model, task.optimizer(model, 0.1), problem, plan)
        counts = [int(b) for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
        assert counts == [SHORT.steps] * 3


def test_a_validation_run_neither_trains_on_nor_looks_at_what_it_must_not() -> None:
    plan = training.plan(replace(SHORT, split="validation"))
    task = training.task_of(SHORT)
    assert isinstance(task, Supervised)
    problem, (train, _) = task.problem(plan), task.data()
    whole = train.batch(torch.arange(len(train)))[0]
    everything = {tuple(image.flatten().tolist()) for image in whole}
    parts = [
        {tuple(image.flatten().tolist()) for image in part.batch(torch.arange(len(part)))[0]}
        for part in (problem.train, problem.test)
    ]
    assert len(everything) == len(train)
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == everything
    assert len(parts[1]) == pytest.approx(len(train) / 5, abs=10)


def test_views_change_what_is_trained_on_and_what_is_tested_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(inputs, group, generator):
        assert group == 4
        purpose = VIEWS if torch.is_grad_enabled() else TEST_VIEWS
        assert generator.initial_seed() == stream(0, purpose).initial_seed()
        return torch.zeros_like(inputs)

    def accuracy(train_view: View | None, test_view: View | None) -> float | None:
        changed = replace(CONDITIONS["iid"], train_view=train_view, test_view=test_view)
        monkeypatch.setitem(CONDITIONS, "iid", changed)
        return training.run(replace(SHORT, condition="iid", steps=60)).score

    untouched = accuracy(None, None)
    assert untouched is not None
    assert untouched > 0.8
    for views in ((nothing, None), (None, nothing)):
        changed = accuracy(*views)
        assert changed is not None
        assert changed < 0.2


def test_curve_and_loss_cover_the_run() -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", steps=25))
    assert [step for step, _ in record.curve] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert record.score == record.curve[-1][1]
    assert record.loss is not None
    assert 0 < record.loss < 2.4


def test_training_learns() -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", condition="iid", steps=60))
    assert record.score is not None
    assert record.score > 0.8
    assert record.gap == 0


@pytest.mark.parametrize(("lr", "by"), [(1e30, 4), (1e38, 4)])
def test_a_loss_that_is_not_finite_is_a_record(lr: float, by: int) -> None:
    record = training.run(replace(SHORT, normalizer="group_norm", lr=lr))
    assert record.diverged_at is not None
    assert 1 < record.diverged_at <= by
    figures = (record.score, record.train_mode_score, record.eval_mode_score, record.loss)
    assert figures == (None, None, None, None)


def test_weights_that_give_no_finite_outputs_are_a_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(model, problem, plan):
        return torch.full((2, 10), torch.nan), torch.zeros(2, dtype=torch.long)

    monkeypatch.setattr(fitting, "evaluate", broken)
    record = training.run(SHORT)
    assert (record.diverged_at, record.score) == (2, None)


class ClassMean(torch.nn.BatchNorm2d):
    """Tells the classes of a group apart from its images in train mode alone."""

    def __init__(self) -> None:
        super().__init__(1)
        self.seen = 0
        self.sizes: list[int] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        images = input
        self.seen += 1
        self.sizes.append(len(images))
        task = digits()  # of its own, to look labels up
        right = (images.flatten(1).unsqueeze(1) == task.test_images.flatten(1)).all(2)
        labels = task.test_labels[right.int().argmax(1)]
        return torch.nn.functional.one_hot(labels if self.training else 0 * labels, 10).float()


def test_both_modes_judge_the_same_images_and_leave_the_model_alone() -> None:
    model, images = ClassMean(), digits()
    plan = training.plan(replace(SHORT, batch_size=40))
    task = training.task_of(SHORT)
    assert isinstance(task, Supervised)
    train_mode, eval_mode = fitting.both_modes(model, task.problem(plan), plan)
    assert train_mode == 1
    assert eval_mode == pytest.approx(0.1)  # 40 of 10 classes: balanced
    assert not model.training
    assert sum(model.sizes) == 40 * -(-len(images.test_labels) // 40)
    assert model.seen == len(model.sizes)


def test_train_mode_moves_no_running_statistics() -> None:
    task, plan = training.task_of(SHORT), training.plan(SHORT)
    assert isinstance(task, Supervised)
    problem = task.problem(plan)
    model = fitting.normalized(task.model(), plan, problem.train)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fitting.both_modes(model, problem, plan)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_scores_are_of_all_test_examples_in_order_whatever_the_chunk() -> None:
    inputs = torch.arange(10.0)[:, None]
    examples = TensorExamples(inputs, inputs.flatten())
    seen = []
    for chunk in (3, 10, 100):
        problem = Problem(examples, examples, torch.dot, lambda a, b: 0.0, chunk)
        outputs, answers = fitting.evaluate(torch.nn.Identity(), problem, training.plan(SHORT))
        seen.append(outputs.flatten())
        assert torch.equal(answers, inputs.flatten())
    assert all(torch.equal(one, inputs.flatten()) for one in seen)


def test_a_norm_that_raises_ends_the_run_and_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: torch.nn.Module, setting: object) -> torch.nn.Module:
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
        accuracy[name] = record.score
        if name == "batch_norm":
            assert record.gap is not None
            assert record.gap > 0.4
    assert accuracy["batch_norm"] + 0.3 < accuracy["batch_renorm"]
