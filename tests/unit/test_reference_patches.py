"""Patches in the oracle against torch's convolutions, which know nothing of them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from renorm import reference as ref

rng = np.random.default_rng
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def test_patches_by_hand() -> None:
    maps = np.array([[[1.0, 2.0, 3.0]]])
    patches = ref.as_patches(maps, (3,), padding=1)
    assert patches.tolist() == [[[0, 1, 2], [1, 2, 3], [2, 3, 0]]]
    assert ref.as_patches(maps, (2,), dilation=2).tolist() == [[[1, 3]]]
    assert ref.as_patches(maps, (1,), stride=2).tolist() == [[[1], [3]]]


def test_patches_of_a_linear_layer_are_its_input() -> None:
    x = rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(ref.as_patches(x, ()), x[None])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((3,), 1, 0, 1, 1),
        ((4,), 2, 3, 2, 2),
        ((3, 3), 1, 1, 1, 1),
        ((1, 1), 2, 0, 1, 1),
        ((2, 3), (2, 1), (1, 2), (3, 1), 2),
        ((3, 3), 2, 1, 1, 4),  # depthwise
        ((5, 5), 1, 0, 1, 1),  # the whole map: 1x1
        ((2, 1, 3), (1, 2, 1), (0, 1, 2), (1, 1, 2), 2),
        ((3, 3, 3), 1, 1, 1, 4),
    ],
)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_product_with_patches_is_the_convolution(
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    multiplier: int,
) -> None:
    d, g = len(kernel), rng(1)
    x = g.normal(size=(2, 4, *(5, 6, 7)[:d]))
    weight = g.normal(size=(4 * multiplier, 4 // groups, *kernel))
    bias = g.normal(size=4 * multiplier)
    inputs = [torch.from_numpy(v).requires_grad_() for v in (x, weight, bias)]
    y = CONVOLUTIONS[d](*inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)
    dy = g.normal(size=tuple(y.shape))
    y.backward(torch.from_numpy(dy))
    _, dweight, dbias = (t.grad.numpy() for t in inputs if t.grad is not None)

    patches = ref.as_patches(
        x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    rows = weight.reshape(len(weight), -1)
    ours = ref.as_maps(ref.linear(patches, rows, bias), tuple(y.shape))
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-11, atol=1e-12)
    _, dW, db = ref.linear_backward(ref.as_rows(dy), patches, rows)
    np.testing.assert_allclose(dW.reshape(weight.shape), dweight, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(db, dbias, rtol=1e-11, atol=1e-11)


def test_patches_are_those_of_unfold() -> None:
    x = rng(2).normal(size=(2, 4, 6, 7))
    kernel, stride, padding, dilation = (3, 2), (2, 1), (1, 0), (1, 2)
    unfolded = F.unfold(
        torch.from_numpy(x), kernel, dilation=dilation, padding=padding, stride=stride
    ).numpy()  # (N, C * K, positions), channels before kernel positions
    ours = ref.as_patches(x, kernel, stride=stride, padding=padding, dilation=dilation)
    np.testing.assert_array_equal(ours[0], ref.as_rows(unfolded))
    in_groups = ref.as_patches(
        x, kernel, stride=stride, padding=padding, dilation=dilation, groups=2
    )
    np.testing.assert_array_equal(np.concatenate(list(in_groups), axis=1), ours[0])


def test_statistics_of_a_convolution_by_torch() -> None:
    """The derivatives as the authors' code takes them, by automatic differentiation."""
    g = rng(3)
    x, weight = g.normal(1, 2, (2, 4, 6, 6)), g.normal(size=(8, 2, 3, 3))
    W = torch.from_numpy(weight).requires_grad_()
    y = F.conv2d(torch.from_numpy(x), W, stride=2, padding=1, groups=2)
    (dmu,) = torch.autograd.grad(y.mean((0, 2, 3)).sum(), W, retain_graph=True)
    (dnu,) = torch.autograd.grad(y.square().mean((0, 2, 3)).sum(), W)
    patches = ref.as_patches(x, (3, 3), stride=2, padding=1, groups=2)
    now = ref.observe(patches, weight.reshape(8, -1))
    np.testing.assert_allclose(
        np.repeat(now.dmu, 4, axis=0), dmu.numpy().reshape(8, -1), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(now.dnu, dnu.numpy().reshape(8, -1), rtol=1e-11, atol=1e-11)
