"""The application: its verbs, its help, and what becomes of a mistake in the arguments."""

from collections.abc import Sequence

from cyclopts import App, CycloptsError

import renorm
from renorm.cli.bench import bench
from renorm.cli.compare import compare
from renorm.cli.doctor import doctor
from renorm.cli.env import env
from renorm.cli.report import report
from renorm.cli.reproduce import reproduce
from renorm.errors import ArgumentError

HELP = """Batch normalization that works on the batches people really have.

Start here:

- `renorm compare` trains small nets with each normalizer on real images and shows where batch norm
  fails and what to use instead. A minute or two, no download.
- `renorm doctor` measures what batch norm does to YOUR model on your batches, says what is wrong,
  and which fix helps. `renorm doctor --init my_doctor.py` writes an example to begin with.
- `renorm reproduce` runs the experiments of a paper in small, and gives a verdict on each claim.
- `renorm report` shows results files again, merged: tables, and a page with charts.
- `renorm env` shows versions, devices, and which kernel each layer would use and why: put it into
  every bug report.
- `renorm bench` measures what a training step of each layer costs beside nn.BatchNorm. A minute.

Exit codes: 0 done, 1 some runs failed or the doctor has findings, 2 a mistake in what was asked,
130 interrupted.
"""

app = App(
    name="renorm",
    help=HELP,
    help_format="markdown",
    version=renorm.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says so, and returns the exit code
)
app.command(compare)
app.command(doctor)
app.command(report)
app.command(reproduce)
app.command(env)
app.command(bench)


def dispatch(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments name, and return its exit code.

    Raises:
        ArgumentError: the arguments name no verb, or options or values it does not have.
    """
    try:
        code = app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        verb = " ".join(["renorm", *(error.command_chain or ())])
        raise ArgumentError(f"{error} See: {verb} --help") from error
    return int(code or 0)
