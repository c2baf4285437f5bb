"""The pure function: what it returns, what it refuses, which kernel serves it."""

import pytest
import torch
from torch import Tensor

from renorm import kernels
from renorm.errors import ArgumentError, RenormError
from renorm.functional import batch_renorm
from renorm.kernels import Call, cpu

x = torch.randn(6, 3, 4)
mean, var = torch.zeros(3), torch.ones(3)


def test_arguments_are_left_alone() -> None:
    tensors = [x.clone(), mean.clone(), var.clone()]
    batch_renorm(*tensors, r_max=3, d_max=5)
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, mean, var), strict=True))


def test_without_running_statistics_it_is_batch_norm() -> None:
    y, new_mean, new_var = batch_renorm(x, None, None, r_max=3, d_max=5)
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, training=True))
    assert new_mean is None
    assert new_var is None


def test_new_statistics_have_the_dtype_of_the_old() -> None:
    y, new_mean, new_var = batch_renorm(
        x.bfloat16(), mean.bfloat16(), var.bfloat16(), r_max=3, d_max=5
    )
    assert {t.dtype for t in (y, new_mean, new_var) if t is not None} == {torch.bfloat16}


def test_limits_and_momentum_may_be_tensors() -> None:
    numbers = batch_renorm(x, mean, var, r_max=1.2, d_max=0.3, momentum=0.1)
    tensors = batch_renorm(
        x, mean, var, r_max=torch.tensor(1.2), d_max=torch.tensor(0.3), momentum=torch.tensor(0.1)
    )
    for a, b in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(3)}, r"floating point of shape \(N, C, \*spatial\), got torch.float32"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "floating point .* got torch.int64"),
        ({"running_mean": None}, "come together, but running_mean is None"),
        ({"running_var": None}, "come together, but running_var is None"),
        ({"running_mean": torch.zeros(4)}, r"running_mean must have one value .* got shape \(4,\)"),
        ({"weight": torch.zeros(3, 1)}, r"weight must have one value per channel, shape \(3,\)"),
        ({"bias": torch.zeros(3, device="meta")}, "bias is on meta and x on cpu"),
        ({"r_max": 0.5}, "r_max must be at least 1 .* got 0.5"),
        ({"r_max": float("nan")}, "r_max must be at least 1 .* got nan"),
        ({"d_max": -1}, "d_max must be at least 0 .* got -1"),
        ({"momentum": 2}, "from 0 to 1, got 2"),
        ({"eps": -1e-5}, "eps must be positive, got -1e-05"),
        ({"microbatch": 0}, "at least 1, got 0"),
        ({"single": "no"}, "'raise' or 'running', got 'no'"),
        ({"kernel": "fast"}, "no kernel 'fast'; there are cpu, cuda, aten, composite"),
        ({"mask": torch.ones(6, 4)}, r"mask must be bool of shape"),
        ({"x": torch.ones(1, 3)}, "Use larger batches"),
        (
            {"x": torch.ones(1, 3), "running_mean": None, "running_var": None},
            "Give running statistics and single='running'",
        ),
        ({"kernel": "aten", "microbatch": 2}, "but microbatches need statistics per group"),
        (
            {"kernel": "aten", "mask": torch.ones(6, 4, dtype=torch.bool)},
            "but a mask needs weighted statistics",
        ),
    ],
)
def test_bad_arguments_are_refused(changed: dict, message: str) -> None:
    good = {"x": x, "running_mean": mean, "running_var": var, "r_max": 3, "d_max": 5}
    with pytest.raises(ArgumentError, match=message):
        batch_renorm(**{**good, **changed})
    assert issubclass(ArgumentError, (RenormError, ValueError))


def _call(x: Tensor, **options: object) -> Call:
    C = x.shape[1]
    return Call(
        x, torch.zeros(C), torch.ones(C), None, None, 1.0, 0.0, 0.1, 1e-5, **options  # type: ignore[arg-type]
    )  # fmt: skip


FUSED = ("cpu", "fused in C, on torch's own threads") if cpu.MISSING is None else None
FASTEST = FUSED or ("aten", f"native operations on cpu: {cpu.MISSING}")
MASK = torch.ones(6, 4).bool()


class Wrapped(Tensor):
    """A tensor subclass, as DTensor is."""


@pytest.mark.parametrize(
    ("call", "kernel", "reason"),
    [
        (_call(x), *FASTEST),
        (_call(x, microbatch=6), *FASTEST),
        (
            _call(x, microbatch=2),
            *(FUSED or ("composite", "microbatches need statistics per group")),
        ),
        (_call(x, mask=MASK), *(FUSED or ("composite", "a mask needs weighted statistics"))),
        (_call(x[:1, :, 0]), *(FUSED or ("composite", "one value per channel takes the running"))),
        (_call(x.to("meta")), "composite", "the native operations are not there on meta"),
        (_call(x.as_subclass(Wrapped)), "composite", "the input is a tensor subclass (Wrapped)"),
    ],
)
def test_the_choice_of_kernel_says_why(call: Call, kernel: str, reason: str) -> None:
    chosen = kernels.choose(call)
    assert chosen.kernel == kernel
    assert chosen.reason.startswith(reason)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (_call(x, microbatch=2), "microbatches need statistics per group"),
        (_call(x, mask=MASK), "a mask needs weighted statistics"),
        (_call(x[:1, :, 0]), "one value per channel takes the running statistics"),
    ],
)
def test_the_native_operations_refuse_what_they_cannot(call: Call, reason: str) -> None:
    with pytest.raises(ArgumentError, match=f"'aten' was asked for, but {reason}"):
        kernels.choose(call, "aten")


def test_an_explicit_kernel_is_obeyed() -> None:
    assert kernels.choose(_call(x), "composite") == ("composite", "asked for")
    assert kernels.choose(_call(x), "aten") == ("aten", "asked for")


def test_a_tensor_subclass_goes_through() -> None:
    y, _, _ = batch_renorm(x.as_subclass(Wrapped), mean, var, r_max=3, d_max=5)
    torch.testing.assert_close(
        y.as_subclass(Tensor), batch_renorm(x, mean, var, r_max=3, d_max=5)[0]
    )
