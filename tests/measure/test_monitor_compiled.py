"""A compiled model runs uncompiled in observed steps, and compiled in all others."""

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from renorm import BatchRenorm2d, limits
from renorm.measure import Monitor


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def a_net() -> Any:
    norm = BatchRenorm2d(4, limits=limits.over(4))
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.BatchNorm2d(4))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of dynamo's own
@pytest.mark.parametrize("whole", [True, False], ids=["torch.compile", "Module.compile"])
def test_observed_steps_run_uncompiled_and_nothing_is_compiled_anew(whole: bool) -> None:
    counter, net = CompileCounter(), a_net()
    if whole:
        model: Any = torch.compile(net, backend=counter, fullgraph=True)
    else:
        model = net
        model.compile(backend=counter, fullgraph=True)
    frames = []
    with Monitor(net, every=3) as monitor:
        for _ in range(7):
            y = model(torch.randn(4, 3, 6, 6))
            y.backward(torch.randn_like(y))
            monitor.step()
            frames.append(counter.frame_count)
    assert frames == [0, 1, 1, 1, 1, 1, 1]
    assert [one.step for one in monitor.observations] == [0, 0, 3, 3, 6, 6]
    model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 1


def test_the_stance_of_the_user_is_put_back() -> None:
    counter, net = CompileCounter(), a_net()
    model: Any = torch.compile(net, backend=counter)
    with Monitor(net, every=1):
        model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 0
    model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 1


def test_monitors_that_end_in_any_order_leave_no_stance() -> None:
    counter, net = CompileCounter(), a_net()
    model: Any = torch.compile(net, backend=counter)
    first, second = Monitor(net, every=1), Monitor(a_net(), every=1)
    first.close()
    model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 0  # the second looks
    second.close()
    model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 1


def test_a_monitor_that_is_forgotten_leaves_no_stance() -> None:
    counter, net = CompileCounter(), a_net()
    model: Any = torch.compile(net, backend=counter)
    Monitor(a_net(), every=1)
    gc.collect()
    model(torch.randn(4, 3, 6, 6))
    assert counter.frame_count == 1
