"""Cross-iteration batch norm in the oracle: by hand, by finite differences, and its identities."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from renorm import reference as ref

rng = np.random.default_rng
EPS = 1e-2
Array = np.ndarray
Statistics = Callable[..., tuple[Array, Array]]


def _numeric(f: Callable[[Array], float], x: Array, h: float = 1e-5) -> Array:
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        grad[i] = (f(x + step) - f(x - step)) / (2 * h)
    return grad


def _layer(seed: int, G: int = 1, m: int = 6, K: int = 3, C: int = 4) -> tuple[Array, ...]:
    """Patches with a mean, weights and bias."""
    g = rng(seed)
    return g.normal(1, 2, (G, m, K)), g.normal(size=(C, K)), g.normal(size=C)


def _state(C: int) -> ref.CrossIterationState:
    return ref.CrossIterationState((), np.zeros(C), np.ones(C))


# one filter of one weight, W = 2, without bias: patches 1 and 3 make y = 2, 6
HAND = ref.observe(np.array([[[1.0], [3.0]]]), np.array([[2.0]]))


def test_statistics_and_derivatives_by_hand() -> None:
    assert (HAND.mu, HAND.nu) == (4.0, 20.0)
    # E[p] = 2;  2 E[y p] = 2 (2*1 + 6*3)/2 = 20
    assert (HAND.dmu.tolist(), HAND.dnu.tolist()) == ([[2.0]], [[20.0]])
    var, dvar = ref.centred_variance(HAND)
    # about the means y is -2, 2 and p is -1, 1: 2 (2 + 2)/2 = 4
    assert (var, dvar) == (4.0, [[4.0]])


def test_compensation_by_hand() -> None:
    W = np.array([[3.0]])  # y would be 3, 9: mean 6, mean of squares 45, variance 9
    assert ref.first_order(HAND, W) == (4 + 2, 20 + 20)  # short of 45 by E[p^2] = 5
    assert ref.first_order(HAND, W, rho=0.5) == (5, 30)
    for moments in (ref.exact(HAND, W), ref.recomputed(HAND, W)):
        assert moments == (6, 45)
    assert ref.centred_first_order(HAND, W) == (6, 40 - 36)
    assert ref.centred_first_order(HAND, W, expand="var") == (6, 4 + 4)
    assert ref.centred_first_order(HAND, W, expand="sigma") == (6, (2 + 1) ** 2)
    for moments in (ref.centred_exact(HAND, W), ref.centred_recomputed(HAND, W)):
        assert moments == (6, 9)


def test_compensation_of_the_bias_by_hand() -> None:
    W, b = HAND.weight, np.array([1.0])  # y would be 3, 7: mean 5, mean of squares 29
    assert ref.first_order(HAND, W, b) == (5, 20 + 8)
    assert ref.exact(HAND, W, b) == (5, 29)
    assert ref.centred_first_order(HAND, W, b) == (5, 28 - 25)
    assert ref.centred_first_order(HAND, W, b, expand="var") == (5, 4)


def test_window_by_hand() -> None:
    y = np.array([[0.0], [2.0]])  # mu 1, nu 2
    # second: nu 8 is below mu^2 = 9, so 9 counts. mu_bar = 2, nu_bar = (2 + 9)/2
    mu_bar, var_bar = ref.window_statistics(y, [(np.array([3.0]), np.array([8.0]))])
    assert (mu_bar, var_bar) == (2.0, 1.5)
    z = ref.cross_iteration_norm(y, mu_bar, var_bar, np.array([4.0]), np.array([10.0]), eps=2.5)
    assert z.tolist() == [[10 - 4.0], [10.0]]  # sigma 2: z_hat is -1 and 0
    # the same as mean and variance: (max(-1, 0) + 1)/2 within and ((1-2)^2 + (3-2)^2)/2 between
    assert ref.centred_window(y, [(np.array([3.0]), np.array([-1.0]))]) == (2.0, 1.5)


def test_gradient_by_hand() -> None:
    y, dz, one = np.array([[0.0], [2.0]]), np.array([[1.0], [0.0]]), np.array([1.0])
    mu_bar, var_bar = np.array([2.0]), np.array([1.5])
    # z_hat -1, 0; mean(dz) 1/2 and mean(dz z_hat) -1/2, each divided by k = 2:
    # dy = (1 - 1/4 - (-1)(-1/4), 0 - 1/4 - 0) / 2
    dy, dgamma, dbeta = ref.cross_iteration_norm_backward(dz, y, mu_bar, var_bar, 2, one, eps=2.5)
    assert dy.tolist() == [[0.25], [-0.125]]
    assert (dgamma, dbeta) == (-1.0, 1.0)


@pytest.mark.parametrize(("G", "K", "C"), [(1, 3, 4), (2, 3, 4), (4, 2, 4), (4, 2, 8)])
def test_derivatives_of_the_statistics_are_finite_differences(G: int, K: int, C: int) -> None:
    p, W, b = _layer(0, G=G, K=K, C=C)
    now = ref.observe(p, W, b)
    dmu = np.repeat(now.dmu, C // G, axis=0)  # the same for all channels of a group
    dvar = ref.centred_variance(now)[1]
    for c in range(C):  # and zero by the filters of other channels

        def mu(w: Array, c: int = c) -> float:
            return float(ref.observe(p, w, b).mu[c])

        def nu(w: Array, c: int = c) -> float:
            return float(ref.observe(p, w, b).nu[c])

        def var(w: Array, c: int = c) -> float:
            return float(ref.centred_variance(ref.observe(p, w, b))[0][c])

        own = np.arange(C)[:, None] == c
        np.testing.assert_allclose(_numeric(mu, W), own * dmu, atol=1e-8)
        np.testing.assert_allclose(_numeric(nu, W), own * now.dnu, atol=1e-8)
        np.testing.assert_allclose(_numeric(var, W), own * dvar, atol=1e-8)
    by_bias = _numeric(lambda v: float(ref.observe(p, W, v).nu.sum()), b)
    np.testing.assert_allclose(by_bias, 2 * now.mu, atol=1e-8)


@pytest.mark.parametrize("G", [1, 2, 4])
def test_gradients_of_the_linear_layer_are_finite_differences(G: int) -> None:
    p, W, b = _layer(1, G=G)
    dy = rng(2).normal(size=(6, 4))
    dp, dW, db = ref.linear_backward(dy, p, W)
    np.testing.assert_allclose(
        dp, _numeric(lambda v: (ref.linear(v, W, b) * dy).sum(), p), atol=1e-8
    )
    np.testing.assert_allclose(
        dW, _numeric(lambda v: (ref.linear(p, v, b) * dy).sum(), W), atol=1e-8
    )
    np.testing.assert_allclose(
        db, _numeric(lambda v: (ref.linear(p, W, v) * dy).sum(), b), atol=1e-8
    )


FORMS: dict[str, tuple[Statistics, Statistics]] = {
    "raw": (ref.first_order, ref.window_statistics),
    "centred": (ref.centred_first_order, ref.centred_window),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lags", [0, 1, 3])
@pytest.mark.parametrize(("G", "m"), [(1, 6), (2, 1), (4, 6)])
def test_gradients_are_finite_differences_with_the_borrowed_held(
    form: str, lags: int, G: int, m: int
) -> None:
    compensate, average = FORMS[form]
    g = rng(3)
    p, W, b = _layer(4, G=G, m=m)
    away = np.array([[0.01], [0.01], [5.0], [5.0]])  # channels near their past, and far from it
    past = [
        ref.observe(_layer(5 + i, G=G)[0], W + away * g.normal(size=W.shape), b)
        for i in range(lags)
    ]
    gamma, beta, dz = g.normal(size=4), g.normal(size=4), g.normal(size=(m, 4))
    held = [compensate(it, W, b) for it in past]
    if lags:  # so that the max picks both branches
        mu, nu = np.moveaxis(np.array([ref.first_order(it, W, b) for it in past]), 1, 0)
        assert (nu < mu**2).any(axis=0).tolist() == [False, False, True, True]

    def loss(p: Array, W: Array, b: Array, gamma: Array, beta: Array) -> float:
        y = ref.linear(p, W, b)
        return float((ref.cross_iteration_norm(y, *average(y, held), gamma, beta, EPS) * dz).sum())

    y = ref.linear(p, W, b)
    dy, dgamma, dbeta = ref.cross_iteration_norm_backward(
        dz, y, *average(y, held), 1 + lags, gamma, EPS
    )
    args = [p, W, b, gamma, beta]
    for i, grad in enumerate([*ref.linear_backward(dy, p, W), dgamma, dbeta]):

        def varied(v: Array, i: int = i) -> float:
            return loss(*(v if j == i else a for j, a in enumerate(args)))

        numeric = _numeric(varied, args[i])
        np.testing.assert_allclose(grad, numeric, rtol=1e-7, atol=1e-7)


def test_the_borrowed_are_constant() -> None:
    """The gradient is another than that of the loss with compensation differentiated."""
    p, W, b = _layer(4)
    past, dz = ref.observe(*_layer(5)), rng(3).normal(size=(6, 4))
    one, zero = np.ones(4), np.zeros(4)

    def loss(W: Array, at: Array) -> float:
        y = ref.linear(p, W, b)
        stats = ref.window_statistics(y, [ref.first_order(past, at, b)])
        return float((ref.cross_iteration_norm(y, *stats, one, zero, EPS) * dz).sum())

    y = ref.linear(p, W, b)
    stats = ref.window_statistics(y, [ref.first_order(past, W, b)])
    dW = ref.linear_backward(
        ref.cross_iteration_norm_backward(dz, y, *stats, 2, one, EPS)[0], p, W
    )[1]
    np.testing.assert_allclose(dW, _numeric(lambda v: loss(v, W), W), atol=1e-8)
    assert np.abs(dW - _numeric(lambda v: loss(v, v), W)).max() > 0.1


def test_first_order_needs_no_weights_of_then() -> None:
    p, W, b = _layer(24, G=2)
    past, now = ref.observe(p, W, b), (W + rng(25).normal(size=W.shape), b - 1)
    var, dvar = ref.centred_variance(past)
    along = (dvar * now[0]).sum(axis=1)
    mu = ref.linear(past.dmu[:, None], *now)[0]
    for expand, alike in (("var", along - var), ("sigma", along**2 / (4 * var))):
        np.testing.assert_allclose(
            ref.centred_first_order(past, *now, expand=expand),  # type: ignore[arg-type]
            (mu, alike),
            rtol=1e-11,
            atol=1e-11,
        )


@pytest.mark.parametrize("expand", ["nu", "var", "sigma"])
def test_first_order_error_is_of_second_order(expand: str) -> None:
    p, W, b = _layer(6, G=2)
    past, dW, db = ref.observe(p, W, b), *(rng(7).normal(size=v.shape) for v in (W, b))
    errors = []
    for h in (1e-2, 5e-3):
        now = W + h * dW, b + h * db
        mu, var = ref.centred_first_order(past, *now, expand=expand)  # type: ignore[arg-type]
        mu_exact, var_exact = ref.centred_recomputed(past, *now)
        np.testing.assert_allclose(mu, mu_exact, rtol=1e-13, atol=1e-13)
        errors.append(var_exact - var)
        if expand == "nu":
            raw = ref.recomputed(past, *now)[1] - ref.first_order(past, *now)[1]
            short = (ref.linear(p, h * dW, h * db) ** 2).mean(axis=0)
            np.testing.assert_allclose(raw, short, rtol=1e-9)
            np.testing.assert_allclose(errors[-1], short, rtol=1e-9)
    assert (errors[0] > 0).all()
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)


def test_expansions_are_too_small_in_this_order() -> None:
    p, W, b = _layer(8, m=20)
    past, g = ref.observe(p, W, b), rng(9)
    for size in (1e-3, 0.1, 1, 10):
        now = W + size * g.normal(size=W.shape), b
        nu, var, sigma = (
            ref.centred_first_order(past, *now, expand=e)[1] for e in ("nu", "var", "sigma")
        )
        true = ref.centred_exact(past, *now)[1]
        assert (nu < var).all()
        assert (var < sigma).all()
        assert (sigma < true).all()
        assert (sigma > 0).all()
    scaled = ref.centred_first_order(past, 3 * W, b, expand="sigma")
    np.testing.assert_allclose(scaled, ref.centred_exact(past, 3 * W, b), rtol=1e-12)


@pytest.mark.parametrize("G", [1, 2, 4])
def test_exact_is_a_second_forward(G: int) -> None:
    p, W, b = _layer(10, G=G)
    past, g = ref.observe(p, W, b), rng(11)
    now = W + g.normal(size=W.shape), b + g.normal(size=b.shape)
    np.testing.assert_allclose(ref.exact(past, *now), ref.recomputed(past, *now), rtol=1e-12)
    np.testing.assert_allclose(
        ref.centred_exact(past, *now), ref.centred_recomputed(past, *now), rtol=1e-12
    )
    y = ref.linear(p, *now)
    np.testing.assert_allclose(ref.exact(past, *now)[0], y.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ref.exact(past, *now)[1], (y**2).mean(axis=0), rtol=1e-12)


def test_without_change_nothing_is_compensated() -> None:
    past = ref.observe(*_layer(12, G=2))
    at = past.weight, past.bias
    for moments in (ref.first_order(past, *at), ref.exact(past, *at), ref.recomputed(past, *at)):
        np.testing.assert_allclose(moments, (past.mu, past.nu), rtol=1e-12)
    np.testing.assert_array_equal(ref.first_order(past, 9 * at[0], 9 * at[1], 0.0),
                                  (past.mu, past.nu))  # fmt: skip


def test_window_of_one_is_batch_norm() -> None:
    p, W, b = _layer(13)
    gamma, beta, dz = (rng(14).normal(size=s) for s in (4, 4, (6, 4)))
    y = ref.linear(p, W, b)
    step = None
    state = _state(4)
    for _ in range(3):
        step, state = ref.cross_iteration_step(
            p, W, b, gamma, beta, state, window=1, burn_in=0, momentum=0.1, eps=EPS
        )
    assert step is not None
    assert (step.k, state.past, state.iterations) == (1, (), 3)
    z, mu, var = ref.batch_norm(y, gamma, beta, EPS)
    np.testing.assert_allclose(step.z, z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((step.mu_bar, step.var_bar), (mu, var), rtol=1e-12)
    for a, e in zip(
        ref.cross_iteration_norm_backward(dz, y, mu, var, 1, gamma, EPS),
        ref.batch_norm_backward(dz, y, gamma, EPS),
        strict=True,
    ):
        np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-13)


def _train(steps: int, **options: object) -> list[tuple[ref.CrossIterationStep, ref.Iteration]]:
    """Iterations with random inputs and drifting weights: what each made, and what it saw."""
    g, state, made = rng(15), _state(4), []
    _, W, b = _layer(16)
    settings = {"window": 3, "burn_in": 0, "momentum": 0.1, "eps": EPS} | options
    for _ in range(steps):
        p = g.normal(1, 2, (1, 6, 3))
        step, state = ref.cross_iteration_step(
            p, W, b, np.ones(4), np.zeros(4), state, **settings  # type: ignore[arg-type]
        )  # fmt: skip
        made.append((step, ref.observe(p, W, b)))
        W, b = W + 0.1 * g.normal(size=W.shape), b + 0.1 * g.normal(size=4)
    return made


def test_rho_of_zero_averages_the_statistics_as_they_were() -> None:
    made = _train(5, compensate=partial(ref.first_order, rho=0.0))
    for t, (step, _) in enumerate(made):
        lags = [now for _, now in made[max(0, t - 2) : t + 1]]
        assert step.k == len(lags) == min(t + 1, 3)
        mu_bar = np.mean([it.mu for it in lags], axis=0)
        nu_bar = np.mean([it.nu for it in lags], axis=0)
        np.testing.assert_allclose(step.mu_bar, mu_bar, rtol=1e-12)
        np.testing.assert_allclose(step.var_bar, nu_bar - mu_bar**2, rtol=1e-12)


@pytest.mark.parametrize("compensate", [ref.exact, ref.recomputed])
def test_exact_window_is_that_of_all_its_inputs_at_once(
    compensate: Statistics,
) -> None:
    for t, made in enumerate([_train(n, compensate=compensate) for n in (1, 2, 4)]):
        step, now = made[-1]
        inputs = np.concatenate([it.patches for _, it in made[-3:]], axis=1)
        together = ref.observe(inputs, now.weight, now.bias)
        np.testing.assert_allclose(step.mu_bar, together.mu, rtol=1e-11)
        np.testing.assert_allclose(step.var_bar, together.nu - together.mu**2, rtol=1e-11)
        assert step.k == (1, 2, 3)[t]


def test_burn_in_is_batch_norm_and_is_not_remembered() -> None:
    made = _train(7, burn_in=3)
    assert [step.k for step, _ in made] == [1, 1, 1, 1, 2, 3, 3]
    for step, _ in made[:4]:
        z, _, var = ref.batch_norm(step.y, np.ones(4), np.zeros(4), EPS)
        np.testing.assert_allclose(step.z, z, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(step.var_bar, var, rtol=1e-12)  # biased
    assert np.abs(made[4][0].mu_bar - made[4][1].mu).max() > 1e-3


def test_running_averages_follow_the_batch_or_the_window() -> None:
    p, W, b = _layer(17, m=4)
    q = p + 1
    for follow in ("batch", "window"):
        state = _state(4)
        settings = {"window": 2, "burn_in": 0, "eps": EPS, "compensate": ref.exact}
        for patches, momentum in ((p, 0.0), (q, 0.25)):
            _, state = ref.cross_iteration_step(
                patches, W, b, np.ones(4), np.zeros(4), state,
                momentum=momentum, follow=follow, **settings,  # type: ignore[arg-type]
            )  # fmt: skip
        seen = ref.linear(q if follow == "batch" else np.concatenate([p, q], axis=1), W, b)
        np.testing.assert_allclose(state.mean, 0.25 * seen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(state.var, 0.75 + 0.25 * seen.var(axis=0, ddof=1), rtol=1e-12)


def test_batches_of_one_value_have_a_variance_in_the_window_only() -> None:
    p, W, b = _layer(18, m=3)
    for follow, var in (("batch", np.ones(4)), ("window", ref.linear(p, W, b).var(axis=0, ddof=1))):
        state = _state(4)
        for i in range(3):
            _, state = ref.cross_iteration_step(
                p[:, i : i + 1], W, b, np.ones(4), np.zeros(4), state, window=3, burn_in=0,
                momentum=1.0, eps=EPS, follow=follow,  # type: ignore[arg-type]
            )  # fmt: skip
            if i == 0:
                np.testing.assert_array_equal(state.var, 1)
        np.testing.assert_allclose(state.var, var, rtol=1e-11)


def test_constant_channel() -> None:
    p, W, b = _layer(19)
    W[2] = 0
    p2, W2 = p + 1, W.copy()
    past = ref.observe(p, W, b)
    for compensate, average in (
        *FORMS.values(),
        (ref.exact, ref.window_statistics),
        (ref.centred_exact, ref.centred_window),
        (partial(ref.centred_first_order, expand="sigma"), ref.centred_window),
    ):
        y = ref.linear(p2, W2, b)
        mu_bar, var_bar = average(y, [compensate(past, W2, b)])
        z = ref.cross_iteration_norm(y, mu_bar, var_bar, np.ones(4), np.arange(4.0), EPS)
        np.testing.assert_allclose(z[:, 2], 2, rtol=1e-12)
        dy = ref.cross_iteration_norm_backward(
            np.ones((6, 4)), y, mu_bar, var_bar, 2, np.ones(4), EPS
        )[0]
        np.testing.assert_allclose(dy[:, 2], 0.5 / np.sqrt(EPS), rtol=1e-12)  # 1 - 1/k


def test_negative_variance_counts_as_none() -> None:
    """First order far out: nu is below mu^2, and without the max the window's variance is too."""
    past = HAND
    W = np.array([[-2.0]])  # y would be -2, -6; first order: mu -4, nu 20 - 80
    assert ref.first_order(past, W) == (-4, -60)
    y = np.array([[-5.0], [-3.0]])  # mu -4, nu 17
    assert ref.window_statistics(y, [ref.first_order(past, W)]) == (-4, 0.5)
    assert ref.centred_window(y, [ref.centred_first_order(past, W)]) == (-4, 0.5)


