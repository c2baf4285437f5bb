from pathlib import Path

import pytest
from torch import nn

from bench import tiny
from renorm import cli
from renorm.bench import session, tables
from renorm.bench.peers import Peer
from renorm.bench.records import from_line
from renorm.bench.registry import Target

TINY = ["bench", "--suite", "tiny", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    tiny.plant(
        monkeypatch,
        tiny.suite("training"),
        tiny.suite("memory", "tiny_memory", Target(worst=1.0)),
        tiny.suite("peers", "tiny_peers", Target(8.0, at_least=True)),
    )


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_table_its_verdicts_and_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--full", "--json", "out.jsonl"]) == cli.DONE == 0
    captured = capsys.readouterr()
    out = words(captured.out)
    assert "tiny: small shapes" in out
    assert "nn.BatchNorm ms ratio minima fwd bwd GB/s copy" in out
    assert "4x3x5x5" in out
    assert "renorm: geometric mean " in out
    assert "(target at most 1e+06: met)" in out
    assert "allocator: as it was" in out
    assert all(len(line) <= 80 for line in captured.out.splitlines())
    assert "1 of 2: tiny 2x4x6x6" in captured.err
    lines = Path("out.jsonl").read_text().splitlines()
    assert len([from_line(line) for line in lines]) == 2 * 2 * 3


def test_the_short_form_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(TINY) == 0
    assert "1 of 2 shapes; --full: all" in capsys.readouterr().out


def test_several_kernels_have_a_table_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--kernel", "aten", "composite"]) == 0
    out = capsys.readouterr().out
    assert "renorm, aten: geometric mean" in out
    assert "renorm, composite: geometric mean" in out
    assert "renorm: " not in out


def test_memory_and_peers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "KNOWN", ())
    arguments = ["bench", "--suite", "tiny_memory,tiny_peers", "--repeats", "1"]
    assert cli.main([*arguments, "--peer", "torch.nn:BatchNorm2d"]) == 0
    out = words(capsys.readouterr().out)
    assert "renorm: input-sized tensors 1.00 (target at most 1: met)" in out
    assert "torch.nn:BatchNorm2d: geometric mean" in out
    assert "(target at least 8: " in out
    assert "torch.nn:BatchNorm2d: first output off by" in out


def test_absent_peers_and_their_own_targets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = (Peer("theirs", "", lambda sizes: nn.BatchNorm2d(sizes[1]), target=5.0),)
    monkeypatch.setattr(session, "KNOWN", (*known, Peer("gone", "", _raising)))
    monkeypatch.setattr(tables, "KNOWN", known)
    assert cli.main(["bench", "--suite", "tiny_peers", "--repeats", "1"]) == 0
    out = words(capsys.readouterr().out)
    assert "not measured: gone: fails on 8x6x5x5: RuntimeError: gone" in out
    assert "(target at least 5: " in out


def _raising(sizes: tuple[int, ...]) -> nn.Module:
    raise RuntimeError("gone")


def test_a_refused_layer_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "refusal", lambda provider, shape: "dx is off by 1")
    assert cli.main(TINY) == cli.SOME_FAILED == 1
    assert "not timed: tiny: dx is off by 1" in capsys.readouterr().out


def test_ctrl_c_shows_and_keeps_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.interrupt_second(monkeypatch)
    assert cli.main([*TINY, "--full", "--json", "out.jsonl"]) == cli.INTERRUPTED == 130
    captured = capsys.readouterr()
    assert "1 of 2 shapes" in captured.out
    assert "Interrupted. What was measured is above." in captured.err
    assert len(Path("out.jsonl").read_text().splitlines()) == 2 * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--suite tny", "Did you mean 'tiny'?"),
        ("--suite gpu_nchw_float32", "is for cuda. Pass --device cuda"),
        ("--suite tiny --kernel attn", "There is no kernel 'attn'; there are auto, "),
        ("--suite tiny --peer torch.nn", "A peer is package.module:Class, got 'torch.nn'"),
        ("--suite tiny --repeats 0", "at least 1, got 0"),
        ("--suite tiny --json no/out.jsonl", "Give another file, in a folder that is there"),
        ("--device tpu", "tpu"),
    ],
)
def test_a_mistake_is_explained_with_exit_code_2(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *options.split()]) == cli.USAGE == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_help_says_what_is_measured_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    text = words(capsys.readouterr().out.replace("│", " "))
    for part in (
        "a layer that is wrong is not timed",
        "renorm bench --kernel aten",
        "--peer some.package:BatchRenorm2d",
        "All shapes of each suite",
    ):
        assert part in text
