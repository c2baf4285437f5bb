"""The noise of noisy batch norm: its distribution, what it depends on, and when it is absent."""

from typing import Any

import torch
from torch import Tensor, nn

from renorm.nn import NoisyBatchNorm
from support.tolerance import assert_close


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_noise_it_is_batch_norm() -> None:
    ours = NoisyBatchNorm(5, n_mu=0, n_sigma=1, r_mu=0, r_sigma=0)
    theirs = nn.BatchNorm2d(5)
    for _ in range(3):
        x, dy = 2 + 3 * torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3)
        results = []
        for layer in (ours, theirs):
            given = x.clone().requires_grad_()
            y = layer(given)
            y.backward(dy)
            assert given.grad is not None
            results.append((y, given.grad))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_close("state", a.double(), b.double(), torch.float32)


def _noise(layer: NoisyBatchNorm, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return layer._noise(torch.empty(shape, dtype=torch.float64))


def test_a_channel_has_its_distribution_and_an_example_its_draw() -> None:
    layer = NoisyBatchNorm(2000, n_mu=0.5, n_sigma=1.25, r_mu=0.1, r_sigma=0.1,
                           generator=_generator())  # fmt: skip
    s, m = (t.squeeze(-1) for t in _noise(layer, (400, 2000, 1)))
    # each channel: a uniform of width 0.2 about mu_j, so mu_j is the middle of its range
    low, high = m.amin(0), m.amax(0)
    assert float((high - low).max()) <= 0.2
    assert float((high - low).min()) > 0.19  # the range of 400 draws misses 5 % with p < 1e-7
    middle = (low + high) / 2
    assert float(middle.abs().max()) <= 0.505
    # 2000 channels: the mean and deviation of a uniform are within 6 standard errors
    assert abs(float(middle.mean())) < 6 * 0.5 / (3 * 2000) ** 0.5
    assert abs(float(middle.std()) - 0.5 / 3**0.5) < 0.02
    # s: normal of deviation 0.1 about a uniform in (1, 1.25)
    sigma = s.mean(0)  # known to 0.1 / sqrt(400) = 0.005
    assert float(sigma.min()) > 1 - 6 * 0.005
    assert float(sigma.max()) < 1.25 + 6 * 0.005
    assert abs(float(sigma.mean()) - 1.125) < 6 * 0.25 / (12 * 2000) ** 0.5
    assert abs(float((s - sigma).std()) - 0.1) < 0.001
    # channels have noise of their own
    assert float(torch.corrcoef(torch.stack([middle, sigma]))[0, 1].abs()) < 6 / 2000**0.5


def test_noise_is_another_at_every_step_and_one_for_a_whole_map() -> None:
    layer = NoisyBatchNorm(3, affine=False, generator=_generator())
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    first, second = (_noise(layer, x.shape) for _ in range(2))
    assert first[0].shape == (4, 3, 1, 1)
    assert not any(bool((a == b).any()) for a, b in zip(first, second, strict=True))


def test_draws_are_those_of_the_generator_or_of_torch() -> None:
    x = torch.randn(4, 3)
    a, b = (NoisyBatchNorm(3, generator=_generator(5))(x) for _ in range(2))
    assert torch.equal(a, b)
    torch.manual_seed(1)
    c = NoisyBatchNorm(3)(x)
    torch.manual_seed(1)
    assert torch.equal(c, NoisyBatchNorm(3)(x))
    state = torch.get_rng_state()
    NoisyBatchNorm(3, generator=_generator(5))(x)
    assert torch.equal(state, torch.get_rng_state())


def test_eval_is_batch_norms_and_draws_nothing() -> None:
    ours: Any = NoisyBatchNorm(3)
    ours(torch.randn(16, 3, 4))
    theirs = nn.BatchNorm1d(3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, state = torch.randn(2, 3, 4), torch.get_rng_state()
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(state, torch.get_rng_state())
