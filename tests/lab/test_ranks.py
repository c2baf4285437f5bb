from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab import training
from renorm.lab.conditions import CONDITIONS, check_sizes
from renorm.lab.examples import TensorExamples
from renorm.lab.experiment import Grid, check_fit
from renorm.lab.isolation import isolated
from renorm.lab.ranks import ALONE, Ranks
from renorm.lab.tasks import Supervised, Task, fitting
from renorm.lab.tasks.fitting import Course
from renorm.report.records import Record, Specification
from report.constructed import PLAIN
from support.mortals import live

WORLD = 2
SHORT = replace(PLAIN, normalizer="group_norm", steps=10, group_size=8, ranks=WORLD)
# float32 sums of 32 terms in another order, 1e-7 each, through 10 steps
ROUNDING = 1e-5


def trained(
    specification: Specification, ranks: Ranks
) -> tuple[Course, dict[str, Tensor], tuple[float | None, float | None]]:
    """How the training went, the weights and statistics, and the scores in both modes."""
    task, plan = training.task_of(specification), training.plan(specification, ranks)
    assert isinstance(task, Supervised)
    problem = task.problem(plan)
    with isolated(specification.seed):
        model = fitting.normalized(task.model(), plan, problem.train)
        course = fitting.fit(model, task.optimizer(model, specification.lr), problem, plan)
        scores = fitting.both_modes(model, problem, plan)
    return course, model.state_dict(), scores


def share_of_training(rank: int, *specifications: Specification) -> list[Any]:
    return [trained(one, Ranks(rank, WORLD)) for one in specifications]


def test_ranks_train_as_one_process_does() -> None:
    runs = [
        SHORT,
        replace(SHORT, normalizer="batch_norm", condition="clustered"),
        replace(SHORT, normalizer="batch_renorm", condition="accumulation"),
    ]
    ends = live(share_of_training, *runs, world=WORLD)
    assert [end.error for end in ends] == [""] * WORLD
    for run, first, second in zip(runs, ends[0].value, ends[1].value, strict=True):
        alone, weights, scores = trained(replace(run, ranks=1), ALONE)
        assert first[0].curve == second[0].curve
        assert first[0].losses == second[0].losses
        assert first[2] == second[2]
        assert all(torch.equal(first[1][key], second[1][key]) for key in weights)
        if run.normalizer == "batch_renorm":  # its outputs know rank 0's statistics alone
            continue
        assert first[0].losses == pytest.approx(alone.losses, rel=ROUNDING)
        for key, value in weights.items():
            if "running" not in key and "num_batches" not in key:
                torch.testing.assert_close(first[1][key], value, rtol=ROUNDING, atol=ROUNDING)
        if run.normalizer == "group_norm":
            assert dict(first[0].curve) == pytest.approx(dict(alone.curve), abs=1 / 400)
            assert first[2] == scores


def exchanged(rank: int) -> tuple[Tensor, list[float], str, Tensor, float]:
    ranks = Ranks(rank, WORLD)
    means = [ranks.mean(torch.tensor(value)) for value in (rank + 1.0, float("nan") * rank)]
    calls = []
    told = ranks.first(lambda: calls.append(rank) or f"{len(calls)} call in rank {rank}")
    norm = nn.BatchNorm1d(1)
    assert norm.running_mean is not None
    norm.running_mean += rank + 3
    ranks.align(norm)
    ranks.wrap(norm)
    batch = torch.arange(8).view(4, 2)
    return ranks.joined(ranks.share(batch)), means, told, norm.running_mean, float(torch.rand(()))


def test_what_ranks_tell_each_other() -> None:
    ends = live(exchanged, world=WORLD)
    for batch, means, told, running_mean, _ in (end.value for end in ends):
        assert torch.equal(batch, torch.arange(8).view(4, 2))
        assert means == [1.5, pytest.approx(float("nan"), nan_ok=True)]
        assert told == "1 call in rank 0"
        assert running_mean.item() == 3
    assert ends[0].value[4] != ends[1].value[4]


