"""Gradients of the activation-based normalizers by finite differences, in x and all parameters."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

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


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.id)
def test_gradient_by_torch_func_is_autograds_and_leaves_the_layer(subject: Subject) -> None:
    """As with nn.BatchNorm, the buffers are given too: the transform writes copies."""
    layer = subject.build(dtype=torch.float64)
    x, dy = (torch.randn(4, 12, 3, 2, dtype=torch.float64) for _ in range(2))
    if isinstance(layer, NoisyBatchNorm):
        layer.r_sigma = layer.r_mu = layer.n_mu = 0.0
        layer.n_sigma = 1.0
    before = {name: b.clone() for name, b in layer.named_buffers()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        buffers = {name: b.clone() for name, b in before.items()}
        return (functional_call(layer, (parameters, buffers), (x,)) * dy).sum()

    by_func = grad(loss)({name: p.detach() for name, p in layer.named_parameters()})
    assert all(torch.equal(before[name], b) for name, b in layer.named_buffers())
    layer(x).backward(dy)
    for name, p in layer.named_parameters():
        torch.testing.assert_close(by_func[name], p.grad)
