"""Processes that die, differ, overflow, raise or are set up wrongly."""

import copy
import functools
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm import limits
from renorm.distributed import settle, sync_running
from renorm.errors import ArgumentError, CollectiveError
from renorm.nn import BatchRenorm
from renorm.nn.sharing import AGREE_EVERY
from support.mortals import die, live
from support.networks import buffers, equal, renormed, sequential, sharing
from support.ranks import Ranks
from support.tolerance import bound

MODES = ["batch", "running"]
REMEDY = "resume from a checkpoint"


def rows(rank: int, step: int = 0, n: int = 5) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(10 * step + rank))


def train(model: Any, x: Tensor) -> None:
    y = model(x)
    y.backward(torch.randn(y.shape))


def outcome(work: Callable[[], Any]) -> str:
    """The name and words of what is raised, or "fine"."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def near(found: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether tensors are equal, but for moments that went through float64."""
    for a, b in zip(found, exact, strict=True):
        error, size = float((a - b).detach().abs().max()), float(b.detach().abs().max())
        if error > bound(torch.float32, max(1.0, size)):
            return False
    return True


# a process dies


MOMENTS = ["before its forward", "in its forward", "in its backward", "after its backward"]


def step_or_die(model: Any, x: Tensor, moment: str | None) -> None:
    if moment == "before its forward":
        die()
    if moment == "in its forward":
        model[2].register_forward_pre_hook(lambda *_: die())
    y = model(x)
    if moment == "in its backward":
        y.register_hook(lambda _: die())
    y.backward(torch.randn(y.shape))
    if moment == "after its backward":
        die()


def train_until_an_error(
    rank: int, sync: str, moment: str
) -> tuple[str, list[Tensor], list[Tensor], list[Tensor]]:
    """What is raised; buffers before the fatal step, before the call that raised, and after it."""
    model = sharing(sync)
    settled = before = buffers(model)
    for step in range(6):
        if step == 2:
            settled = buffers(settle(model))
        before = buffers(model)
        try:
            step_or_die(model, rows(rank, step), moment if step == 2 and rank == 1 else None)
        except CollectiveError as error:
            return str(error), settled, before, buffers(model)
    return "nothing was raised", settled, before, buffers(model)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("sync", MODES)
def test_a_process_that_dies_is_an_error_in_the_others(sync: str, moment: str) -> None:
    survivor, dead = live(train_until_an_error, sync, moment, timeout=5)
    assert dead.exitcode == -9
    assert survivor.error == ""
    message, settled, before, after = survivor.value
    assert "Process 0 could not exchange statistics with the others of its group of 2" in message
    assert REMEDY in message
    assert all(b.isfinite().all() for b in after)
    if sync == "running":
        assert equal(after, before)
        if "forward" in moment:  # later, what it sent may have come through
            assert equal(after, settled)
    elif moment == "before its forward":
        assert equal(after, settled)
    elif moment == "in its forward":  # between the two layers
        assert equal(after[3:], settled[3:])
        assert int(after[2]) == int(settled[2]) + 1
    else:
        assert [int(after[i]) for i in (2, 5)] == [3, 3]


@pytest.mark.parametrize("sync", MODES)
def test_all_of_several_survivors_get_the_error(sync: str) -> None:
    first, dead, last = live(train_until_an_error, sync, "before its forward", world=3, timeout=2)
    assert dead.exitcode == -9
    for end in (first, last):
        assert "of its group of 3" in end.value[0], end.error
    assert equal(first.value[3], last.value[3])
    assert equal(first.value[3], first.value[1])


def stay_behind(rank: int, sync: str) -> tuple[str, bool]:
    model = sharing(sync)
    train(model, rows(rank))
    before = buffers(settle(model))
    if rank == 1:
        return "", True
    message = outcome(lambda: [train(model, rows(rank, step)) for step in (1, 2)])
    return message, equal(buffers(model), before)


@pytest.mark.parametrize("sync", MODES)
def test_a_process_that_stays_behind_is_an_error_after_the_timeout(sync: str) -> None:
    waiting, _ = live(stay_behind, sync, timeout=1)
    message, unchanged = waiting.value
    assert message.startswith("CollectiveError: Process 0 could not exchange statistics")
    assert "timed out" in message.lower()
    assert unchanged


