"""When the kernel in C serves, when it does not, and what is said then."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from renorm import BatchRenorm2d, functional, kernels
from renorm.errors import ArgumentError
from renorm.kernels import Call, cpu
from renorm.limits import Ramp

BUILT = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
x = torch.randn(6, 3, 4)


class Wrapped(Tensor):
    """A tensor subclass, as DTensor is."""


class Own(torch.nn.Parameter):
    """A parameter that is more than its values."""


def _call(x: Tensor = x, **options: Any) -> Call:
    c = x.shape[1]
    call = Call(x, torch.zeros(c), torch.ones(c), None, None, 1.0, 0.0, 0.1, 1e-5)
    return call._replace(**options)


REFUSED = [
    (_call(mask=torch.ones(6, 4).bool().as_subclass(Wrapped)), "the mask or residual is a tensor"),
    (_call(x.to("meta")), "the native operations are not there on meta"),
    (_call(weight=Own(torch.ones(3))), "a parameter or statistic is not a plain floating-point"),
    (_call(bias=torch.ones(3, dtype=torch.int64)), "a parameter or statistic is not a plain"),
    (_call(x.to(torch.float8_e5m2)), "it has no code for torch.float8_e5m2"),
]


@BUILT
@pytest.mark.parametrize(("call", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_asked_for_what_it_does_not_take_it_raises(call: Call, reason: str) -> None:
    with pytest.raises(ArgumentError, match=f"'cpu' was asked for, but {reason}.* Pass kernel="):
        kernels.choose(call, "cpu")
    assert kernels.choose(call).kernel != "cpu"


@BUILT
@pytest.mark.filterwarnings("ignore")  # the tracer warns of every size that is read
def test_recorded_operations_are_left_to_kernels_made_of_them() -> None:
    reason = "native operations on cpu: operations are being recorded, and this would not be one"
    with FlopCounterMode(display=False):
        assert kernels.choose(_call()) == ("aten", reason)
    layer = BatchRenorm2d(3)
    image = torch.randn(4, 3, 5, 5)
    traced: Any = torch.jit.trace(layer, image, check_trace=False)
    other = torch.randn(4, 3, 5, 5)
    assert not torch.equal(traced(other), traced(image))


def test_an_extension_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", broken)
            importlib.reload(cpu)
        assert cpu.MISSING == "the C extension was built, but does not load: undefined symbol"
        assert kernels.choose(_call()).kernel == "aten"
    finally:
        importlib.reload(cpu)


def test_without_the_extension_the_native_operations_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "renorm.kernels.cpu._native", None)
    try:
        importlib.reload(cpu)
        kernel, reason = kernels.choose(_call())
        assert kernel == "aten"
        assert reason.startswith("native operations on cpu: the C extension was not built: ")
        with pytest.raises(ArgumentError, match="'cpu' was asked for, but the C extension was not"):
            kernels.choose(_call(), "cpu")
        assert kernels.run(_call()).y.shape == x.shape
    finally:
        monkeypatch.undo()
        importlib.reload(cpu)


@BUILT
def test_a_torch_without_its_pool_in_the_interface_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Without:
        def __init__(self, path: str) -> None: ...

    monkeypatch.setattr("ctypes.CDLL", Without)
    assert cpu._connect() == f"torch {torch.__version__} does not export torch_parallel_for"


@BUILT
def test_the_extension_refuses_a_wrong_number_of_arguments() -> None:
    for function in (cpu.native.forward, cpu.native.backward, cpu.native.connect):
        with pytest.raises(TypeError, match=r"expected \d+ arguments, got 1"):
            function(1)
    assert not cpu.native.use("unheard of")


UNCOMMON: list[dict[str, Any]] = [
    {"x": x.int()},
    {"x": x.to(torch.complex64)},
    {"x": x.to("meta")},
    {"x": x.as_subclass(Wrapped)},
    {"x": torch.ops.aten._neg_view(x)},
    {"x": x[0, 0]},
    {"x": x[:1, :, :1]},
    {"x": x[:0]},
    {"x": x[:, :0]},
    {"running_mean": None},
    {"running_var": torch.ones(4)},
    {"running_var": torch.ones(3, 1)},
    {"running_var": torch.ones(6)[::2]},
    {"running_mean": torch.zeros(3, dtype=torch.int64)},
    {"weight": Own(torch.ones(3))},
    {"weight": torch.ones(3, device="meta")},
    {"bias": torch.ops.aten._neg_view(torch.ones(3))},
    {"mask": torch.ones(6, 4).bool()},
    {"residual": x},
    {"microbatch": 2},
    {"r_max": 0.5},
    {"r_max": float("nan")},
    {"r_max": torch.tensor(2.0)},
    {"r_max": Ramp(1, 3)},
    {"d_max": -1.0},
    {"momentum": 1.5},
    {"momentum": torch.tensor(0.1)},
    {"eps": 0.0},
    {"eps": float("inf")},
    {"eps": "1"},
]


@BUILT
@pytest.mark.parametrize("changed", UNCOMMON, ids=lambda changed: next(iter(changed)))
def test_what_is_not_common_is_looked_at_closely(changed: dict[str, Any]) -> None:
    assert cpu.is_common(_call())
    assert not cpu.is_common(_call()._replace(**changed))


@BUILT
@pytest.mark.parametrize(
    "common",
    [
        {"x": x.bfloat16()},
        {"x": x.double().requires_grad_()},
        {"x": x.transpose(1, 2).contiguous().transpose(1, 2)},
        {"running_mean": None, "running_var": None},
        {"weight": torch.nn.Parameter(torch.ones(3)), "relu": True},
        {"r_max": float("inf"), "d_max": float("inf"), "momentum": 1},
    ],
    ids=["half", "double", "channels_last", "no reference", "parameter", "unclipped"],
)
def test_what_is_common_passes_every_other_check(common: dict[str, Any]) -> None:
    call = _call(**common)
    assert cpu.is_common(call)
    functional.check(call, "raise")
    assert kernels.choose(call).kernel == "cpu"


@BUILT
def test_nothing_is_common_under_a_transform() -> None:
    call = _call()
    with FlopCounterMode(display=False):
        assert not cpu.is_common(call)
    with torch.autograd.forward_ad.dual_level():
        assert not cpu.is_common(call)
    assert torch.func.vmap(lambda t: torch.tensor(cpu.is_common(call)) + t * 0)(x[0]).sum() == 0


# the variable is read at import, so each name has a process; torch is imported once for all
PROGRAM = """
import os, sys
import torch
for name in sys.argv[1:]:
    if not os.fork():
        break
    os.wait()
else:
    sys.exit()
os.environ["RENORM_KERNEL"] = name
print(name)
from renorm import BatchRenorm1d, kernels
from renorm.errors import ArgumentError
layer, x = BatchRenorm1d(3), torch.randn(6, 3)
try:
    layer(x)
    print("served by", kernels.choose(kernels.Call(x, None, None, None, None, 1, 0, 0, 1)).kernel)
    layer(x.expand(2, 6, 3).transpose(1, 2), mask=torch.ones(2, 6).bool())
except ArgumentError as error:
    print(error)
"""


def test_the_environment_asks_for_a_kernel() -> None:
    said = [
        *("composite", "served by composite"),
        *("aten", "served by aten", "The kernel 'aten' was asked for, but a mask needs weighted"),
        *("fast", "There is no kernel 'fast'; there are cpu, cuda, aten, composite."),
    ]
    command = [sys.executable, "-c", PROGRAM, "composite", "aten", "fast"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == len(said), run.stderr
    assert all(map(str.startswith, lines, said))
