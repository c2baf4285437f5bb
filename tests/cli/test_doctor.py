"""``renorm doctor`` from arguments to text, files and exit codes."""

import json
import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest

from renorm import cli
from renorm.cli import doctor as verb
from renorm.doctor import Case, Diagnosis, diagnosing, saving, template
from renorm.findings import Figure, Finding
from renorm.measure.records import Survey

CASE = """
import torch
from torch import nn

def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, [torch.randn(8, 3) for _ in range(4)], loss

def loss(output, batch):
    return output.square().mean()

def as_dict():
    model, batches, loss = case()
    return {"model": model, "batches": batches, "purpose": "export", "steps": 9}

def fails():
    raise ZeroDivisionError("in the factory")

def leaves():
    raise SystemExit(3)

def nonsense():
    return "a model"

def wrong_loss():
    model, batches, _ = case()
    return model, batches, lambda output, batch: output.sum() / nothing

def wrong_batches():
    model, batches, _ = case()
    return model, [torch.randn(8, 7)]

def no_norm():
    return nn.Linear(3, 3), case()[1]

def no_batch():
    return case()[0], []

def one_batch():
    return case()[0], torch.zeros(8, 3)

def elsewhere():
    import os
    os.chdir("..")
    return case()

def interrupted():
    model, batches, _ = case()
    def some():
        yield batches[0]
        raise KeyboardInterrupt
    return model, some()
"""


def finding(severity: str) -> Finding:
    figure = Figure("1", "shift", 2.5, 1.0)
    return Finding(
        "stale_statistics", severity, f"The {severity} of them all", ("1",), (figure,),
        "It costs.", "By the paper.", "Calibrate.", "renorm.calibrate(model, batches)", "0.2 less.",
    )  # fmt: skip


class Rules:
    """Stands for the rules: has findings of the severities that a test wants."""

    severities: tuple[str, ...] = ()

    def __call__(self, survey: Survey) -> tuple[Finding, ...]:
        return tuple(map(finding, self.severities))


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rules:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("mine.py").write_text(CASE)
    rules = Rules()
    monkeypatch.setattr(diagnosing, "judge", rules)
    monkeypatch.setattr(saving, "judge", rules)
    return rules


def test_files_are_written_where_the_command_was_given(rules: Rules) -> None:
    folder = Path.cwd()
    files = ["--json", "it.jsonl", "--html", "it.html"]
    assert cli.main(["doctor", "mine.py:elsewhere", *files]) == 0
    assert Path.cwd() == folder.parent
    assert sorted(path.name for path in folder.glob("it.*")) == ["it.html", "it.jsonl"]


@pytest.mark.parametrize(
    ("severities", "option", "code"),
    [
        ((), "warning", 0),
        (("note",), "warning", 0),
        (("warning", "note"), "warning", 1),
        (("error",), "warning", 1),
        (("warning",), "error", 0),
        (("error", "warning"), "error", 1),
        (("error",), "never", 0),
    ],
)
def test_exit_codes(rules: Rules, severities: tuple[str, ...], option: str, code: int) -> None:
    rules.severities = severities
    assert cli.main(["doctor", "mine.py:case", "--fail-on", option, "--depth", "quick"]) == code


def test_findings_go_to_stdout_and_progress_to_stderr(
    rules: Rules, capsys: pytest.CaptureFixture[str]
) -> None:
    rules.severities = ("error", "warning", "note")
    assert cli.main(["doctor", "mine.py:case"]) == cli.SOME_FAILED == 1
    captured = capsys.readouterr()
    places = [captured.out.index(f"The {one} of them all") for one in rules.severities]
    assert places == sorted(places)
    assert len(captured.out.splitlines()) < 24
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "1 of 4: train mode (time left: measuring)\n" in captured.err
    assert "4 of 4: train mode (0 s left)\n" in captured.err
    assert "4 of 4: three modes" in captured.err


