"""A training that writes a checkpoint each step, may be killed anywhere, and goes on from there."""

import io
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm import limits
from renorm.distributed import settle, sync_running
from renorm.nn import BatchRenorm
from support.mortals import die

STEPS = 40
EXAMPLES = 4  # of a micro-batch in one process
WHILE_WRITING = ("half-way through the checkpoint", "before the checkpoint is in place")
OF_A_MICRO_BATCH = ("before a forward", "after a forward", "after a backward")
MOMENTS = (*OF_A_MICRO_BATCH, "after the optimizer's step", *WHILE_WRITING)


class Run(NamedTuple):
    sync: str | None = None
    world: int = 1
    micro_batches: int = 1
    adam: bool = False
    wrapped_later: bool = False  # by DistributedDataParallel, after sync_running


class Kill(NamedTuple):
    step: int
    moment: str
    rank: int
    micro_batch: int | None = None


class Result(NamedTuple):
    resumed_at: int
    outputs: list[Tensor]  # of this process in training from there on, then of all rows in eval
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    order: Tensor


def kills(run: Run, times: int, seed: int) -> list[Kill]:
    """Where and when the run is killed, in the order of steps; every moment comes up."""
    chance = random.Random(seed)
    moments = list(MOMENTS) + chance.choices(MOMENTS, k=times - len(MOMENTS))
    chance.shuffle(moments)
    steps = sorted(chance.sample(range(STEPS), times))
    return [
        Kill(
            step,
            moment,
            0 if moment in WHILE_WRITING else chance.randrange(run.world),
            chance.randrange(run.micro_batches) if moment in OF_A_MICRO_BATCH else None,
        )
        for step, moment in zip(steps, moments, strict=True)
    ]


def go_on(rank: int, run: Run, checkpoint: Path | None, kill: Kill | None) -> Result:
    """Train to the last step, from the checkpoint if there is one."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"limits": limits.over(STEPS), "momentum": 0.1}
    if run.sync == "batch":
        settings["sync"] = "batch"
    model: Any = nn.Sequential(
        nn.Linear(3, 8),
        BatchRenorm(8, **settings),
        nn.ReLU(),
        nn.Linear(8, 4),
        BatchRenorm(4, **settings),
        nn.ReLU(),
        nn.Linear(4, 1),
    )
    x = torch.randn(64, 3) * torch.tensor([1.0, 3.0, 0.3])
    target = (x[:, :1] * x[:, 1:2]).tanh()
    order = torch.Generator().manual_seed(5)
    if run.sync == "running" and run.wrapped_later:
        sync_running(model)
    wrapped: Any = model if run.world == 1 else DistributedDataParallel(model)
    if run.sync == "running" and not run.wrapped_later:
        sync_running(wrapped)
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.02)
        if run.adam
        else torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    )
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        first = state["steps"]

    def at(moment: str, step: int, micro_batch: int | None = None) -> None:
        if kill == Kill(step, moment, rank, micro_batch):
            die()

    outputs = []
    for step in range(first, STEPS):
        indices = torch.randperm(len(x), generator=order)
        optimizer.zero_grad()
        with ExitStack() as stack:
            if run.micro_batches > 1:
                stack.enter_context(renorm.accumulate(wrapped))
            for i in range(run.micro_batches):
                begin = (i * run.world + rank) * EXAMPLES
                mine = indices[begin : begin + EXAMPLES]
                with ExitStack() as local:
                    if run.world > 1 and i < run.micro_batches - 1:
                        local.enter_context(wrapped.no_sync())
                    at("before a forward", step, i)
                    y = wrapped(x[mine])
                    at("after a forward", step, i)
                    mse_loss(y, target[mine]).backward()
                    at("after a backward", step, i)
                outputs.append(y.detach())
        optimizer.step()
        at("after the optimizer's step", step)
        if checkpoint is not None and rank == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "order": order.get_state(),
                "steps": step + 1,
            }
            _write(checkpoint, state, lambda moment, s=step: at(moment, s))
    outputs.append(settle(model).eval()(x).detach())
    return Result(first, outputs, model.state_dict(), optimizer.state_dict(), order.get_state())


def _write(path: Path, state: dict[str, Any], at: Callable[[str], None]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        at(WHILE_WRITING[0])
        file.write(content[len(content) // 2 :])
    at(WHILE_WRITING[1])
    os.replace(unfinished, path)
