"""Scripts of benchmarks/ as commands, without a new process that imports torch again."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Done(NamedTuple):
    """What a command has left."""

    code: int
    out: str
    err: str


def command(script: str, *arguments: str) -> Done:
    """Run it as ``python script arguments`` does; an error that it raises is the test's."""
    path, out, err = str(BENCHMARKS / script), io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "path", [str(BENCHMARKS), *sys.path]),
        patch.object(sys, "argv", [path, *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(path, run_name="__main__")
    code = ended.value.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())
