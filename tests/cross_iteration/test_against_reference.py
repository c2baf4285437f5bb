"""The layers compute what the reference computes: outputs, gradients, and running averages."""

import pytest
import torch

import renorm
from support.crossed import CASES, Beside, Case, assert_close, drift, measured, paired

# torch says that it pads a copy where padding="same" is not symmetric
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
cases = pytest.mark.parametrize("case", CASES, ids=str)
STEPS = 6


def follow_reference(case: Case, as_compensation: str | None = None, **settings: object) -> None:
    torch.manual_seed(0)
    source, norm = paired(case, **settings)
    beside = Beside(case, source, norm)
    compensation = as_compensation
    for i in range(STEPS):
        x = (torch.randn(case.shape, dtype=torch.float64) * (1 + i)) + i
        dz = torch.randn_like(source(x))
        expected = beside.step(x, dz, compensation)
        assert_close(measured(source, norm, x, dz), expected)
        drift(source)


@cases
@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_first_order(case: Case, window: int) -> None:
    follow_reference(case, window=window)


@cases
@pytest.mark.parametrize("window", [2, 4])
def test_exact_and_none(case: Case, window: int) -> None:
    follow_reference(case, window=window, compensation="exact")
    follow_reference(case, window=window, compensation="none")


@cases
@pytest.mark.parametrize("compensation", ["first_order", "exact"])
def test_a_sample_of_all_positions_is_no_sample(case: Case, compensation: str) -> None:
    follow_reference(case, window=4, compensation=compensation, sample=1_000)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("conv2d", "linear")], ids=str)
@pytest.mark.parametrize("follow", ["window", "batch"])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_burn_in_and_what_the_running_averages_follow(
    case: Case, follow: str, burn_in: int
) -> None:
    follow_reference(case, window=3, burn_in=burn_in, follow=follow, momentum=0.3)


def test_a_fan_in_that_is_too_large_for_its_covariance_is_compensated_by_first_order() -> None:
    case = Case("wide", lambda: torch.nn.Linear(65, 4), (3, 65))
    follow_reference(case, "first_order", window=3, compensation="exact")
    small = Case("small", lambda: torch.nn.Linear(64, 4), (3, 64))
    follow_reference(small, "exact", window=3, compensation="exact")


@cases
def test_batches_and_images_change_their_size(case: Case) -> None:
    torch.manual_seed(1)
    source, norm = paired(case, window=4)
    beside = Beside(case, source, norm)
    for i in range(STEPS):
        n, channels, *spatial = case.shape
        x = torch.randn(n + i % 3, channels, *(s + i % 2 for s in spatial), dtype=torch.float64)
        dz = torch.randn_like(source(x))
        expected = beside.step(x, dz)
        assert_close(measured(source, norm, x, dz), expected)
        drift(source)


@cases
@pytest.mark.parametrize("compensation", ["first_order", "exact"])
def test_the_gradient_of_the_input_goes_through_norm_and_source(
    case: Case, compensation: str
) -> None:
    """Against finite differences of the function whose lags are held."""
    torch.manual_seed(2)
    source, norm = paired(case, window=3, compensation=compensation)
    for _ in range(3):
        norm(source(torch.randn(case.shape, dtype=torch.float64)))
        drift(source)
    x = torch.randn(case.shape, dtype=torch.float64, requires_grad=True)
    state = norm._history

    def frozen_window(x: torch.Tensor) -> torch.Tensor:
        y = source(x)
        seen = norm._seen
        assert seen is not None
        assert seen.lags is not None
        out, _, _ = renorm.functional.cross_iteration_batch_norm(
            y, *seen.lags, norm.weight, norm.bias, eps=norm.eps
        )
        return out

    assert state.values > 0
    assert torch.autograd.gradcheck(frozen_window, (x,), atol=1e-6)


def test_channels_last_and_strided_input_give_the_same() -> None:
    torch.manual_seed(3)
    results = []
    for how in ("contiguous", "channels_last", "strided"):
        torch.manual_seed(3)
        source, norm = paired(CASES[3], window=3)
        if how == "channels_last":
            source = source.to(memory_format=torch.channels_last)
        z = torch.empty(0)
        for _ in range(4):
            x = torch.randn(CASES[3].shape, dtype=torch.float64)
            if how == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif how == "strided":
                x = x.repeat_interleave(2, dim=3)[..., ::2]
            z = norm(source(x))
            drift(source)
        results.append(z)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)
