"""A residual and a ReLU behind the normalization, in every kernel, against the reference."""

import pytest
import torch

from renorm import kernels
from renorm.errors import ArgumentError
from renorm.functional import batch_renorm
from support.cases import EPILOGUES, HALF, Case, inputs
from support.oracle import expected
from support.tolerance import assert_close


@pytest.mark.parametrize("kernel", kernels.names())
@pytest.mark.parametrize("case", EPILOGUES, ids=lambda c: c.id)
def test_epilogue_matches_the_reference(case: Case, kernel: str) -> None:
    if case.dtype in HALF and case.residual and kernel not in ("composite", "cuda"):
        pytest.skip("it rounds before it adds")
    t = inputs(case)
    exact = expected(case, t)
    named = {"x": t.x, "weight": t.weight, "bias": t.bias, "residual": t.residual}
    leaves = {k: v.detach().requires_grad_() for k, v in named.items() if v is not None}
    r_max, d_max = case.limits
    settings = {"momentum": case.momentum, "eps": case.eps, "mask": t.mask, "kernel": kernel}
    try:
        y, mean, var = batch_renorm(
            running_mean=t.running_mean, running_var=t.running_var, r_max=r_max, d_max=d_max,
            microbatch=case.microbatch, relu=case.relu, **leaves, **settings,
        )  # fmt: skip
    except ArgumentError as error:
        if "was asked for" not in str(error):
            raise
        pytest.skip(f"the {kernel} kernel does not take it")
    y.backward(t.dy)
    assert_close("y", y, exact.y, case.dtype, offset=exact.offset)
    stored = case.parameter_dtype or case.dtype
    assert_close("mean", mean, exact.new_mean, stored)
    assert_close("var", var, exact.new_var, stored)
    for name, leaf in leaves.items():
        value = getattr(exact, f"d{name}")
        scale = getattr(exact, f"d{name}_scale", None)
        dtype = case.dtype if name in ("x", "residual") else stored
        assert_close(name, leaf.grad, value, dtype, scale=scale, offset=exact.offset)


@pytest.mark.parametrize("wrong", [(4, 3), (4, 3, 5, 1)], ids=str)
def test_a_residual_of_another_shape_is_refused(wrong: tuple[int, ...]) -> None:
    x, stats = torch.randn(4, 3, 5), (torch.zeros(3), torch.ones(3))
    with pytest.raises(ArgumentError, match="must be like x"):
        batch_renorm(x, *stats, r_max=1, d_max=0, residual=torch.randn(wrong))


def test_a_residual_of_another_dtype_is_refused() -> None:
    x, stats = torch.randn(4, 3, 5), (torch.zeros(3), torch.ones(3))
    with pytest.raises(ArgumentError, match=r"got torch\.float64"):
        batch_renorm(x, *stats, r_max=1, d_max=0, residual=x.double())
