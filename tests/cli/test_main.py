import subprocess
import sys

import pytest

import renorm
from renorm import cli


def test_help_teaches_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "renorm compare",
        "renorm doctor",
        "renorm env",
        "renorm bench",
        "Exit codes: 0 done, 1 some runs failed or the doctor has findings, 2 a",
    ):
        assert part in text


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "Start here" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == renorm.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compar"], 'Unknown command "compar". Did you mean "compare"?'),
        (["compare", "--sede", "3"], "Did you mean --seeds?"),
        (["compare", "--steps", "many"], 'unable to convert "many" into int'),
        (["compare", "stray"], "stray"),
        (["compare", "--seeds"], "--seeds requires an argument"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.USAGE == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("renorm: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    verb = " compare" if arguments[0] == "compare" else ""
    assert captured.err.endswith(f"See: renorm{verb} --help\n")


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in list(sys.modules):
        if loaded.startswith(("renorm.cli.", "renorm.report.console")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(("module", "named"), [("cyclopts", "cyclopts"), ("rich.console", "rich")])
def test_a_missing_extra_is_one_line_with_the_command(
    module: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without(module, monkeypatch)
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == (
        f"renorm: The command line needs {named}, which is not installed. "
        'Run: pip install "renorm[lab]"\n'
    )


def test_a_defect_of_ours_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without("renorm.lab.experiment", monkeypatch)
    with pytest.raises(ImportError, match="experiment"):
        cli.main(["env"])


def test_an_interruption_anywhere_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main([]) == cli.INTERRUPTED == 130
    assert capsys.readouterr().err == "renorm: interrupted\n"


def test_the_arguments_of_the_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["renorm", "--version"])
    assert cli.main() == 0
    assert renorm.__version__ in capsys.readouterr().out


LOADED = """
import runpy, sys, torch
before = set(sys.modules)
import renorm
print(*set(sys.modules) - before)
sys.argv[1:] = ["--version"]
try:
    runpy.run_module("renorm", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
print(*sys.modules)
"""


def test_a_part_is_loaded_when_it_is_asked_for() -> None:
    """In a new process: by the import, no part and no optional package; by the command, no verb."""
    command = [sys.executable, "-c", LOADED]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported, version, after = result.stdout.splitlines()
    packages = {name.partition(".")[0] for name in imported.split()}
    assert packages <= {"renorm", "json", "_json", "fractions", "_decimal"}
    parts = ("renorm.bench", "renorm.lab", "renorm.report", "renorm.cli")
    assert not [name for name in imported.split() if name.startswith(parts)]
    assert version == renorm.__version__
    assert not [name for name in after.split() if name.startswith("renorm.bench")]
