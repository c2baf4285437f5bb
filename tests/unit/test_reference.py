"""The oracle itself: cases worked by hand, finite differences, and the papers' identities."""

from collections.abc import Callable

import numpy as np
import pytest

from renorm import reference as ref

rng = np.random.default_rng


def _numeric(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        grad[i] = (f(x + step) - f(x - step)) / (2 * h)
    return grad


def test_batch_norm_by_hand() -> None:
    x = np.array([[1.0], [3.0]])
    y, mu, var = ref.batch_norm(x, np.array([2.0]), np.array([10.0]), eps=3.0)
    # mu 2, var 1, sigma 2: x_hat is -1/2 and 1/2
    assert (mu, var) == (2.0, 1.0)
    assert y.tolist() == [[9.0], [11.0]]


def test_batch_renorm_by_hand() -> None:
    x = np.array([[1.0], [3.0]])
    mu, sigma = np.array([1.0]), np.array([1.0])
    gamma, beta = np.array([1.0]), np.array([0.0])
    # sigma_B = sqrt(3 + 1) = 2, r = clip(2, 1/1.5, 1.5) = 1.5, d = clip(1, -0.25, 0.25) = 0.25
    step = ref.batch_renorm(x, mu, sigma, gamma, beta, r_max=1.5, d_max=0.25, alpha=0.5, eps=3.0)
    assert (step.r, step.d) == (1.5, 0.25)
    assert step.y.tolist() == [[-0.5], [1.0]]  # ∓1/2 * 1.5 + 0.25
    assert (step.mu, step.sigma) == (1.5, 1.5)


def test_batch_renorm_gradient_by_hand() -> None:
    # two values: x - mu_B is (-1, 1), so the projection removes every gradient but eps's part
    x, dy = np.array([[1.0], [3.0]]), np.array([[1.0], [0.0]])
    one, r, d = np.array([1.0]), np.array([1.5]), np.array([0.25])
    dx, dgamma, dbeta = ref.batch_renorm_backward(dy, x, one, r, d, eps=3.0)
    # dx = (r/sigma_B)(dy - mean(dy) - z mean(dy z)), z = (x - mu_B)/sigma_B = (-1/2, 1/2):
    # (3/4)(1 - 1/2 - (-1/2)(-1/4)) = 9/32
    assert dx.tolist() == [[0.28125], [-0.28125]]
    assert dgamma.tolist() == [-0.5]
    assert dbeta.tolist() == [1.0]


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (64, 4)])
def test_batch_norm_gradients_are_finite_differences(shape: tuple[int, int]) -> None:
    g = rng(0)
    x, dy = g.normal(2, 3, shape), g.normal(size=shape)
    gamma, beta = g.normal(size=shape[1]), g.normal(size=shape[1])
    dx, dgamma, dbeta = ref.batch_norm_backward(dy, x, gamma, eps=1e-2)

    def loss(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> float:
        return float((ref.batch_norm(x, gamma, beta, 1e-2)[0] * dy).sum())

    np.testing.assert_allclose(dx, _numeric(lambda v: loss(v, gamma, beta), x), atol=1e-8)
    np.testing.assert_allclose(dgamma, _numeric(lambda v: loss(x, v, beta), gamma), atol=1e-8)
    np.testing.assert_allclose(dbeta, _numeric(lambda v: loss(x, gamma, v), beta), atol=1e-8)


def test_batch_renorm_gradients_are_finite_differences_with_r_and_d_held() -> None:
    g = rng(1)
    x, dy = g.normal(2, 3, (6, 4)), g.normal(size=(6, 4))
    gamma, beta = g.normal(size=4), g.normal(size=4)
    r, d = g.uniform(0.5, 2, 4), g.normal(size=4)
    dx, dgamma, dbeta = ref.batch_renorm_backward(dy, x, gamma, r, d, eps=1e-2)

    def loss(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> float:
        x_hat, _, _ = ref.batch_norm(x, np.ones(4), np.zeros(4), 1e-2)
        return float(((gamma * (x_hat * r + d) + beta) * dy).sum())

    np.testing.assert_allclose(dx, _numeric(lambda v: loss(v, gamma, beta), x), atol=1e-8)
    np.testing.assert_allclose(dgamma, _numeric(lambda v: loss(x, v, beta), gamma), atol=1e-8)
    np.testing.assert_allclose(dbeta, _numeric(lambda v: loss(x, gamma, v), beta), atol=1e-8)


def test_unclipped_training_is_inference() -> None:
    g = rng(2)
    x, mu, var = g.normal(1, 2, (8, 3)), g.normal(size=3), g.uniform(0.5, 2, 3)
    gamma, beta = g.normal(size=3), g.normal(size=3)
    step = ref.batch_renorm(
        x, mu, np.sqrt(var + 1e-3), gamma, beta, r_max=np.inf, d_max=np.inf, alpha=0.1, eps=1e-3
    )
    np.testing.assert_allclose(
        step.y, ref.inference(x, mu, var, gamma, beta, 1e-3), rtol=1e-12, atol=1e-12
    )


def test_limits_of_one_and_zero_are_batch_norm() -> None:
    g = rng(3)
    x, dy = g.normal(1, 2, (8, 3)), g.normal(size=(8, 3))
    mu, sigma = g.normal(size=3), g.uniform(0.5, 2, 3)
    gamma, beta = g.normal(size=3), g.normal(size=3)
    step = ref.batch_renorm(x, mu, sigma, gamma, beta, r_max=1, d_max=0, alpha=0.1, eps=1e-3)
    np.testing.assert_allclose(step.y, ref.batch_norm(x, gamma, beta, 1e-3)[0], rtol=1e-13)
    for a, b in zip(
        ref.batch_renorm_backward(dy, x, gamma, step.r, step.d, 1e-3),
        ref.batch_norm_backward(dy, x, gamma, 1e-3),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_scale_of_the_weights_does_not_matter() -> None:
    """2015, section 3.3: BN((aW)u) = BN(Wu), and the gradient of aW is 1/a that of W."""
    g = rng(4)
    u, W, dy = g.normal(size=(16, 5)), g.normal(size=(5, 3)), g.normal(size=(16, 3))
    one, zero, a = np.ones(3), np.zeros(3), 7.0
    np.testing.assert_allclose(
        ref.batch_norm(u @ (a * W), one, zero, 0.0)[0], ref.batch_norm(u @ W, one, zero, 0.0)[0],
        rtol=1e-12,
    )  # fmt: skip
    dW = u.T @ ref.batch_norm_backward(dy, u @ W, one, 0.0)[0]
    daW = u.T @ ref.batch_norm_backward(dy, u @ (a * W), one, 0.0)[0]
    np.testing.assert_allclose(daW, dW / a, rtol=1e-10, atol=1e-12)


def test_population_by_hand() -> None:
    # means 1 and 3; biased variances 1 and 4, times m/(m-1) = 2: 2 and 8
    batches = [np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])]
    mean, var = ref.population(batches)
    assert (mean, var) == (2.0, 5.0)


def test_rows_and_maps_are_inverse() -> None:
    maps = rng(5).normal(size=(2, 3, 4, 5))
    rows = ref.as_rows(maps)
    assert rows.shape == (2 * 4 * 5, 3)
    assert rows[7].tolist() == maps[0, :, 1, 2].tolist()
    np.testing.assert_array_equal(ref.as_maps(rows, maps.shape), maps)
