import sys
from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import MissingExtraError, RecordError
from renorm.report import scalars
from report.constructed import PLAIN, diverged
from report.whole import whole

OURS = replace(PLAIN, normalizer="batch_renorm")


def test_curve_and_corrections_are_scalars() -> None:
    record = whole(OURS, 0.9, points=2)
    got = list(scalars.scalars(record))
    assert got[:2] == [("accuracy", 50, record.curve[0][1]), ("accuracy", 100, record.curve[1][1])]
    tags = [tag for tag, step, _ in got if step == 100]
    assert tags == [
        "accuracy",
        "corrections/r_max",
        "corrections/d_max",
        *(f"corrections/r_{quantile}" for quantile in scalars.QUANTILES),
        *(f"corrections/d_{quantile}" for quantile in scalars.QUANTILES),
        "corrections/clipped_r",
        "corrections/clipped_d",
    ]


def test_what_is_written_is_read_back_by_tensorboard(tmp_path: Path) -> None:
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader",
        reason="tensorboard is not installed",
    )
    record = whole(OURS, 0.9, points=2)
    assert scalars.write(tmp_path / "log", [record, diverged(PLAIN)]) == 1
    (folder,) = (tmp_path / "log" / "digits" / "iid" / "batch_renorm").iterdir()
    assert folder.name == f"seed0_lr0.1_{OURS.key[:8]}"
    (file,) = folder.iterdir()
    read = [
        (value.tag, event.step, value.tensor.float_val[0])
        for event in loader.LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    expected = [(tag, step, pytest.approx(value)) for tag, step, value in scalars.scalars(record)]
    assert read == expected
    with pytest.raises(RecordError, match=r"is there already.*Give an empty folder"):
        scalars.write(tmp_path / "log", [record])


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard.summary", reason="tensorboard is not installed")
    (tmp_path / "log").write_text("a file")
    with pytest.raises(RecordError, match="log cannot be written: Not a directory"):
        scalars.write(tmp_path / "log", [whole(OURS, 0.9)])


@pytest.mark.parametrize(("task", "folder"), [("../x", "_/x"), ("..", "_"), ("a b:C", "a_b_C")])
def test_names_stay_below_the_folder(task: str, folder: str) -> None:
    assert scalars.name(replace(PLAIN, task=task)).startswith(folder.replace("/", "_") + "/iid/")


def test_without_tensorboard_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[tensorboard\]"'):
        scalars.write(tmp_path, [])
