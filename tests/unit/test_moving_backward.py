"""The backward pass with moving averages: the reference, the layer against it, and its life."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import renorm
from renorm import BatchRenorm1d, BatchRenorm2d, accumulate, limits
from renorm import reference as ref
from renorm.errors import ArgumentError
from renorm.kernels import cpu
from renorm.nn import BatchRenorm

rng = np.random.default_rng
Averages = ref.GradientAverages
BUILT = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
CPU = pytest.param("cpu", marks=BUILT)
on_each_kernel = pytest.mark.parametrize("kernel", [CPU, "aten", "composite"])
on_each_with_groups = pytest.mark.parametrize("kernel", [CPU, "composite"])


def _layer(channels: int = 4, **options: Any) -> BatchRenorm:
    options = {"limits": limits.fixed(1.5, 0.5), "dtype": torch.float64, **options}
    layer = BatchRenorm(channels, backward="moving", **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(channels))
    return layer


def _gradients(layer: nn.Module, x: Tensor, dy: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x, **given)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def _kept(layer: Any) -> tuple[Tensor, Tensor]:
    return layer._averages.values.clone(), layer._averages.passes.clone()


# the reference


def test_reference_by_hand() -> None:
    # sigma_B = sqrt(1 + 3) = 2, z = (-1/2, 1/2), x_hat = 3/2 z + 1/4 = (-1/2, 1)
    x, dy = np.array([[1.0], [3.0]]), np.array([[1.0], [0.0]])
    r, d, gamma = np.array([1.5]), np.array([0.25]), np.array([2.0])
    before = Averages(np.array([0.1]), np.array([0.2]), 9)
    found = ref.batch_renorm_moving_backward([dy], [x], gamma, [r], [d], before, rate=0.5, eps=3.0)
    # mean(dy) = 1/2 and mean(dy x_hat) = -1/4, half-way from 0.1 and 0.2
    assert found.averages.mean == pytest.approx(0.3)
    assert found.averages.slope == pytest.approx(-0.025)
    assert found.averages.passes == 10
    # gamma r / sigma_B = 3/2; dy - 0.3 + z 0.025
    expected = [1.5 * (1 - 0.3 - 0.0125), 1.5 * (0 - 0.3 + 0.0125)]
    np.testing.assert_allclose(found.dx[0][:, 0], expected)
    assert (found.dgamma, found.dbeta) == (-0.5, 1.0)


def test_reference_has_the_gradient_of_normalizing_by_the_averages_of_all_groups() -> None:
    """With mu and sigma the averages of mu_B and sigma_B, by finite differences through both."""
    g, eps, h = rng(0), 1e-2, 1e-5
    x, dy = g.normal(1, 2, (4, 5, 3)), g.normal(size=(4, 5, 3))
    x += 3 * g.normal(size=(4, 1, 3))  # groups that differ, as those of one class do
    gamma = g.normal(size=3)

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.mean(axis=1), np.sqrt(x.var(axis=1) + eps)

    def loss(x: np.ndarray) -> float:
        mu_B, sigma_B = moments(x)
        return float((dy * gamma * (x - mu_B.mean(axis=0)) / sigma_B.mean(axis=0)).sum())

    mu_B, sigma_B = moments(x)
    r, d = sigma_B / sigma_B.mean(axis=0), (mu_B - mu_B.mean(axis=0)) / sigma_B.mean(axis=0)
    nothing = Averages(np.zeros(3), np.zeros(3), 0)
    dx = ref.batch_renorm_moving_backward(
        list(dy), list(x), gamma, list(r), list(d), nothing, rate=1.0, eps=eps
    ).dx
    numeric = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        numeric[i] = (loss(x + step) - loss(x - step)) / (2 * h)
    np.testing.assert_allclose(np.stack(dx), numeric, atol=1e-8)


def test_own_means_of_the_reference_are_the_papers() -> None:
    g = rng(1)
    x, dy = [g.normal(size=(m, 3)) for m in (4, 6)], [g.normal(size=(m, 3)) for m in (4, 6)]
    gamma, one, zero = g.normal(size=3), np.ones(3), np.zeros(3)
    before = Averages(g.normal(size=3), g.normal(size=3), 5)
    found = ref.batch_renorm_moving_backward(
        dy, x, gamma, [one] * 2, [zero] * 2, before, rate=0.1, eps=1e-3, own=True
    )
    for dx, dy_g, x_g in zip(found.dx, dy, x, strict=True):
        expected = ref.batch_renorm_backward(dy_g, x_g, gamma, one, zero, 1e-3)[0]
        np.testing.assert_allclose(dx, expected, rtol=1e-12, atol=1e-14)


# the layer


@pytest.mark.parametrize(
    ("shape", "microbatch"),
    [((12, 3), None), ((12, 3), 4), ((7, 3, 5), 3), ((6, 3, 2, 4), 2), ((4, 3, 2, 2, 2), None)],
    ids=str,
)
@pytest.mark.parametrize("momentum", [0.1, 0.4, 1.0])
@on_each_kernel
def test_steps_are_those_of_the_reference(
    shape: tuple[int, ...], microbatch: int | None, momentum: float, kernel: str
) -> None:
    """Through the batch norm phase, the ramp and after; groups of several sizes."""
    if kernel == "aten" and microbatch is not None:
        pytest.skip("native operations have one group")
    schedule = limits.Limits(limits.Ramp(1, 2, 2, 5), limits.Ramp(0, 1, 2, 5))
    layer = _layer(3, limits=schedule, microbatch=microbatch, backward_momentum=momentum,
                   momentum=0.3, kernel=kernel)  # fmt: skip
    size, eps, (n, c) = microbatch or shape[0], layer.eps, shape[:2]
    mu, var = np.zeros(c), np.ones(c)
    averages = Averages(np.zeros(c), np.zeros(c), 0)
    gamma, beta = (p.detach().numpy() for p in (layer.weight, layer.bias))
    for step in range(8):
        x = torch.randn(shape, dtype=torch.float64) * 2 + torch.randn(n, c, *[1] * (len(shape) - 2))
        dy = torch.randn(shape, dtype=torch.float64)
        layer.zero_grad()
        y, dx = _gradients(layer, x, dy)
        r_max, d_max = schedule(step)
        xs, dys = ([ref.as_rows(p.numpy()) for p in t.split(size)] for t in (x, dy))
        groups = [
            ref.batch_renorm(x_g, mu, np.sqrt(var + eps), gamma, beta, r_max=r_max, d_max=d_max,
                             alpha=0.3, eps=eps)
            for x_g in xs
        ]  # fmt: skip
        back = ref.batch_renorm_moving_backward(
            dys, xs, gamma, [g.r for g in groups], [g.d for g in groups], averages,
            rate=momentum, eps=eps, own=(r_max, d_max) == (1, 0),
        )  # fmt: skip
        averages = back.averages
        weights = [len(x_g) for x_g in xs]
        mu = np.average([g.mu for g in groups], axis=0, weights=weights)
        var = np.average([g.sigma for g in groups], axis=0, weights=weights) ** 2 - eps
        for found, expected in (
            (ref.as_rows(y.numpy()), np.concatenate([g.y for g in groups])),
            (ref.as_rows(dx.numpy()), np.concatenate(back.dx)),
            (layer.weight.grad, back.dgamma),
            (layer.bias.grad, back.dbeta),
            (layer.running_mean, mu),
            (layer.running_var, var),
            (layer._averages.values, np.stack([averages.mean, averages.slope])),  # type: ignore[union-attr]
        ):
            assert found is not None
            np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9, atol=1e-10)
    assert layer._averages is not None
    assert layer._averages.passes == 8


def test_what_a_group_has_in_common_is_kept() -> None:
    """One class a group: the paper's gradient of a shift of a whole group is nothing."""
    x = torch.randn(8, 4, dtype=torch.float64)
    dy = torch.randn(2, 4, dtype=torch.float64).repeat_interleave(4, 0)  # alike in a group
    paper = BatchRenorm(4, microbatch=4, limits=limits.fixed(3, 5), dtype=torch.float64)
    moving = BatchRenorm(4, microbatch=4, limits=limits.fixed(3, 5), dtype=torch.float64,
                         backward="moving")  # fmt: skip
    assert _gradients(paper, x, dy)[1].abs().max() < 1e-12
    groups = _gradients(moving, x, dy)[1].unflatten(0, (2, 4)).sum(1)
    assert groups.abs().min() > 1e-3


