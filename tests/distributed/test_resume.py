"""Training that was killed goes on as if nothing had happened, and checkpoints are complete."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from renorm.distributed import settle, sync_running
from support.mortals import live
from support.networks import buffers, equal, renormed, same
from support.ranks import Ranks
from support.resumed import STEPS, Kill, Result, Run, go_on, kills

RUNS = {
    "one process": Run(),
    "one process, micro-batches": Run(micro_batches=2, adam=True),
    "running": Run(sync="running", world=2, adam=True),
    "running, micro-batches": Run(sync="running", world=2, micro_batches=2),
    "batch": Run(sync="batch", world=2),
    "running, wrapped later": Run(sync="running", world=2, adam=True, wrapped_later=True),
}
KILLS = 10


def results(run: Run, checkpoint: Path | None, kill: Kill | None) -> list[Any]:
    ends = live(go_on, run, checkpoint, kill, world=run.world, timeout=20, grouped=run.world > 1)
    if kill is not None:
        assert ends[kill.rank].exitcode == -9, ends
        assert not any(end.error.startswith("no answer") for end in ends)
        return []
    assert not any(end.error for end in ends), ends
    return [end.value for end in ends]


def flat(state: Any) -> list[Tensor]:
    """All numbers of nested dictionaries and lists."""
    if isinstance(state, dict):
        state = [state[key] for key in sorted(state, key=str)]
    if isinstance(state, (list, tuple)):
        return [t for part in state for t in flat(part)]
    return [torch.as_tensor(state)] if isinstance(state, (Tensor, int, float, bool)) else []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_ten_times_ends_as_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    undisturbed: list[Result] = results(run, None, None)
    checkpoint = tmp_path / "checkpoint"
    for kill in kills(run, KILLS, seed=list(RUNS).index(name)):
        results(run, checkpoint, kill)
    last: list[Result] = results(run, checkpoint, None)
    for exact, found in zip(undisturbed, last, strict=True):
        assert 0 < found.resumed_at < STEPS
        assert same(exact.model, found.model)
        assert equal(flat(exact.optimizer), flat(found.optimizer))
        assert torch.equal(exact.order, found.order)
        outputs = exact.outputs[run.micro_batches * found.resumed_at :]
        assert equal(outputs, found.outputs)
        counts = [t for key, t in found.model.items() if key.endswith("num_batches_tracked")]
        assert [int(t) for t in counts] == [STEPS, STEPS]
    if run.sync is not None:
        assert same(last[0].model, last[1].model)


# torch.distributed.checkpoint


def distributed_model(sharded: bool, group: Any) -> tuple[Any, torch.optim.Optimizer]:
    model = renormed()
    if sharded:
        for layer in (model[0], model[1], model):
            fully_shard(layer)
        sync_running(model)
    else:
        model = DistributedDataParallel(sync_running(model, group), process_group=group)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def whole(model: Any) -> list[Tensor]:
    """All parameters and buffers as they are now."""
    parameters = [getattr(p, "full_tensor", p.clone)().detach() for p in model.parameters()]
    return [*parameters, *buffers(model)]


def train(model: Any, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(len(x))))
    optimizer.step()


def saved_and_loaded(rank: int, sharded: bool, folder: Path) -> None:
    batches = [torch.randn(4 + rank, 3) for _ in range(4)]
    model, optimizer = distributed_model(sharded, None)
    for x in batches[:3]:
        train(model, optimizer, x)
    before = buffers(model)
    states = get_state_dict(model, optimizer)
    state_dict_saver.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=folder)
    saved = whole(model)
    assert not equal(before, buffers(model)), "the exchange was not under way"
    settle(model)
    assert equal(saved, whole(model))
    torch.manual_seed(9)
    other, other_optimizer = distributed_model(sharded, None)
    assert not equal(saved, whole(other))
    train(other, other_optimizer, batches[0])  # loading wins over the exchange under way
    fresh = get_state_dict(other, other_optimizer)
    states = {"model": fresh[0], "optimizer": fresh[1]}
    state_dict_loader.load(states, checkpoint_id=folder)
    set_state_dict(
        other,
        other_optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
    )
    assert equal(saved, whole(other))
    for m, o in ((model, optimizer), (other, other_optimizer)):
        train(m, o, batches[3])
        settle(m)
    assert equal(whole(model), whole(other))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_a_distributed_checkpoint_holds_what_is_under_way(sharded: bool, tmp_path: Path) -> None:
    for end in live(saved_and_loaded, sharded, tmp_path / "checkpoint", timeout=20):
        assert end.error == ""


# checkpoints of nn.BatchNorm


def batch_norms() -> dict[str, Tensor]:
    torch.manual_seed(4)
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model = nn.Sequential(*layers)
    for _ in range(3):
        model(torch.randn(8, 3) * 2 + 1)
    return {key: value.clone() for key, value in model.state_dict().items()}


def load_batch_norms(rank: int, group: Any, when: str) -> tuple[bool, bool, list[Tensor]]:
    theirs = batch_norms()
    model = renormed()
    if when == "before sync_running":
        model.load_state_dict(theirs)
    sync_running(model, group)
    if when == "during an exchange":
        model(torch.randn(5, 3))
    if when != "before sync_running":
        model.load_state_dict(theirs)
    loaded = equal(buffers(model), [theirs[key] for key, _ in model.named_buffers()])
    kept = same(model.state_dict(), theirs)
    model(torch.randn(5, 3, generator=torch.Generator().manual_seed(rank)))
    return loaded, kept, buffers(settle(model))


WHEN = ["before sync_running", "after sync_running", "during an exchange"]


@pytest.mark.parametrize("when", WHEN)
def test_a_checkpoint_of_batch_norm_loads_strictly(ranks: Ranks, when: str) -> None:
    exact = ranks.run(load_batch_norms, WHEN[0])[0][2]
    for loaded, kept, after in ranks.run(load_batch_norms, when):
        assert loaded
        assert kept
        assert equal(after, exact)
        assert int(after[2]) == 4
