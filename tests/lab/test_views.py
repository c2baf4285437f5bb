import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.lab.conditions import View, filmed, shifted

both = pytest.mark.parametrize("view", [filmed, shifted])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@both
@given(
    n=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    group=st.integers(1, 10),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_shape_dtype_and_input_stay(
    view: View, n: int, shape: tuple[int, int, int], group: int, dtype: torch.dtype
) -> None:
    x = torch.randn(n, *shape, generator=seeded()).to(dtype)
    before = x.clone()
    seen = view(x, group, seeded(1))
    assert seen.shape == x.shape
    assert seen.dtype == dtype
    assert seen.isfinite().all()
    assert torch.equal(x, before)


@both
def test_only_the_generator_given_decides(view: View) -> None:
    x, state = torch.randn(8, 3, 16, 16), torch.get_rng_state()
    generator = seeded()
    first, second = view(x, 4, generator), view(x, 4, generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    again = seeded()
    assert torch.equal(first, view(x, 4, again))
    assert torch.equal(second, view(x, 4, again))


@both
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 8), r"got shape \(4, 8\) of torch.float32"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "of torch.uint8"),
    ],
    ids=["rows", "bytes"],
)
def test_what_is_no_image(view: View, x: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        view(x, 2, seeded())


def test_a_frame_is_a_translation_with_the_border_repeated() -> None:
    x = torch.randn(6, 2, 16, 16).repeat_interleave(16, 0)
    seen = filmed(x, 16, seeded())
    places = set()
    for image, frame in zip(x, seen, strict=True):
        found = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                rows = (torch.arange(16) - down).clamp(0, 15)
                columns = (torch.arange(16) - right).clamp(0, 15)
                moved = image[:, rows][:, :, columns]
                values = torch.stack([moved.flatten(), torch.ones(moved.numel())], 1)
                gain, bias = torch.linalg.lstsq(values, frame.flatten()[:, None]).solution[:, 0]
                if torch.allclose(moved * gain + bias, frame, atol=1e-4):
                    assert 0.8 - 1e-4 <= gain <= 1.2 + 1e-4
                    assert abs(bias) <= 0.2 + 1e-4
                    found.append((down, right))
        assert len(found) == 1
        places.update(found)
    # an eighth of the side at most, and both directions are used
    assert {place for pair in places for place in pair} == {-2, -1, 0, 1, 2}


def test_frames_of_a_clip_are_alike_and_clips_are_not() -> None:
    clips, frames = 3000, 6
    zeros = torch.zeros(clips * frames, 1, 1, 1)
    seen = filmed(zeros, frames, seeded()).view(clips, frames)  # 0.1 times the walk
    correlation = torch.corrcoef(seen.T)
    # cutting at 2 deviations changes a correlation by less than 0.02; 5 standard errors of
    # 3000 pairs are 5 / sqrt(3000) = 0.09 at a correlation of 0, less above
    for apart in range(frames):
        for start in range(frames - apart):
            expected = 0.9**apart
            error = 5 * (1 - expected**2) / math.sqrt(clips) + 0.02
            assert correlation[start, start + apart].item() == pytest.approx(expected, abs=error)
    neighbours = torch.corrcoef(torch.stack([seen[:-1, -1], seen[1:, 0]]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(clips)


def test_every_frame_of_a_clip_has_the_same_distribution() -> None:
    clips, frames = 3000, 5
    seen = filmed(torch.zeros(clips * frames, 1, 1, 1), frames, seeded()).view(clips, frames)
    # a normal of deviation 0.1, cut at 2 deviations: variance 0.9205 of the whole
    expected = 0.1 * math.sqrt(0.9205)
    assert seen.std(0).tolist() == pytest.approx(
        [expected] * frames, abs=5 * expected / math.sqrt(2 * clips)
    )
    assert seen.mean(0).tolist() == pytest.approx([0] * frames, abs=5 * 0.1 / math.sqrt(clips))
    assert seen.abs().max().item() == pytest.approx(0.2)


def test_tiny_images_stay_in_place() -> None:
    x = torch.randn(8, 1, 3, 3)
    seen = filmed(x, 4, seeded())
    gain = (seen.amax((1, 2, 3)) - seen.amin((1, 2, 3))) / (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))
    moved = (seen - x * gain.view(-1, 1, 1, 1)).flatten(1)
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 9), atol=1e-5, rtol=0)


def test_a_last_clip_may_be_shorter() -> None:
    x = torch.randn(10, 1, 8, 8)
    assert torch.equal(filmed(x, 4, seeded())[:8], filmed(x[:9], 4, seeded())[:8])


def test_the_shift_is_half_the_contrast_brighter_and_noisy() -> None:
    x = torch.randn(50, 1, 32, 32)
    noise = (shifted(x, 4, seeded()) - x / 2 - 0.5) / 0.25
    count = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(count))
    assert noise.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * count))
    assert torch.equal(shifted(x, 4, seeded()), shifted(x, 1, seeded()))
