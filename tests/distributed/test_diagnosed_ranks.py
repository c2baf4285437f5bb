"""Diagnoses of models that several processes train: they go on as if nothing had been."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm.measure.records import ChannelHealth, OutputGap, Setting
from support.ranks import WORLD, Ranks


def network() -> Any:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4),
        nn.Linear(4, 2),
    ).double()  # fmt: skip


def alone(group: Any) -> Any:
    return network()


def wrapped(group: Any) -> Any:
    return DistributedDataParallel(network(), process_group=group)


def sharded_whole(group: Any) -> Any:
    return fully_shard(network(), mesh=DeviceMesh.from_group(group, "cpu"))


def sharded_in_parts(group: Any) -> Any:
    net, mesh = network(), DeviceMesh.from_group(group, "cpu")
    for i in (0, 1, 3, 4):
        fully_shard(net[i], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def flat(group: Any) -> Any:
    return FullyShardedDataParallel(network(), process_group=group, device_id=torch.device("cpu"))


def loss(output: Any, batch: Any) -> Tensor:
    return output.square().mean()


def trained(
    rank: int, group: Any, built: Callable[[Any], Any], start: str, diagnosed: bool, end: bool
) -> Any:
    """What was found, and all values after training went on."""
    net = built(group)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    noise = torch.Generator().manual_seed(rank)
    batches = [torch.randn(6, 3, generator=noise, dtype=torch.float64) for _ in range(4)]
    cotangents = [torch.randn(6, 2, generator=noise, dtype=torch.float64) for _ in range(4)]

    def step(i: int) -> None:
        net(batches[i]).backward(cotangents[i])
        optimizer.step()
        optimizer.zero_grad()

    output = None
    if start != "fresh":
        step(0)
    if start == "after a forward":
        output = net(batches[1])
    before = _bound(net)
    found = _found(net, batches, end) if diagnosed else None
    assert _bound(net) == before
    if output is not None:
        output.backward(cotangents[1])
        optimizer.step()
        optimizer.zero_grad()
    step(2)
    step(3)
    whole = [getattr(p, "full_tensor", p.clone)().detach() for p in net.parameters()]
    return found, [*whole, *(b.clone() for b in net.buffers())]


def _found(net: Any, batches: list[Tensor], end: bool) -> Any:
    if not end:
        survey = renorm.diagnose(net, batches, loss).survey
        kinds = OutputGap, ChannelHealth, Setting
        return list(survey.layers()), [survey.of(kind) for kind in kinds], survey.complete

    def stop(output: Any, batch: Any) -> Tensor:
        raise ZeroDivisionError("in the loss")

    with pytest.raises(ZeroDivisionError, match="in the loss"):
        renorm.diagnose(net, batches, stop)
    return None


def _bound(net: nn.Module) -> list:
    """Which objects the parameters, buffers and hooks of all modules are."""
    tables = [[*vars(m).items()] for m in net.modules()]
    return [
        (name, [*map(id, value.values())] if isinstance(value, dict) else id(value))
        for table in tables
        for name, value in table
    ]


@pytest.mark.parametrize("start", ["fresh", "after a step", "after a forward"])
@pytest.mark.parametrize("built", [wrapped, sharded_whole, sharded_in_parts])
def test_training_goes_on_as_without(ranks: Ranks, built: Callable[[Any], Any], start: str) -> None:
    plain = ranks.run(trained, built, start, False, False, size=WORLD)
    found = ranks.run(trained, built, start, True, False, size=WORLD)
    for (_, exact), (about, values) in zip(plain, found, strict=True):
        assert about[0] == ["1", "4"]
        assert about[1][-1][0].processes == WORLD
        assert about[2]
        assert all(torch.equal(a, b) for a, b in zip(values, exact, strict=True))


@pytest.mark.parametrize("built", [wrapped, sharded_whole, sharded_in_parts])
def test_an_error_leaves_it_as_it_was(ranks: Ranks, built: Callable[[Any], Any]) -> None:
    plain = ranks.run(trained, built, "after a step", False, False, size=WORLD)
    found = ranks.run(trained, built, "after a step", True, True, size=WORLD)
    for (_, exact), (_, values) in zip(plain, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, exact, strict=True))


@pytest.fixture(scope="module")
def single() -> Iterator[Ranks]:
    """A world of one process."""
    made = Ranks(1)
    yield made
    made.close()


@pytest.mark.parametrize("built", [wrapped, sharded_in_parts])
def test_one_rank_finds_what_a_bare_model_shows(single: Ranks, built: Callable[[Any], Any]) -> None:
    ((bare, _),) = single.run(trained, alone, "fresh", True, False, size=1)
    ((found, _),) = single.run(trained, built, "fresh", True, False, size=1)
    assert found == bare


def refused(rank: int, group: Any) -> str:
    with pytest.raises(renorm.ArgumentError) as raised:
        renorm.diagnose(flat(group), [torch.zeros(6, 3)])
    return str(raised.value)


def test_flat_parameters_are_refused(ranks: Ranks) -> None:
    for message in ranks.run(refused):
        assert "FullyShardedDataParallel, whose flat parameters" in message
        assert "fully_shard" in message