@on_each_with_groups
def test_group_of_one_value_loses_the_same_averages(kernel: str) -> None:
    """It is normalized by the running statistics, so their z and r = 1 are in the formula."""
    layer = _layer(3, single="running", backward_momentum=0.5, kernel=kernel)
    x, dy = (torch.randn(8, 3, dtype=torch.float64) for _ in range(2))
    _gradients(layer, x, dy)
    mean, var, kept = layer.running_mean.clone(), layer.running_var.clone(), _kept(layer)[0]  # type: ignore[union-attr]
    x, dy = x[:1], dy[:1]
    dx = _gradients(layer, x, dy)[1]
    sigma = (var + layer.eps).sqrt()
    x_hat = (x - mean) / sigma
    m1, m2 = (kept + 0.5 * (torch.cat([dy, dy * x_hat]) - kept)).unbind()
    torch.testing.assert_close(dx, layer.weight.detach() / sigma * (dy - m1 - x_hat * m2))


@on_each_with_groups
def test_mask_leaves_padding_out_of_the_averages(kernel: str) -> None:
    layer = _layer(3, kernel=kernel)
    other = copy.deepcopy(layer)
    x, dy = (torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 2], mask[:, 6] = False, False
    wide = torch.full((2, 3, 7), torch.nan, dtype=torch.float64)
    wide_dy = torch.full((2, 3, 7), 7.0, dtype=torch.float64)
    where = mask.unsqueeze(1).expand_as(wide)
    wide[where], wide_dy[where] = x.flatten(), dy.flatten()
    for _ in range(2):
        dx = _gradients(layer, wide, wide_dy, mask=mask)[1]
        expected = _gradients(other, x, dy)[1]
        torch.testing.assert_close(dx[where].view_as(expected), expected)
        assert not dx[~where].any()
    torch.testing.assert_close(_kept(layer), _kept(other))