# processes that are set up differently


def alike(rank: int) -> dict[str, Any]:
    return {}


def other_limits(rank: int) -> dict[str, Any]:
    return {"limits": limits.fixed(1.5 + rank, 0.4)}


def other_eps(rank: int) -> dict[str, Any]:
    return {"eps": (1e-5, 1e-3)[rank]}


def other_momentum(rank: int) -> dict[str, Any]:
    return {"momentum": (0.1, None)[rank]}


def other_channels(rank: int) -> dict[str, Any]:
    return {"channels": 4 + rank}


DIFFERENCES = {
    "limits of '1'": (other_limits, "rank 0: r_max 1.5, d_max 0.4; rank 1: r_max 2.5, d_max 0.4"),
    "eps of '1'": (other_eps, "rank 0: 1e-05; rank 1: 0.001"),
    "momentum of '1'": (other_momentum, "rank 0: 0.1; rank 1: None"),
    "the number of channels of '1'": (other_channels, "rank 0: 4; rank 1: 5"),
}


def first_steps(
    rank: int, group: Any, sync: str, settings: Callable[[int], dict[str, Any]]
) -> tuple[list[str], bool]:
    model = sharing(sync, group, **settings(rank))
    before = buffers(model)
    messages = [outcome(lambda: train(model, rows(rank))) for _ in range(2)]
    return messages, equal(buffers(model), before)


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("sync", MODES)
def test_other_settings_are_named_in_each_process(ranks: Ranks, sync: str, name: str) -> None:
    settings, values = DIFFERENCES[name]
    what = name if sync == "running" else name.removesuffix(" of '1'")
    for messages, unchanged in ranks.run(first_steps, sync, settings):
        for message in messages:
            assert message.startswith("ArgumentError")
            assert f"{what} differs ({values})" in message
        assert unchanged


def test_equal_settings_are_not_refused(ranks: Ranks) -> None:
    for sync in MODES:
        for messages, _ in ranks.run(first_steps, sync, alike):
            assert messages == ["fine", "fine"]


def other_statistics(rank: int, group: Any, sync: str, buffer: str) -> tuple[str, bool]:
    model = sharing(sync, group)
    if rank == 1:
        getattr(model[1], buffer).add_(1)
    before = buffers(model)
    message = outcome(lambda: train(model, rows(rank)))
    return message, equal(buffers(model), before)


@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("sync", MODES)
def test_other_statistics_are_named_in_each_process(ranks: Ranks, sync: str, buffer: str) -> None:
    answers = ranks.run(other_statistics, sync, buffer)
    for message, unchanged in answers:
        assert message.startswith("ArgumentError")
        assert f"{buffer}" in message
        assert "one checkpoint" in message
        assert message == answers[0][0]
        values = message.partition("differs (")[2].partition("). ")[0].split("; ")
        assert [v.partition(":")[0] for v in values] == ["rank 0", "rank 1"]
        assert unchanged


def fewer_layers(rank: int, group: Any) -> tuple[str, bool]:
    model = renormed()[: 5 - 3 * rank]
    sync_running(model, group)
    before = buffers(model)
    return outcome(lambda: train(model, rows(rank))), equal(buffers(model), before)


def test_other_numbers_of_layers_are_named_in_each_process(ranks: Ranks) -> None:
    for message, unchanged in ranks.run(fewer_layers):
        assert message.startswith("ArgumentError")
        assert "the number of layers differs (rank 0: 2; rank 1: 1)" in message
        assert unchanged


def fewer_joint_layers(rank: int) -> str:
    model = sharing("batch")[: 5 - 3 * rank]
    return outcome(lambda: train(model, rows(rank)))


def test_other_numbers_of_joint_layers_are_an_error_after_the_timeout() -> None:
    for end in live(fewer_joint_layers, timeout=1):
        assert end.value.startswith("CollectiveError"), end
        assert "did not run the same layers" in end.value


# groups


