import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from renorm.errors import MissingExtraError
from renorm.lab.tasks.cells import centred
from renorm.lab.tasks.detection import SIGMA, f1, focal, found, heat_maps, pairs

NONE = [-1.0, -1.0, -1.0, -1.0]


def peaks_at(*cells: tuple[int, int, int], height: int = 8, width: int = 10) -> Tensor:
    """One image's peaks (1, 2, height, width) at (class, row, column)."""
    peaks = torch.zeros(1, 2, height, width, dtype=torch.bool)
    for kind, row, column in cells:
        peaks[0, kind, row, column] = True
    return peaks


def test_a_box_is_its_centre_and_the_circle_in_it() -> None:
    boxes = torch.tensor([[2, 80, 40, 160, 80], [0, 0, 0, 8, 24]])
    assert centred(boxes, 8).tolist() == [[2, 15, 7.5, 2.5], [0, 0.5, 1.5, 0.5]]


def test_a_map_has_a_bump_of_its_class_where_an_object_is() -> None:
    objects = torch.tensor([[[0, 3.7, 2.2, 1.0], [1, 9.99, 7.0, 1.0], NONE]])
    maps = heat_maps(objects, 2, 8, 10)
    assert maps.shape == (1, 2, 8, 10)
    assert (maps == 1).nonzero().tolist() == [[0, 0, 2, 3], [0, 1, 7, 9]]
    assert maps[0, 0, 2, 5].item() == pytest.approx(math.exp(-4 / (2 * SIGMA**2)))
    assert maps[0, 0, 3, 4].item() == pytest.approx(math.exp(-2 / (2 * SIGMA**2)))
    assert not heat_maps(torch.tensor([[NONE]]), 2, 8, 10).any()


def test_where_bumps_meet_the_larger_counts() -> None:
    both = torch.tensor([[[0, 2.5, 4.5, 1.0], [0, 5.5, 4.5, 1.0]]])
    single = heat_maps(both.transpose(0, 1), 1, 8, 10)
    assert torch.equal(heat_maps(both, 1, 8, 10)[0], single.amax(0))


def test_an_object_at_the_edge_is_in_the_last_cell() -> None:
    maps = heat_maps(torch.tensor([[[0, 10.0, 8.0, 1.0]]]), 1, 8, 10)
    assert (maps == 1).nonzero().tolist() == [[0, 0, 7, 9]]


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.3, -1.2, 2.0, -0.4], dtype=torch.float64).view(1, 1, 2, 2)
    maps = torch.tensor([1.0, 0.5, 0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    p = [1 / (1 + math.exp(-x)) for x in (0.3, -1.2, 2.0, -0.4)]
    expected = -(
        (1 - p[0]) ** 2 * math.log(p[0])
        + 0.5**4 * p[1] ** 2 * math.log(1 - p[1])
        + p[2] ** 2 * math.log(1 - p[2])
        + (1 - p[3]) ** 2 * math.log(p[3])
    )
    assert focal(logits, maps).item() == pytest.approx(expected / 2, rel=1e-12)


def test_the_focal_loss_is_finite_far_out_and_without_objects() -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 1, 1, 2).requires_grad_()
    loss = focal(logits, torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    assert loss.item() == pytest.approx(400)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert focal(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).isfinite()


def test_peaks_are_above_the_threshold_and_not_below_a_neighbour() -> None:
    values = torch.full((1, 1, 5, 6), 0.01)
    values[0, 0, 1, 1], values[0, 0, 2, 2] = 0.9, 0.8  # neighbours: the lower is none
    values[0, 0, 4, 5], values[0, 0, 0, 5] = 0.31, 0.29
    assert found(torch.logit(values)).nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 4, 5]]


def test_f1_by_hand() -> None:
    objects = torch.tensor([[[0, 2.0, 2.0, 1.0], [0, 6.0, 2.0, 1.0], [1, 5.0, 5.0, 2.0], NONE]])
    # class 0: one of two is hit, and two peaks are wrong; class 1: hit at the circle's edge
    peaks = peaks_at((0, 1, 2), (0, 6, 6), (0, 4, 2), (1, 4, 6))
    assert f1(peaks, objects) == [2 * 1 / (3 + 2), 1.0]


def test_an_object_counts_once_and_so_does_a_peak() -> None:
    objects = torch.tensor([[[0, 4.5, 4.5, 2.0]]])
    assert f1(peaks_at((0, 4, 4), (0, 4, 5)), objects) == [2 / 3, 1.0]
    objects = torch.tensor([[[0, 4.5, 4.5, 2.0], [0, 5.5, 4.5, 2.0]]])
    assert f1(peaks_at((0, 4, 4)), objects) == [2 / 3, 1.0]


def test_peaks_of_another_class_or_image_are_no_hits() -> None:
    objects = torch.tensor([[[0, 4.5, 4.5, 2.0]], [NONE]])
    peaks = torch.cat([peaks_at(), peaks_at((0, 4, 4))])
    assert f1(peaks, objects) == [0.0, 1.0]
    assert f1(peaks_at((1, 4, 4)), objects[:1]) == [0.0, 0.0]


def test_targets_are_found_again() -> None:
    draw = torch.Generator().manual_seed(0)
    columns = torch.randperm(100, generator=draw)[:12]
    places = torch.stack([columns % 10, columns // 10], 1) * 5 + 2.5
    objects = torch.cat([torch.arange(12)[:, None] % 2, places, torch.ones(12, 1)], 1)[None].float()
    maps = heat_maps(objects, 2, 50, 50)
    assert f1(found(torch.logit(maps.clamp(1e-6, 1 - 1e-6))), objects) == [1.0, 1.0]


def test_as_many_pairs_as_possible() -> None:
    # taking each row's first column would leave the second row without one
    assert pairs(np.array([[True, True], [True, False]])) == 2
    assert pairs(np.zeros((0, 3), bool)) == pairs(np.zeros((3, 2), bool)) == 0


def test_without_scipy_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[lab\]"'):
        pairs(np.ones((1, 1), bool))