class Explosive(Supervised):
    """A loss that is not finite in the last rank's part of the third batch."""

    def data(self) -> tuple[TensorExamples, TensorExamples]:
        inputs = torch.arange(64.0).view(64, 1) / 64
        examples = TensorExamples(inputs, torch.arange(64) % 2)
        return examples, examples

    def model(self) -> nn.Module:
        self.step = 0
        return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.step += 1
        last = dist.is_initialized() and dist.get_rank() == WORLD - 1
        return super().loss(outputs, targets) * (torch.inf if last and self.step == 3 else 1)


def diverging(rank: int) -> int | None:
    task = Explosive()
    return task.train(training.plan(SHORT, Ranks(rank, WORLD))).diverged_at


def test_all_stop_where_the_loss_of_one_is_not_finite() -> None:
    assert [end.value for end in live(diverging, world=WORLD)] == [3] * WORLD


def test_a_view_is_drawn_for_the_whole_batch() -> None:
    def noisy(inputs: Tensor, group: int, generator: torch.Generator) -> Tensor:
        return inputs + torch.rand(inputs.shape, generator=generator)

    examples, _ = Explosive().data()
    parts = []
    for ranks in (ALONE, Ranks(0, 2), Ranks(1, 2)):
        plan = replace(
            training.plan(SHORT, ranks),
            condition=replace(CONDITIONS["iid"], train_view=noisy),
        )
        drawn = torch.Generator().manual_seed(1)
        parts.append(fitting._share(examples, torch.arange(0, 64, 2), plan, drawn))
    for whole, first, second in zip(*parts, strict=True):
        assert torch.equal(torch.cat([first, second]), whole)
        assert len(first) == len(second) == 16


def test_alone_nothing_is_exchanged() -> None:
    model, batch = nn.BatchNorm1d(2), torch.rand(3, 2)
    assert ALONE.wrap(model) is model
    assert ALONE.joined(batch) is batch
    assert torch.equal(ALONE.share(batch), batch)
    assert ALONE.mean(torch.tensor(2.0)) == ALONE.first(lambda: 2.0) == 2.0
    ALONE.align(model)


@pytest.mark.parametrize(("batch", "group", "ranks"), [(32, 4, 3), (32, 8, 8), (8, 8, 2)])
def test_groups_that_do_not_divide_among_the_ranks_are_refused(
    batch: int, group: int, ranks: int
) -> None:
    message = f"Each of {ranks} processes .* must be a multiple of {ranks} x {group}, got {batch}"
    with pytest.raises(ArgumentError, match=message):
        Grid.of("digits", batch_size=batch, group_size=group, ranks=ranks)
    check_sizes(ranks * group, group, ranks)


def test_what_ranks_share_is_said() -> None:
    grid = Grid.of("digits", conditions=("iid",), ranks=2)
    told = "batches of 32 at random, one group; each of 2 processes takes its share"
    assert grid.about() == {"iid": told}
    assert {one.ranks for one in grid.specifications()} == {2}


class Apart(Task):
    """A task with a loop of its own."""

    def check(self, plan: Any) -> None:
        pass

    def train(self, plan: Any) -> Any:
        raise AssertionError("must not be trained")


def test_a_task_with_a_loop_of_its_own_is_not_shared() -> None:
    grid = Grid.of(f"{Apart.__module__}:Apart", conditions=("iid",))
    check_fit(grid)
    with pytest.raises(ArgumentError, match="cannot be shared by 2 processes"):
        check_fit(replace(grid, ranks=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "shared by 2 processes, but here are 1. Start it with: torchrun --nproc-per-node 2"),
        ({"ranks": 1, "recipe": 1}, "but the run is of recipe 1. Install one version"),
        ({"ranks": 1, "task": f"{__name__}:Explosive", "source": "0"}, "asked for was 0\\)"),
    ],
)
def test_a_run_that_would_be_another_one_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        training.run(replace(SHORT, **changes))


def test_a_record_of_ranks_is_not_that_of_one_process() -> None:
    assert SHORT.key != replace(SHORT, ranks=1).key
    assert Record(SHORT) != Record(replace(SHORT, ranks=1))
