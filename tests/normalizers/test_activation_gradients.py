"""Gradients of the activation-based normalizers by finite differences, in x and all parameters."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from normalizers.activation_subjects import SUBJECTS, Subject
from renorm.nn import NoisyBatchNorm

GRID = [
    pytest.param(subject, shape, id=f"{subject.id}-{len(shape)}d")
    for subject in SUBJECTS
    for shape in [(3, 6, 2, 2), (5, 6)]
    if subject.one_position or len(shape) > 2
]


@pytest.mark.parametrize(("subject", "shape"), GRID)
def test_gradients_are_finite_differences(subject: Subject, shape: tuple[int, ...]) -> None:
    layer = subject.build(6, dtype=torch.float64, eps=1e-2)
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        if isinstance(layer, NoisyBatchNorm) and layer.generator is not None:
            layer.generator.manual_seed(0)
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    # all distances between values, and to the kinks, are far above the step of 1e-6
    x = 1 + torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    given = [t.detach().clone().requires_grad_() for t in (x, *layer.parameters())]
    assert torch.autograd.gradcheck(output, given)
    assert torch.autograd.gradgradcheck(output, given, fast_mode=True)
