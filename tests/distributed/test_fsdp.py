"""Running statistics under fully_shard, which shards parameters, and leaves buffers alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm.distributed import settle, sync_running
from renorm.nn import BatchRenorm
from support.networks import buffers, equal, renormed
from support.ranks import Ranks
from support.tolerance import assert_close

STEPS = 4
DEFAULT = MixedPrecisionPolicy()
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
FP32 = MixedPrecisionPolicy(param_dtype=torch.float32, output_dtype=torch.bfloat16)


def sharded(model: Any, policy: MixedPrecisionPolicy = DEFAULT) -> Any:
    for layer in (model[0], model[3]):
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def network(**settings: Any) -> Any:
    return renormed(**settings).double()  # else sums in another order show after some steps


def shared_then_wrapped() -> Any:
    return DistributedDataParallel(sync_running(network()))


def shared_then_sharded() -> Any:
    return sharded(sync_running(network()))


def sharded_then_shared() -> Any:
    return sync_running(sharded(network()))


def each_layer_sharded() -> Any:
    model = sync_running(network())
    for i in (0, 1, 3, 4):
        fully_shard(model[i])
    return fully_shard(model)


def joint_and_wrapped() -> Any:
    return DistributedDataParallel(network(sync="batch"))


def joint_and_sharded() -> Any:
    return sharded(network(sync="batch"))


def not_shared_and_sharded() -> Any:
    return sharded(network())


def norms_in_float32() -> Any:
    model = renormed()
    for i in (1, 4):
        fully_shard(model[i], mp_policy=FP32)
    return sync_running(sharded(model, BF16))


def norms_in_bfloat16() -> Any:
    return sync_running(sharded(renormed(), BF16))


def trained(
    rank: int, group: Any, built: Callable[[], Any], micro_batches: int = 1
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Buffers before what is under way arrives and after, whole parameters, and the last output."""
    torch.manual_seed(2)
    model = built()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noise = torch.Generator().manual_seed(rank)
    y = torch.zeros(0)
    dtype = next(model.parameters()).dtype
    for _ in range(STEPS):
        optimizer.zero_grad()
        shape = (6 - 2 * rank, 3)
        batches = [torch.randn(shape, generator=noise).to(dtype) for _ in range(micro_batches)]
        if micro_batches > 1:
            with renorm.accumulate(model):
                for x in batches:
                    y = model(x)
                    y.backward(torch.randn(y.shape, generator=noise).to(y.dtype))
        else:
            y = model(batches[0])
            y.backward(torch.randn(y.shape, generator=noise).to(y.dtype))
        optimizer.step()
    before = buffers(model)
    settle(model)
    parameters = [getattr(p, "full_tensor", p.clone)().detach() for p in model.parameters()]
    return before, buffers(model), parameters, y.detach()


def assert_near(found: list[Tensor], exact: list[Tensor]) -> None:
    for a, b in zip(found, exact, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        assert_close("tensor", a, b.double(), torch.float64, scale=scale)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("built", [shared_then_sharded, sharded_then_shared, each_layer_sharded])
def test_shares_running_statistics_as_with_ddp(
    ranks: Ranks, built: Callable[[], Any], micro_batches: int
) -> None:
    found = ranks.run(trained, built, micro_batches, size=4)
    exact = ranks.run(trained, shared_then_wrapped, micro_batches, size=4)
    for (before, after, parameters, y), ddp in zip(found, exact, strict=True):
        assert not equal(before, after)
        assert equal(after, found[0][1])
        assert int(after[2]) == STEPS
        assert_near([*after, *parameters, y], [*ddp[1], *ddp[2], ddp[3]])


def test_joins_batches_as_with_ddp(ranks: Ranks) -> None:
    found = ranks.run(trained, joint_and_sharded, size=4)
    exact = ranks.run(trained, joint_and_wrapped, size=4)
    for (_, after, parameters, y), ddp in zip(found, exact, strict=True):
        assert equal(after, found[0][1])
        assert_near([*after, *parameters, y], [*ddp[1], *ddp[2], ddp[3]])


def test_statistics_that_nothing_shares_diverge(ranks: Ranks) -> None:
    first, second, *_ = ranks.run(trained, not_shared_and_sharded, size=4)
    assert not equal(first[1], second[1])


@pytest.mark.parametrize("built", [norms_in_float32, norms_in_bfloat16])
def test_mixed_precision_leaves_statistics_in_float32(
    ranks: Ranks, built: Callable[[], Any]
) -> None:
    exact = ranks.run(trained, shared_then_wrapped, size=4)[0][1]
    found = ranks.run(trained, built, size=4)
    for _, after, _, y in found:
        assert y.dtype == torch.bfloat16
        assert y.isfinite().all()
        assert equal(after, found[0][1])
        for a, b in zip(after, exact, strict=True):
            assert a.dtype == (torch.float32 if b.is_floating_point() else b.dtype)
            assert a.isfinite().all()
            # what both layers get is rounded, in each step
            assert_close("statistics", a, b.double(), torch.bfloat16, scale=2 * STEPS)


def initialized_later() -> Any:
    with torch.device("meta"):
        model = sync_running(renormed())
    sharded(model)
    model.to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, (nn.Linear, BatchRenorm)):
            layer.reset_parameters()
    return model


def test_a_model_built_without_memory_shares_statistics(ranks: Ranks) -> None:
    found = ranks.run(trained, initialized_later, size=4)
    for _, after, _, _ in found:
        assert equal(after, found[0][1])
        assert all(b.isfinite().all() for b in after)
        assert int(after[2]) == STEPS
