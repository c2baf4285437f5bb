"""``renorm predict`` from arguments to the table."""

import json
from pathlib import Path

import pytest

from renorm import cli

SMALL = ["predict", "--depth", "4", "--width", "8", "--shape", "3", "8", "8", "--batch-size", "4"]
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 2),
        )

def fails():
    raise ZeroDivisionError("in the net")

def nonsense():
    return "a model"
"""


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--normalizers", "none", "batch-norm"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("plain(depth=4, width=8), 4 examples of (3, 8, 8)")
    rows = [line.split() for line in lines[3:5]]
    assert [row[:2] for row in rows] == [["1", "batch_norm"], ["2", "none"]]
    assert float(rows[0][2]) < float(rows[1][2])
    assert max(map(len, lines)) <= 80
    assert "Rule: where gradients or activations grow more than 100 times" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--json", "--seeds", "2", "--model", "residual"]
    assert cli.main([*arguments, "--normalizers", "layer_norm", "none"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "residual(depth=4, width=8)"
    assert (found["batch_size"], found["shape"]) == (4, [3, 8, 8])
    first = found["predictions"][0]
    assert (first["draws"], first["examples"], first["trouble"]) == (2, 4, "")
    assert {one["normalizer"] for one in found["predictions"]} == {"layer_norm", "none"}


def test_all_normalizers_that_it_has_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert len({one["normalizer"] for one in found}) == len(found) > 8
    assert all(one["finite"] for one in found)


def test_those_that_fit_a_fully_connected_net(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--depth", "4", "--width", "8", "--shape", "6", "--batch-size", "4"]
    assert cli.main(["predict", *sizes, "--json"]) == 0
    names = {one["normalizer"] for one in json.loads(capsys.readouterr().out)["predictions"]}
    assert {"batch_norm", "layer_norm", "none"} < names
    assert "instance_norm" not in names


def test_what_is_unstable_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    deep = ["--depth", "34", "--width", "32", "--batch-size", "8"]
    arguments = ["predict", "--shape", "32", *deep, "--normalizers"]
    assert cli.main([*arguments, "batch_norm", "layer_norm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "layer_norm" in lines[3]
    assert lines[6].startswith("batch_norm is unstable: gradients grow")


def test_a_net_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nets.py"
    path.write_text(NET)
    mine = ["predict", "--shape", "6", "--normalizers", "batch_norm", "none", "--model"]
    assert cli.main([*mine, f"{path}:Net"]) == 0
    assert "batch_norm" in capsys.readouterr().out
    for name, message in (
        ("fails", "ZeroDivisionError: in the net"),
        ("nonsense", "must give an nn.Module, got str"),
        ("missing", "has no 'missing' that can be called"),
    ):
        assert cli.main([*mine, f"{path}:{name}"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["predict", "--shape", "7", "--model", f"{path}:Net"]) == 2
    assert "given examples of the shape (7,), raised an error" in capsys.readouterr().err
    assert cli.main([*mine, f"{path}:Net", "--depth", "3"]) == 2
    assert "A net of your own has the sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "plane"], "Did you mean 'plain'"),
        (["--model", "vgg", "--depth", "3"], "The net 'vgg' has a fixed depth"),
        (["--depth", "0"], "depth counts hidden layers"),
        (["--width", "-1"], "width counts"),
        (["--stages", "9"], "at most 5 stages"),
        (["--depth", "100000000"], "depth is at most 10,000, got 100,000,000"),
        (["--width", "100000"], "about 9e+11 weights, and at most 1e+09"),
        (["--normalizers", "batchnorm"], "Did you mean 'batch_norm'"),
        (["--normalizers", "group_norm(group_size=5)"], "5"),
        (["--batch-size", "1"], "at least 2 examples"),
        (["--shape", "0"], "numbers from 1 on"),
        (["--seeds", "0"], "at least 1, got 0"),
        (["--model", "missing.py:Net"], "There is no file missing.py"),
        (["--model", "vgg", "--shape", "9"], "takes images"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", *arguments]) == 2
    assert message in capsys.readouterr().err
