"""Cross-iteration layers in several processes: each rank has a window of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from cross_iteration.networks import network, norms
from cross_iteration.test_state import kinds
from support.ranks import WORLD, Ranks

STEPS = 5


def data(rank: int, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(10 + rank)
    return [
        (
            torch.randn(3, 2, 7, 7, generator=generator),
            torch.randn(3, 6, 3, 3, generator=generator),
        )
        for _ in range(steps)
    ]


def wrapped(model: Any, how: str) -> Any:
    if how == "ddp":
        return DistributedDataParallel(model)
    policy = MixedPrecisionPolicy()
    for layer in (model[0], model[3]):
        fully_shard(layer, mp_policy=policy)  # its weights are gone when the norm is called
    return fully_shard(model, mp_policy=policy)


def train(rank: int, group: Any, how: str, kind: dict[str, Any]) -> dict[str, Any]:
    model = network(**kind)
    whole = wrapped(model, how)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    outputs = []
    for x, dy in data(rank):
        optimizer.zero_grad()
        y = whole(x)
        y.backward(dy)
        optimizer.step()
        outputs.append(y.detach())
    return {"outputs": outputs, "history": [norm._history.state() for norm in norms(model)]}


def by_hand(size: int, kind: dict[str, Any]) -> list[list[Tensor]]:
    """One process with the averaged gradients of all, and a copy of the model for each rank."""
    models = [network(**kind) for _ in range(size)]
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in models]
    outputs: list[list[Tensor]] = [[] for _ in range(size)]
    batches = [data(rank) for rank in range(size)]
    for step in range(STEPS):
        for rank, model in enumerate(models):
            optimizers[rank].zero_grad()
            x, dy = batches[rank][step]
            y = model(x)
            y.backward(dy)
            outputs[rank].append(y.detach())
        for parameters in zip(*(m.parameters() for m in models), strict=True):
            mean = torch.stack([p.grad for p in parameters]).mean(0)
            for p in parameters:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    return outputs


@kinds
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_each_rank_borrows_from_its_own_iterations(
    ranks: Ranks, how: str, kind: dict[str, Any]
) -> None:
    found = ranks.run(train, how, kind, size=WORLD)
    expected = by_hand(WORLD, kind)
    for rank in range(WORLD):
        for a, b in zip(found[rank]["outputs"], expected[rank], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    rests = [r["history"][0]["rest"] for r in found]
    offsets = [r["history"][0]["offset"] for r in found]
    assert not (torch.equal(*rests[:2]) and torch.equal(*offsets[:2]))  # not broadcast


def test_batch_norm_is_what_the_test_above_would_notice() -> None:
    windowed = by_hand(2, {})
    alone = by_hand(2, {"window": 1})
    assert not torch.allclose(windowed[0][-1], alone[0][-1], rtol=1e-3, atol=1e-3)
    assert isinstance(network()[0], nn.Conv2d)