# what moves the averages


def test_first_averages_are_plain_ones() -> None:
    layer = _layer(1, backward_momentum=0.25, affine=False, limits=limits.batch_norm())
    means, expected = [], torch.zeros(())
    for step in range(6):
        dy = torch.randn(5, 1, dtype=torch.float64)
        _gradients(layer, torch.randn(5, 1, dtype=torch.float64), dy)
        means.append(dy.mean())
        if step < 4:
            expected = torch.stack(means).mean()
        else:
            expected = expected + 0.25 * (means[-1] - expected)
        torch.testing.assert_close(_kept(layer)[0][0, 0], expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@on_each_kernel
def test_non_finite_gradient_moves_nothing_and_shows(bad: float, kernel: str) -> None:
    layer = _layer(kernel=kernel)
    x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    _gradients(layer, x, dy)
    before = _kept(layer)
    wrong = dy.clone()
    wrong[2, 1] = bad
    dx = _gradients(layer, x, wrong)[1]
    assert not dx[2, 1].isfinite()
    torch.testing.assert_close(_kept(layer), before, rtol=0, atol=0)
    assert _gradients(layer, x, dy)[1].isfinite().all()
    assert _kept(layer)[1] == 2


def test_forwards_alone_move_nothing_and_every_backward_moves_once() -> None:
    layer = _layer()
    x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    layer.eval()(x.requires_grad_()).backward(dy)
    renorm.freeze(layer).train()(x).backward(dy)
    renorm.unfreeze(layer)
    assert _kept(layer)[1] == 0
    y = layer(x)
    y.backward(dy, retain_graph=True)
    y.backward(dy)
    assert _kept(layer)[1] == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_moves_once_and_changes_nothing(reentrant: bool) -> None:
    layer = _layer(momentum=0.3)
    plain = copy.deepcopy(layer)
    for _ in range(3):
        x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
        ours = _gradients(lambda x: checkpoint(layer, x, use_reentrant=reentrant), x, dy)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, _gradients(plain, x, dy))
    torch.testing.assert_close(_kept(layer), _kept(plain))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def test_accumulated_parts_move_the_averages_once_each() -> None:
    layer = _layer()
    x, dy = (torch.randn(8, 4, dtype=torch.float64) for _ in range(2))
    with accumulate(layer):
        for part, d_part in zip(x.split(4), dy.split(4), strict=True):
            _gradients(layer, part, d_part)
    assert _kept(layer)[1] == 2
    assert layer.num_batches_tracked == 1


@on_each_kernel
def test_nothing_that_is_given_is_written(kernel: str) -> None:
    layer = _layer(kernel=kernel)
    x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    mask = None if kernel == "aten" else torch.rand(6) < 0.8
    tensors = [t for t in (x, dy, mask, layer.weight, layer.bias) if t is not None]
    held = [t.detach().clone() for t in tensors]
    _gradients(layer, x, dy, mask=mask)
    for now, then in zip(tensors, held, strict=True):
        assert torch.equal(now, then)


# state


