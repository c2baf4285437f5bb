"""The oracle of the compared normalizers: cases worked by hand, and finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from renorm import reference as ref

rng = np.random.default_rng
ONE, ZERO = np.ones(1), np.zeros(1)


def _numeric(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        grad[i] = (f(x + step) - f(x - step)) / (2 * h)
    return grad


def _check(
    forward: Callable[..., np.ndarray], given: list[np.ndarray], dy: np.ndarray, gradients: Any
) -> None:
    """Compare the gradients of ``sum(dy * forward(*given))`` with those by differences."""
    for i, gradient in enumerate(gradients):

        def loss(value: np.ndarray, i: int = i) -> float:
            return float((forward(*given[:i], value, *given[i + 1 :]) * dy).sum())

        np.testing.assert_allclose(gradient, _numeric(loss, given[i]), atol=1e-8)


def test_filter_response_by_hand() -> None:
    x = np.array([[[1.0, -7.0]]])  # mean square 25, and 11 more: 6
    z, y = ref.filter_response_norm(x, 12 * ONE, ONE, -2 * ONE, 11.0)
    assert y.tolist() == [[[3.0, -13.0]]]
    assert z.tolist() == [[[3.0, -2.0]]]


def test_evonorm_b0_by_hand() -> None:
    # two examples of two positions; all deviations with eps 3: the batch's sqrt(1 + 3) = 2, each
    # instance's sqrt(0 + 3)
    x = np.array([[[1.0, 1.0]], [[-1.0, -1.0]]])
    y = ref.evonorm_b0(x, ONE, ONE, ZERO, 3.0)
    line = 1 + np.sqrt(3)  # above 2, and -1 + sqrt(3) is below
    np.testing.assert_allclose(y, [[[1 / line] * 2], [[-1 / 2] * 2]], rtol=1e-15)
    y = ref.evonorm_b0_inference(x, 97 * ONE, ONE, ONE, ZERO, 3.0)
    np.testing.assert_allclose(y, x / 10, rtol=1e-15)


def test_evonorm_s0_by_hand() -> None:
    # a group of two channels: (1, 3) has variance 1, and with 3 more the deviation 2
    x = np.log(np.array([[[3.0], [1 / 3]]]))  # sigmoid: 3/4 and 1/4
    log = np.log(3.0)
    eps = 4 - log**2
    y = ref.evonorm_s0(x, np.ones(2), np.ones(2), np.zeros(2), 1, eps)
    np.testing.assert_allclose(y, [[[3 * log / 8], [-log / 8]]], rtol=1e-14)


def test_variance_norm_by_hand() -> None:
    y, var = ref.variance_norm(np.array([[1.0], [3.0]]), 2 * ONE, 10 * ONE, eps=3.0)
    assert var == 1.0
    assert y.tolist() == [[11.0], [13.0]]  # the mean stays: 10 + 2 * (1, 3) / 2


@pytest.mark.parametrize(("p", "moment", "y"), [(1, 1.5, 2.0), (2, 2.5, 2.0), (np.inf, 2.0, 1.6)])
def test_lp_batch_norm_by_hand(p: float, moment: float, y: float) -> None:
    x = np.array([[3.0], [4.0], [6.0], [7.0]])  # less 5: -2, -1, 1, 2
    eps = {1: 0.5, 2: 1.5, np.inf: 0.5}[p]
    step = ref.lp_batch_norm(x, 2 * ONE, ZERO, p, eps)
    assert (step.mu, step.M) == (5.0, moment)
    assert step.y[3] == y
    of_x = ref.lp_batch_norm(x, ONE, ZERO, p, 0.0, centred=False)
    assert {1: 5.0, 2: 27.5, np.inf: 7.0}[p] == of_x.M


def test_noisy_batch_norm_by_hand() -> None:
    s, m = np.array([[2.0], [1.0]]), np.array([[0.5], [-0.5]])
    y, mu, var = ref.noisy_batch_norm(np.array([[1.0], [3.0]]), 2 * ONE, 10 * ONE, s, m, 3.0)
    assert (mu, var) == (2.0, 1.0)
    assert y.tolist() == [[18.5], [10.5]]  # of 9 and 11


def _maps(seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    g = rng(seed)
    return g.normal(1, 2, (3, 4, 5)), g.normal(size=(3, 4, 5)), [g.normal(size=4) for _ in range(3)]


def test_filter_response_gradients_are_finite_differences() -> None:
    x, dz, (gamma, beta, tau) = _maps(0)
    given = [x, gamma, beta, tau, np.array(0.1)]
    gradients = ref.filter_response_norm_backward(dz, x, gamma, beta, tau, 0.1)
    _check(
        lambda x, g, b, t, eps: ref.filter_response_norm(x, g, b, t, eps)[0],
        given,
        dz,
        gradients,
    )


def test_evonorm_b0_gradients_are_finite_differences() -> None:
    x, dy, (v, gamma, beta) = _maps(1)
    gradients = ref.evonorm_b0_backward(dy, x, v, gamma, 0.1)
    _check(lambda x, v, g, b: ref.evonorm_b0(x, v, g, b, 0.1), [x, v, gamma, beta], dy, gradients)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_evonorm_s0_gradients_are_finite_differences(groups: int) -> None:
    x, dy, (v, gamma, beta) = _maps(2)
    gradients = ref.evonorm_s0_backward(dy, x, v, gamma, groups, 0.1)
    _check(
        lambda x, v, g, b: ref.evonorm_s0(x, v, g, b, groups, 0.1),
        [x, v, gamma, beta],
        dy,
        gradients,
    )


def _rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    g = rng(seed)
    return g.normal(1, 2, (7, 3)), g.normal(size=(7, 3)), g.normal(size=3), g.normal(size=3)


def test_variance_norm_gradients_are_finite_differences() -> None:
    x, dy, gamma, beta = _rows(3)
    gradients = ref.variance_norm_backward(dy, x, gamma, 0.1)
    _check(lambda x, g, b: ref.variance_norm(x, g, b, 0.1)[0], [x, gamma, beta], dy, gradients)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_lp_gradients_are_finite_differences(p: float, centred: bool) -> None:
    x, dy, gamma, beta = _rows(4)
    gradients = ref.lp_batch_norm_backward(dy, x, gamma, p, 0.1, centred=centred)
    _check(
        lambda x, g, b: ref.lp_batch_norm(x, g, b, p, 0.1, centred=centred).y,
        [x, gamma, beta],
        dy,
        gradients,
    )


def test_noisy_gradients_are_finite_differences() -> None:
    x, dy, gamma, beta = _rows(5)
    s, m = rng(6).normal(1, 0.1, (7, 3)), rng(7).normal(size=(7, 3))
    gradients = ref.noisy_batch_norm_backward(dy, x, gamma, s, 0.1)
    _check(
        lambda x, g, b: ref.noisy_batch_norm(x, g, b, s, m, 0.1)[0], [x, gamma, beta], dy, gradients
    )


def test_second_norm_is_batch_norm_with_its_gradients() -> None:
    x, dy, gamma, beta = _rows(8)
    y = ref.lp_batch_norm(x, gamma, beta, 2, 0.1).y
    np.testing.assert_allclose(y, ref.batch_norm(x, gamma, beta, 0.1)[0], rtol=1e-13)
    for a, b in zip(
        ref.lp_batch_norm_backward(dy, x, gamma, 2, 0.1),
        ref.batch_norm_backward(dy, x, gamma, 0.1),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
