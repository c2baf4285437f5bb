import math

import pytest
import torch

from renorm.bench.registry import SUITES, Shape, Suite

GOALS = {
    "nchw": (0.45, 0.9),
    "channels_last": (0.8, 1.05),
    "volumes": (0.6, None),
    "bfloat16": (0.6, None),
    "relu": (0.45, None),
    "eval": (1.0, None),
    "memory": (None, 1.0),
    "memory_relu": (None, 1.0),
    "peers": (8.0, None),
}


@pytest.mark.parametrize("name", GOALS)
def test_targets_are_the_goals_of_the_project(name: str) -> None:
    target = SUITES[name].target
    assert (target.mean, target.worst) == GOALS[name]


def test_rows_have_a_target_each() -> None:
    goals = {shape.name: shape.target for shape in SUITES["rows"].shapes}
    assert goals == {"32x16": 1.5, "256x64": 1.5, "256x256": 1.0, "256x2048": 1.0}


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_each_suite_is_whole(suite: Suite) -> None:
    assert SUITES[suite.name] is suite
    assert {shape.suite for shape in suite.shapes} == {suite.name}
    assert len({shape.sizes for shape in suite.shapes}) == len(suite.shapes)
    assert suite.chosen(full=True) == suite.shapes
    assert set(suite.chosen(full=False)) <= set(suite.shapes)
    assert suite.chosen(full=False)
    assert len({(s.device, s.dtype, s.layout, s.relu) for s in suite.shapes}) == 1


def test_gpu_suites_cover_dtypes_layouts_and_the_relu() -> None:
    found = {
        (s.shapes[0].dtype, s.shapes[0].layout, s.shapes[0].relu): s.target
        for s in SUITES.values()
        if s.device == "cuda"
    }
    assert len(found) == 8
    for (_, _, relu), target in found.items():
        assert target.mean == (0.7 if relu else 1.0)
        assert target.copied == 0.8
    batches = {shape.sizes[0] for shape in SUITES["gpu_nhwc_bfloat16"].shapes}
    assert (min(batches), max(batches)) == (32, 256)


def test_bytes_are_those_of_the_tensors() -> None:
    shape = Shape("any", (2, 3, 5, 7), dtype="bfloat16")
    x = shape.tensor(0)
    assert shape.input_bytes == x.numel() * x.element_size() == 420
    assert [shape.least_bytes(d) for d in ("forward", "backward", "both")] == [840, 1260, 2100]
    assert [shape.two_pass_bytes(d) for d in ("forward", "backward")] == [1260, 2100]
    assert not shape.large


@pytest.mark.parametrize(
    ("sizes", "layout"),
    [
        ((4, 3), "contiguous"),
        ((2, 3, 5, 7), "contiguous"),
        ((2, 3, 5, 7), "channels_last"),
        ((2, 3, 4, 5, 5), "channels_last"),
    ],
)
def test_tensors_lie_as_the_shape_says(sizes: tuple[int, ...], layout: str) -> None:
    shape = Shape("any", sizes, layout)
    x = shape.tensor(0)
    assert x.shape == sizes
    assert x.dtype == torch.float32
    assert x.is_contiguous() == (layout == "contiguous")
    assert x.stride(1) == (math.prod(sizes[2:]) if layout == "contiguous" else 1)
    assert torch.equal(x, shape.tensor(0))
    assert not torch.equal(x, shape.tensor(1))