def test_files_and_judging_again(rules: Rules, capsys: pytest.CaptureFixture[str]) -> None:
    rules.severities = ("warning",)
    files = ["--json", "it.jsonl", "--html", "it.html"]
    assert cli.main(["doctor", "mine.py:case", "--seed", "3", *files]) == 1
    shown = capsys.readouterr()
    assert "Figures: it.jsonl\nPage: it.html" in shown.err
    kinds = [json.loads(line)["kind"] for line in Path("it.jsonl").read_text().splitlines()]
    assert (kinds[0], kinds[-2:]) == ("Survey", ["Finding", "Environment"])
    assert "renorm doctor mine.py:case --seed 3" in Path("it.html").read_text()
    rules.severities = ("note",)
    assert cli.main(["doctor", "--again", "it.jsonl", "--html", "again.html"]) == 0
    assert "The note of them all" in capsys.readouterr().out
    assert "renorm doctor --again it.jsonl" in Path("again.html").read_text()


def test_every_option_reaches_the_diagnosis(rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def diagnose(**options: Any) -> Diagnosis:
        asked.append(options)
        survey = Survey("Net", True, "deep", 5, 1, 1, True, False, ())
        return Diagnosis(survey, ())

    monkeypatch.setattr(verb, "diagnose", diagnose)
    options = "--depth deep --fixes calibrate,frozen batch_renorm --seed 5"
    assert cli.main(["doctor", "mine.py:as_dict", *options.split()]) == 0
    (found,) = asked
    expected = {"depth": "deep", "try_fixes": True, "seed": 5, "purpose": "export", "steps": 9}
    assert {key: found[key] for key in expected} == expected
    assert found["fixes"] == ["calibrate", "frozen", "batch_renorm"]
    assert len(found["batches"]) == 4
    assert cli.main(["doctor", "mine.py:case", "--try-fixes"]) == 0
    assert (asked[1]["try_fixes"], asked[1]["fixes"]) == (True, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.py:case", "There is no file nowhere.py to take a case from. Give the path of"),
        ("no.such.module:case", "There is no module no.such.module to take a case from."),
        ("mine.py:cas", "mine.py has no function 'cas'. It has case, loss, as_dict, "),
        ("mine.py", "a colon, and a function in it, got 'mine.py'"),
        (":case", "a colon, and a function in it, got ':case'"),
        ("mine.py:nonsense", "mine.py:nonsense returned a str. It has to return"),
        ("mine.py:no_norm", "Linear has no normalization layer to look at"),
        ("mine.py:no_batch", "There is no batch to measure by"),
        ("mine.py:one_batch", "got Tensor. For a single batch give [batch]"),
        ("mine.py:as_dict --try-fixes", "takes a loss to train by, got None"),
        ("mine.py:case --depth full", "full"),
        ("mine.py:case --json it.html", "--json would write over it.html, which is of another"),
        ("mine.py:case --html mine.py", "Give mine.html."),
        ("mine.py:case --html no/it.html", "there is no folder no. Give another file"),
        ("mine.py:fails --json .", ". cannot be written: it is a folder"),
        ("mine.py:fails --html ..", ".. cannot be written: it is a folder"),
        ("mine.py:case --fixes sgd", "fixes are among calibrate"),
        ("mine.py:case --seed -1", "seed is a whole number from 0 on, got -1"),
        ("--again none.jsonl", "none.jsonl cannot be read"),
        ("--again mine.py", "mine.py cannot be read as a diagnosis"),
        ("mine.py:case --again it.jsonl", "Name one thing to do"),
        ("", "got none"),
        ("--init my_doctor.txt", "is a Python file, got my_doctor.txt. Give my_doctor.py."),
        ("--init mine.py", "mine.py is there already"),
        ("--init no/my.py", "no/my.py cannot be written: No such file"),
    ],
)
def test_a_mistake_is_explained_with_exit_code_2(
    rules: Rules, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", *arguments.split()]) == cli.USAGE == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("renorm: ") == 1
    assert message in captured.err
    assert Path("mine.py").read_text() == CASE


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fails", ("The case mine.py:fails raised an error", "ZeroDivisionError: in the factory")),
        ("leaves", ("The case mine.py:leaves raised an error", "SystemExit: 3")),
        (
            "wrong_loss",
            (
                "The diagnosis of mine.py:wrong_loss raised an error",
                "NameError: name 'nothing' is not defined",
                "renorm called loss(output, batch): the output is float32 (8, 2) on cpu",
            ),
        ),
        (
            "wrong_batches",
            (
                "mine.py:wrong_batches raised an error",
                "cannot be multiplied",
                "renorm called model(batch): the batch is float32 (8, 7) on cpu",
            ),
        ),
    ],
)
def test_an_error_in_the_users_code_is_shown_with_its_traceback(
    rules: Rules, name: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", f"mine.py:{name}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in parts:
        assert part in captured.err
    if name != "wrong_batches":  # raised by torch, in the model
        assert re.search(r'File ".*mine\.py", line \d+, in ', captured.err)


def test_a_file_that_does_not_import_is_shown_with_its_traceback(
    rules: Rules, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text("import torch\nimport no_such_thing\n")
    assert cli.main(["doctor", "broken.py:case"]) == 2
    error = capsys.readouterr().err
    assert 'broken.py", line 2' in error
    assert "No module named 'no_such_thing'" in error
    Path("torn.py").write_text("def case(:\n")
    assert cli.main(["doctor", "torn.py:case"]) == 2
    assert "SyntaxError" in capsys.readouterr().err


def test_ctrl_c_shows_the_findings_so_far(rules: Rules, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "mine.py:interrupted"]) == cli.INTERRUPTED == 130
    assert "Interrupted: these are the findings so far." in capsys.readouterr().err
    rules.severities = ("error",)
    assert cli.main(["doctor", "mine.py:interrupted", "--json", "it.jsonl"]) == 1
    captured = capsys.readouterr()
    assert "The error of them all" in captured.out
    assert json.loads(Path("it.jsonl").read_text().splitlines()[0])["interrupted"]


def test_ctrl_c_in_the_function_ends_it(rules: Rules, capsys: pytest.CaptureFixture[str]) -> None:
    Path("slow.py").write_text("def case():\n    raise KeyboardInterrupt\n")
    assert cli.main(["doctor", "slow.py:case"]) == 130
    assert capsys.readouterr().err == "renorm: interrupted\n"


def test_one_process_of_several_shows(
    rules: Rules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "_is_first", lambda: False)
    rules.severities = ("error",)
    assert cli.main(["doctor", "mine.py:case", "--json", "it.jsonl"]) == 1
    assert capsys.readouterr() == ("", "")
    assert not Path("it.jsonl").exists()


def test_the_template_runs_as_it_is(rules: Rules, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--init", "my_doctor.py"]) == 0
    assert "Now: renorm doctor my_doctor.py:case" in capsys.readouterr().err
    written = Path("my_doctor.py").read_text()
    assert written.startswith('"""What renorm doctor is to look at:  renorm doctor my_doctor.py:')
    # a tenth of the training, for the time of it
    assert "(images[:1500], labels[:1500], 2)" in written
    Path("my_doctor.py").write_text(written.replace(":1500]", ":200]"))
    case = runpy.run_path("my_doctor.py")["case"]()
    assert isinstance(case, Case)
    assert {len(batch[0]) for batch in case.batches} == {2}
    assert cli.main(["doctor", "my_doctor.py:case", "--depth", "quick"]) == 0


def test_the_template_explains_every_entry() -> None:
    explained = textwrap.dedent(template.TEMPLATE)
    for name in Case.__dataclass_fields__:
        assert name == "processes" or re.search(rf"^ +(# )?{name}=", explained, re.MULTILINE), name


def test_help_says_what_the_function_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "renorm doctor --init my_doctor.py, then renorm doctor my_doctor.py:case",
        "(model, batches[, loss[, optimizer]])",
        "Exit codes",
        "Judge the measurement in this file again",
    ):
        assert part in text