def test_state_is_that_of_batch_norm_both_ways() -> None:
    layer, norm = _layer(), nn.BatchNorm1d(4, dtype=torch.float64)
    x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    _gradients(layer, x, dy)
    assert list(layer.state_dict()) == list(norm.state_dict())
    norm.load_state_dict(layer.state_dict())
    assert torch.equal(norm.eval()(x), layer.eval()(x))
    layer.train().load_state_dict(norm.state_dict())
    assert _kept(layer)[1] == 0
    _gradients(layer, x, dy)
    layer.reset_running_stats()
    assert _kept(layer)[1] == 0
    assert not _kept(layer)[0].any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_averages_of_their_own(copied: Any) -> None:
    layer = _layer()
    x, dy = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    _gradients(layer, x, dy)
    other, before = copied(layer), _kept(layer)
    torch.testing.assert_close(_kept(other), before)
    _gradients(other, x, torch.randn_like(dy))
    torch.testing.assert_close(_kept(layer), before, rtol=0, atol=0)
    assert _kept(other)[1] == 2


def test_averages_begin_where_the_layer_arrives() -> None:
    layer = BatchRenorm1d(4, backward="moving", device="meta")
    layer.to_empty(device="cpu").reset_parameters()
    _gradients(layer, torch.randn(6, 4), torch.randn(6, 4))
    assert _kept(layer)[1] == 1
    half = BatchRenorm1d(4, backward="moving").to(torch.bfloat16)
    x, dy = (torch.randn(6, 4, dtype=torch.bfloat16) for _ in range(2))
    assert _gradients(half, x, dy)[1].dtype == torch.bfloat16
    assert _kept(half)[0].dtype == torch.float32


def test_settings_are_shown_converted_and_left_behind() -> None:
    assert repr(BatchRenorm1d(4, backward="moving")).endswith(
        "backward='moving', backward_momentum=0.3)"
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LazyBatchNorm2d())
    renorm.convert(model, backward="moving", backward_momentum=0.2)
    model(torch.randn(2, 3, 6, 6)).backward(torch.randn(2, 4, 4, 4))
    for layer in list(model)[1:]:
        assert isinstance(layer, BatchRenorm2d)
        assert (layer.backward, layer.backward_momentum) == ("moving", 0.2)
        assert _kept(layer)[1] == 1
    assert "backward moving" in str(renorm.summary(model))
    renorm.to_batchnorm(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert vars(model[1]).keys() == vars(nn.BatchNorm2d(4)).keys()


# refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backward": "running"}, "'batch' or 'moving', got 'running'"),
        ({"backward_momentum": 0}, "above 0 to 1, got 0"),
        ({"backward_momentum": 1.5}, "above 0 to 1, got 1.5"),
        ({"backward_momentum": None}, "above 0 to 1, got None"),
        ({"backward": "moving", "kernel": "cuda"}, "and 'composite', got kernel='cuda'"),
        ({"backward": "moving", "sync": "batch"}, "Give one of them, or sync='running'"),
        ({"backward": "moving", "track_running_stats": False}, "there are none"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    for build in (lambda: BatchRenorm1d(4, **options), lambda: renorm.LazyBatchRenorm1d(**options)):
        with pytest.raises(ArgumentError, match=message):
            build()


@on_each_kernel
def test_gradients_that_have_no_meaning_are_refused(kernel: str) -> None:
    layer = _layer(kernel=kernel)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    with pytest.raises(ArgumentError, match="create_graph=True"):
        torch.autograd.grad(layer(x), x, dy, create_graph=True)
    with pytest.raises(ArgumentError, match="one gradient a pass"):
        torch.autograd.grad(layer(x), x, torch.stack([dy, dy]), is_grads_batched=True)
    assert _kept(layer)[1] == 0
    layer = _layer()
    with pytest.raises(ArgumentError, match=r"torch\.func"):
        torch.func.vjp(layer, x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ArgumentError, match="forward-mode"):
        layer(x)


def test_training_compiles_to_one_graph() -> None:
    """With a backward graph that moves the averages."""
    torch._dynamo.reset()
    layer = BatchRenorm1d(4, limits=limits.fixed(1.5, 0.5), momentum=0.3, backward="moving")
    plain = copy.deepcopy(layer)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x, dy = torch.randn(6, 4), torch.randn(6, 4)
        torch.testing.assert_close(_gradients(compiled, x, dy), _gradients(plain, x, dy))
    torch.testing.assert_close(_kept(layer), _kept(plain))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