def test_raw_and_centred_agree_at_a_moderate_mean() -> None:
    raw = _train(6, compensate=ref.first_order, average=ref.window_statistics)
    centred = _train(6, compensate=ref.centred_first_order, average=ref.centred_window)
    for (a, _), (e, _) in zip(raw, centred, strict=True):
        np.testing.assert_allclose(a.z, e.z, rtol=1e-11, atol=1e-11)
    past, now = raw[0][1], raw[4][1]
    for rho in (0.0, 0.5, 1.0):
        mu, nu = ref.first_order(past, now.weight, now.bias, rho)
        also, var = ref.centred_first_order(past, now.weight, now.bias, rho)
        np.testing.assert_allclose(also, mu, rtol=1e-12)
        np.testing.assert_allclose(var, nu - mu**2, rtol=1e-11, atol=1e-11)


def test_centred_survives_a_mean_of_a_million_deviations() -> None:
    """A mean that the bias makes changes nothing but mu: 1e6 + y has the statistics of y."""
    p, W, b = _layer(20, m=32)
    past, change = ref.observe(p, W, b), 0.1 * rng(21).normal(size=W.shape)
    far = ref.observe(p, W, b + 1e6)
    y = ref.linear(p, W + change, b)
    for compensate in (
        *(partial(ref.centred_first_order, expand=e) for e in ("nu", "var", "sigma")),
        ref.centred_exact,
        ref.centred_recomputed,
    ):
        _, near_var = ref.centred_window(y, [compensate(past, W + change, b)])
        _, far_var = ref.centred_window(y + 1e6, [compensate(far, W + change, b + 1e6)])
        np.testing.assert_allclose(far_var, near_var, rtol=1e-8)
    _, raw_var = ref.window_statistics(y + 1e6, [ref.first_order(far, W + change, b + 1e6)])
    _, near_var = ref.centred_window(y, [ref.centred_first_order(past, W + change, b)])
    assert np.abs(raw_var / near_var - 1).max() > 1e-6  # what centring is for


def test_gradients_survive_a_mean_of_a_million_deviations() -> None:
    g = rng(23)
    y, dz, gamma = g.normal(size=(16, 4)), g.normal(size=(16, 4)), g.normal(size=4)
    near, far = (
        ref.cross_iteration_norm_backward(
            dz, y + at, np.full(4, 0.5 + at), np.ones(4), 2, gamma, EPS
        )
        for at in (0.0, 1e6)
    )
    for a, e in zip(far, near, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-8, atol=1e-9)


def test_a_large_mean_of_the_input_spoils_the_expansion_of_nu_only() -> None:
    g = rng(22)
    p, W = g.normal(1e6, 1, (1, 64, 3)), g.normal(size=(4, 3))
    past, now = ref.observe(p, W), W + 1e-3 * g.normal(size=W.shape)
    _, true = ref.centred_recomputed(past, now)
    np.testing.assert_allclose(ref.centred_exact(past, now)[1], true, rtol=1e-8)
    for expand in ("var", "sigma"):
        var = ref.centred_first_order(past, now, expand=expand)[1]  # type: ignore[arg-type]
        np.testing.assert_allclose(var, true, rtol=1e-4)
    assert (ref.centred_first_order(past, now, expand="nu")[1] < -1e3).all()
