import json
import sys

import pytest
import torch

import renorm
from renorm import cli
from renorm.cli import env
from renorm.kernels import names
from renorm.kernels.cpu import MISSING

KINDS = 6


def test_json_holds_versions_devices_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["renorm"] == renorm.__version__
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["threads"] == torch.get_num_threads()
    assert "cpu" in facts["devices"]
    assert len(facts["kernels"]) == KINDS * len(facts["devices"])
    for entry in facts["kernels"]:
        assert entry["kernel"] in names()
        assert entry["reason"]


def test_tables_show_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["env"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    facts = env.collect()
    assert f"torch {facts['versions']['torch']}" in rows
    assert f"threads {facts['threads']}" in rows
    for entry in facts["kernels"]:
        assert " ".join(entry.values()) in rows


def test_what_is_not_installed_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "installed", lambda name: None)
    assert cli.main(["env"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_kinds_of_input_go_where_the_layer_would_send_them() -> None:
    chosen = {entry.input: entry for entry in env.served("cpu")}
    assert len(chosen) == KINDS
    assert len({entry.kernel for entry in chosen.values()}) == (1 if MISSING is None else 2)
    assert MISSING is None or "mask" in chosen["with a mask"].reason


def test_accelerators_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = env.devices()
    assert found["cuda:0"] == "card 0"
    assert list(found) == ["cpu", "cuda:0", "mps"]