def in_the_group_of_the_first(rank: int, group: Any, sync: str) -> tuple[str, bool, bool]:
    members = dist.new_group([0])
    model, plain = sharing(sync, members), renormed()
    plain.load_state_dict(model.state_dict())
    before = buffers(model)
    message = outcome(lambda: train(model, rows(rank)))
    train(plain, rows(rank))
    after = buffers(model)
    return message, equal(after, before), near(after, buffers(plain))


@pytest.mark.parametrize("sync", MODES)
def test_a_group_must_contain_the_process(ranks: Ranks, sync: str) -> None:
    member, stranger = ranks.run(in_the_group_of_the_first, sync, size=2)
    assert member == ("fine", False, True)
    message, unchanged, _ = stranger
    assert message.startswith("ArgumentError: Process 1 is not in the process group")
    assert "new_group" in message
    assert unchanged


@pytest.mark.parametrize("sync", MODES)
def test_a_launch_of_several_processes_needs_a_process_group(
    sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = sharing(sync)
    before = buffers(model)
    with pytest.raises(ArgumentError, match=r"WORLD_SIZE is 2.*init_process_group"):
        model(rows(0))
    assert equal(buffers(model), before)


@pytest.mark.parametrize("launched", [None, "1"])
@pytest.mark.parametrize("sync", MODES)
def test_a_process_alone_trains_as_without_sync(
    sync: str, launched: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched is not None:
        monkeypatch.setenv("WORLD_SIZE", launched)
    model, plain = sharing(sync), renormed()
    plain.load_state_dict(model.state_dict())
    for step in range(3):
        x = rows(0, step)
        assert near([model(x)], [plain(x)])
    assert near(buffers(model), buffers(plain))
    assert [int(model[i].num_batches_tracked) for i in (1, 4)] == [3, 3]


# values that are not finite


def steps_of(rank: int, group: Any, sync: str, batches: list[list[Tensor]]) -> list[list[Tensor]]:
    """The buffers after each step; ``batches`` are those of each rank in each step."""
    model = sharing(sync, group)
    after = []
    for batch in batches:
        train(model, batch[rank])
        after.append(buffers(settle(model)))
    return after


def spoiled(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 2] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_running_statistics_leave_out_the_process_with_a_bad_batch(
    ranks: Ranks, value: float
) -> None:
    clean = [[rows(rank, step) for rank in range(3)] for step in range(3)]
    bad = [
        [x if (r, s) != (1, 1) else spoiled(x, value) for r, x in enumerate(xs)]
        for s, xs in enumerate(clean)
    ]
    without = [
        [x if (r, s) != (1, 1) else x[:0] for r, x in enumerate(xs)] for s, xs in enumerate(clean)
    ]
    found = ranks.run(steps_of, "running", bad, size=3)
    exact = ranks.run(steps_of, "running", without, size=3)
    for rank in range(3):
        for step in range(3):
            assert equal(found[rank][step], exact[rank][step])
            assert equal(found[rank][step], found[0][step])
            assert all(b.isfinite().all() for b in found[rank][step])
            assert int(found[rank][step][2]) == step + 1


@pytest.mark.parametrize(
    ("sync", "bad"), [("batch", (0,)), ("batch", (1,)), ("batch", (0, 1)), ("running", (0, 1))]
)
def test_a_bad_step_moves_nothing_and_the_next_one_recovers(
    ranks: Ranks, sync: str, bad: tuple[int, ...]
) -> None:
    nan = float("nan")
    clean = [[rows(rank, step) for rank in range(2)] for step in range(2)]
    between = [spoiled(rows(r, 7), nan) if r in bad else rows(r, 7) for r in range(2)]
    found = ranks.run(steps_of, sync, [clean[0], between, clean[1]])
    exact = ranks.run(steps_of, sync, clean)
    for rank in range(2):
        assert equal(found[rank][0], found[rank][1])
        assert equal(found[rank][1], exact[rank][0])
        assert equal(found[rank][2], exact[rank][1])


# sharing that was not installed, or on what cannot share


def alone_of_several(rank: int, group: Any) -> tuple[str, bool]:
    model = renormed(sync="running", process_group=group)
    before = buffers(model)
    return outcome(lambda: train(model, rows(rank))), equal(buffers(model), before)


def test_layers_that_nothing_shares_are_refused_in_a_group(ranks: Ranks) -> None:
    for message, unchanged in ranks.run(alone_of_several):
        assert message.startswith("ArgumentError: BatchRenorm has sync='running'")
        assert "sync_running(model)" in message
        assert unchanged


def test_layers_that_nothing_shares_evaluate() -> None:
    assert renormed(sync="running").eval()(rows(0)).shape == (5, 2)


def part_of_a_model(rank: int, group: Any) -> tuple[str, str, bool]:
    model = sharing("running", group)
    before = buffers(model)
    message = outcome(lambda: model[:3](rows(rank)))
    evaluated = outcome(lambda: model[:3].eval()(rows(rank)))
    return message, evaluated, equal(buffers(model), before)


def test_a_layer_is_not_trained_outside_of_the_forward_of_its_model(ranks: Ranks) -> None:
    for message, evaluated, unchanged in ranks.run(part_of_a_model):
        assert message.startswith("ArgumentError: A BatchRenorm of Sequential is trained outside")
        assert "Call sync_running on the module that you call" in message
        assert "renorm.accumulate(model)" in message
        assert evaluated == "fine"
        assert unchanged


def shared_twice(rank: int, group: Any) -> list[list[Tensor]]:
    once, twice = sharing("running", group), sharing("running", group)
    twice.load_state_dict(once.state_dict())
    for step in range(3):
        for model in (once, twice):
            train(model, rows(rank, step))
        sync_running(twice, group)
    return [buffers(settle(model)) for model in (once, twice)]


def test_sync_running_may_be_called_again(ranks: Ranks) -> None:
    for once, twice in ranks.run(shared_twice):
        assert equal(once, twice)
        assert int(once[2]) == 3


def test_overlapping_models_are_refused() -> None:
    inner = sequential(nn.Linear(3, 3), BatchRenorm(3))
    outer = sequential(inner, BatchRenorm(3))
    sync_running(inner)
    with pytest.raises(ArgumentError, match=r"'0\.1' are already put off"):
        sync_running(outer)
    assert outer[1].sync is None
    outer.train()
    inner(rows(0))
    assert int(inner[1].num_batches_tracked) == 1


def test_a_part_of_a_shared_model_is_refused() -> None:
    model = sharing("running")
    with pytest.raises(ArgumentError, match="already put off"):
        sync_running(model[1])
    model(rows(0))
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_sync_running_is_refused_within_accumulate(shared: bool) -> None:
    model = sharing("running") if shared else renormed()
    with renorm.accumulate(model):
        model(rows(0))
        with pytest.raises(ArgumentError, match="outside of accumulate"):
            sync_running(model)
        model(rows(1))
    assert [int(model[i].num_batches_tracked) for i in (1, 4)] == [1, 1]


def test_a_model_without_layers_to_share_is_refused() -> None:
    with pytest.raises(ArgumentError, match="has no batch renorm layer with running statistics"):
        sync_running(nn.Sequential(nn.Linear(3, 3), BatchRenorm(3, sync="batch")))


# a forward that raises


def fails(*_: Any) -> None:
    raise ZeroDivisionError


def steps_with_a_failure(
    rank: int, group: Any, failing: tuple[int, ...], where: int, at: int
) -> list[Tensor]:
    model = sharing("running", group)
    for step in range(4):
        hook = None
        if rank in failing and step == at:
            hook = model[where].register_forward_pre_hook(fails)
        try:
            train(model, rows(rank, step))
        except ZeroDivisionError:
            assert hook is not None
            hook.remove()
    return buffers(settle(model))


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize("failing", [(0, 1, 2), (1,)])
@pytest.mark.filterwarnings("ignore:.*always_call")
def test_training_goes_on_after_a_forward_that_raised(
    ranks: Ranks, failing: tuple[int, ...], where: int, at: int
) -> None:
    found = ranks.run(steps_with_a_failure, failing, where, at, size=3)
    for statistics in found:
        assert equal(statistics, found[0])
        assert all(b.isfinite().all() for b in statistics)
        everywhere = len(failing) == 3
        assert int(statistics[2]) == (3 if everywhere else 4)
        assert int(statistics[5]) == (3 if everywhere else 4)


def joint_steps_with_a_failure(rank: int) -> list[str]:
    model = sharing("batch")
    messages = []
    for step in range(3):
        hook = None
        if rank == 1 and step == 1:
            hook = model[0].register_forward_pre_hook(fails)
        messages.append(outcome(lambda s=step: train(model, rows(rank, s))))
        if hook is not None:
            return messages
    return messages


def test_a_joint_batch_that_one_process_does_not_bring_is_an_error_in_the_others() -> None:
    waiting, failing = live(joint_steps_with_a_failure, timeout=1)
    assert failing.value == ["fine", "ZeroDivisionError: "]
    assert waiting.value[0] == "fine"
    assert waiting.value[1].startswith("CollectiveError")
    assert "did not run the same layers" in waiting.value[1]


# copies and files


def copied(rank: int, group: Any, sync: str) -> tuple[bool, str, str, list[Tensor], list[Tensor]]:
    model = sharing(sync, group)
    train(model, rows(rank))
    double = copy.deepcopy(model)
    shared = all(double[i].process_group is group for i in (1, 4))
    for m in (model, double):
        train(m, rows(rank, 1))
    pickled = outcome(lambda: pickle.dumps(model[1]))
    saved = outcome(lambda: torch.save(model, io.BytesIO()))
    return shared, pickled, saved, buffers(settle(model)), buffers(settle(double))


@pytest.mark.parametrize("sync", MODES)
def test_copies_share_the_group_and_files_refuse_it(ranks: Ranks, sync: str) -> None:
    for shared, pickled, saved, original, double in ranks.run(copied, sync):
        assert shared
        for message in (pickled, saved):
            assert message.startswith("ArgumentError: A process group cannot be written")
            assert "state_dict" in message
        assert equal(original, double)
        assert int(double[2]) == 2


def test_a_layer_of_the_default_group_is_written_to_a_file() -> None:
    model = sharing("running")
    model(rows(0))
    loaded = pickle.loads(pickle.dumps(model))
    assert equal(buffers(loaded), buffers(model))
    assert loaded[1].sync == "running"
    loaded(rows(0, 1))
    assert int(settle(loaded)[1].num_batches_tracked) == 2


# statistics that must not be lost, moved twice or spoiled


def wrapped_with_one_reader(rank: int, group: Any, reader: int, how: str) -> list[Tensor]:
    model = sharing("running", group)
    wrapped = DistributedDataParallel(model, process_group=group)
    for step in range(4):
        train(wrapped, rows(rank, step))
        if rank == reader and how == "a checkpoint":
            model.state_dict()
        elif rank == reader:
            model.eval()(rows(7))
            model.train()
    return buffers(settle(model))


@pytest.mark.parametrize("how", ["a checkpoint", "an evaluation"])
@pytest.mark.parametrize("reader", [0, 1])
def test_buffers_that_ddp_broadcasts_may_be_read_by_one_process(
    ranks: Ranks, reader: int, how: str
) -> None:
    exact = ranks.run(wrapped_with_one_reader, -1, how)
    for statistics in ranks.run(wrapped_with_one_reader, reader, how):
        assert int(statistics[2]) == 4
        assert equal(statistics, exact[0])


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def steps_after_an_interrupt(rank: int, group: Any) -> int:
    model = sharing("running", group)
    hook = model[2].register_forward_pre_hook(interrupted)
    with suppress(KeyboardInterrupt):
        model(rows(rank))
    hook.remove()
    for step in range(3):
        train(model, rows(rank, step))
    return int(settle(model)[1].num_batches_tracked)


def test_statistics_go_on_after_a_forward_that_was_interrupted(ranks: Ranks) -> None:
    first, second = ranks.run(steps_after_an_interrupt)
    assert first == second
    assert first >= 3


def accumulated_with_a_failure(rank: int, group: Any, failing: int) -> list[Tensor]:
    model = sharing("running", group)
    for step in range(4):
        with suppress(ZeroDivisionError), renorm.accumulate(model):
            train(model, rows(rank, step))
            if rank >= failing and step == 1:
                raise ZeroDivisionError
    return buffers(settle(model))


@pytest.mark.parametrize(("failing", "steps"), [(0, 3), (1, 4)])
def test_training_goes_on_after_an_accumulation_that_raised(failing: int, steps: int) -> None:
    first, second = live(accumulated_with_a_failure, None, failing, timeout=2)
    assert first.error == second.error == ""
    assert equal(first.value, second.value)
    assert int(first.value[2]) == steps


def far_apart(rank: int, dtype: torch.dtype) -> Tensor:
    """Rows about 0, or rows that are all the same and whose square is beyond the dtype."""
    far = torch.finfo(dtype).max ** 0.6
    return torch.full((4, 4), far, dtype=dtype) if rank else torch.randn(4, 4, dtype=dtype)


def step_far_apart(rank: int, group: Any, dtype: torch.dtype) -> list[Tensor]:
    layer = sync_running(BatchRenorm(4, momentum=0.1).to(dtype), group)
    layer(far_apart(rank, dtype))
    return buffers(settle(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_joint_variance_beyond_the_dtype_moves_nothing(ranks: Ranks, dtype: torch.dtype) -> None:
    for mean, var, steps in ranks.run(step_far_apart, dtype):
        assert mean.isfinite().all()
        assert var.isfinite().all()
        assert int(steps) in (0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pooled_variance_beyond_the_dtype_moves_nothing(dtype: torch.dtype) -> None:
    layer = BatchRenorm(4, momentum=0.1).to(dtype)
    with renorm.accumulate(layer):
        for rank in range(2):
            layer(far_apart(rank, dtype))
    assert all(b.isfinite().all() for b in layer.buffers())


def test_a_copy_made_within_accumulate_trains() -> None:
    model = sharing("running")
    with renorm.accumulate(model):
        model(rows(0))
        double = copy.deepcopy(model)
    double(rows(1))
    assert int(settle(double)[1].num_batches_tracked) == 1
    assert int(model[1].num_batches_tracked) == 1


def within() -> Callable[..., tuple[float, float]]:
    def bounds(step: int, d_max: float) -> tuple[float, float]:
        return 1.5, d_max

    return bounds


def partial_limits(rank: int) -> dict[str, Any]:
    functions = [within(), within()]  # of which each process takes another, as memory may have it
    return {"limits": functools.partial(functions[rank], d_max=0.4)}


@pytest.mark.parametrize("sync", MODES)
def test_limits_of_a_partial_function_are_the_same_everywhere(sync: str) -> None:
    for end in live(first_steps, None, sync, partial_limits):
        assert end.value[0] == ["fine", "fine"]


def saved_after_a_death(rank: int) -> tuple[list[str], bool]:
    model = sharing("running")
    train(model, rows(rank))
    before = buffers(settle(model))
    if rank == 1:
        die()
    failed = outcome(lambda: [train(model, rows(rank, step)) for step in (1, 2)])
    return [failed, outcome(model.state_dict)], equal(buffers(model), before)


def test_a_survivor_can_save_its_statistics() -> None:
    (failed, saved), unchanged = live(saved_after_a_death, timeout=2)[0].value
    assert failed.startswith("CollectiveError")
    assert saved == "fine"
    assert unchanged


def loaded_by_one(rank: int, group: Any) -> tuple[str, list[Tensor]]:
    model = sharing("running", group)
    train(model, rows(rank))
    settle(model)
    if rank == 1:
        model[1].load_state_dict(BatchRenorm(4).state_dict())
    steps = range(1, AGREE_EVERY + 1)
    message = outcome(lambda: [train(model, rows(rank, step)) for step in steps])
    return message, buffers(settle(model))


def test_statistics_that_one_process_alone_loads_do_not_drift_apart(ranks: Ranks) -> None:
    (first, statistics), (second, others) = ranks.run(loaded_by_one)
    assert first.startswith("ArgumentError")
    assert second == first
    assert not equal(statistics, others)


def test_layers_that_wait_for_their_first_input_are_shared() -> None:
    model = sequential(nn.LazyLinear(4), renorm.LazyBatchRenorm1d())
    sync_running(model)
    for step in range(2):
        model(rows(0, step))
    assert int(settle(model)[1].num_batches_tracked) == 2
