"""Fresh nets as runs of the lab: their figures, and what is refused."""

from dataclasses import replace

import pytest

from renorm.errors import ArgumentError
from renorm.lab.tasks.propagating import prediction_of
from renorm.lab.training import plan, run, task_of
from renorm.report.records import Specification

VECTORS = Specification(
    "gaussian_vectors", "plain(depth=4, width=32)", "batch_norm", "iid", 0, 10, 0.1, 16, 4
)
IMAGES = replace(VECTORS, task="gaussian_images", model="plain(depth=3, width=8)")


def test_figures_of_a_plain_net() -> None:
    record = run(VECTORS)
    found = dict(record.figures)
    assert [name for name in found if name.startswith("cosine ")] == [
        f"cosine {layer}" for layer in (1, 2, 3, 4)
    ]
    assert found["cosine 4"] == found["cosine"] == pytest.approx(1 - (record.score or 0))
    growths = [value for name, value in found.items() if name.startswith("growth ")]
    assert len(growths) == 2  # layers 2 and 3, each over the one after it
    product = growths[0] * growths[1]
    assert found["gradient_growth"] == pytest.approx(product**0.5)
    assert found["gradient_ratio"] == pytest.approx(product**0.5)  # of norms, widths are equal
    assert found["finite"] == 1


def test_figures_of_a_residual_net() -> None:
    found = dict(run(replace(VECTORS, model="residual(depth=4, width=32)")).figures)
    streams = [value for name, value in found.items() if name.startswith("stream ")]
    assert len(streams) == 3  # what blocks 1 to 3 give, as the next one takes it
    assert streams == sorted(streams)


def test_a_normalizer_that_contains_the_activation() -> None:
    found = dict(run(replace(IMAGES, normalizer="evonorm_s0")).figures)
    assert "cosine 3" in found
    assert "cosine 4" not in found


def test_the_same_run_gives_the_same_figures_and_others_do_not() -> None:
    assert run(IMAGES) == run(IMAGES)
    assert run(IMAGES).figures != run(replace(IMAGES, seed=1)).figures


def test_the_prediction_of_a_record() -> None:
    record = run(replace(IMAGES, normalizer="group_norm(group_size=2)"))
    found = prediction_of(record)
    assert (found.normalizer, found.examples) == ("group_norm(group_size=2)", 16)
    assert found.cosine == dict(record.figures)["cosine"]
    assert found.place == found.cosine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": "microbatch"}, "got the condition 'microbatch'"),
        ({"batch_size": 1}, "at least 2 examples"),
        ({"normalizer": "group_norm(group_size=3)"}, "3"),
        ({"model": "plain(depth=0)"}, "depth counts"),
    ],
)
def test_what_is_refused(change: dict, message: str) -> None:
    specification = replace(IMAGES, **change)
    with pytest.raises(ArgumentError, match=message):
        task_of(specification).check(plan(specification))
