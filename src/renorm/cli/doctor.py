"""``renorm doctor``: what is wrong with a model, and what helps."""

import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import torch.distributed as dist
from cyclopts import Parameter
from rich.console import Console

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED
from renorm.cli.progress import Stages
from renorm.doctor import Case, Diagnosis, diagnose, template
from renorm.doctor.case import case_of
from renorm.errors import ArgumentError
from renorm.findings import SEVERITIES
from renorm.lab.own import Kind, module_at, shown
from renorm.report import diagnosis_console

Flag = Annotated[bool, Parameter(negative="")]
Names = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")]
_KIND = Kind("case", "my_doctor.py:case", "renorm doctor --init my_doctor.py writes an example")
_JSON, _HTML = (".jsonl", ".json"), (".html", ".htm")


def doctor(
    target: str | None = None,
    /,
    *,
    json: Path | None = None,
    html: Path | None = None,
    depth: Literal["quick", "standard", "deep"] = "standard",
    try_fixes: Flag = False,
    fixes: Names = None,
    seed: int = 0,
    fail_on: Literal["error", "warning", "never"] = "warning",
    again: Path | None = None,
    init: Path | None = None,
) -> int:
    """Measure what batch normalization does to YOUR model on your batches, and say what is wrong.

    The target is a function of yours that gives the model, some batches, and what else there is:
    a loss, an optimizer, batches held out. `--init` writes one to begin with, which runs as it is.
    The model is not changed.

    Findings are shown the worst first, each with its figures, the layers, and code that can be
    pasted. Of the severity `error` is what costs accuracy or breaks, of `warning` what is likely
    to, of `note` what is worth knowing.

    Exit codes, for a continuous integration: 0 healthy, or notes alone; 1 findings, see
    `--fail-on`; 2 a mistake in what was asked, or an error in your code; 130 interrupted before
    anything was found. Ctrl-C shows the findings so far.

    To begin with:

    - `renorm doctor --init my_doctor.py`, then `renorm doctor my_doctor.py:case`
    - `renorm doctor package.module:function --html doctor.html --json doctor.jsonl`
    - `renorm doctor my_doctor.py:case --try-fixes`: minutes, and says what each fix gains
    - `renorm doctor --again doctor.jsonl`: the same figures, judged by the rules of this version
    - `torchrun --nproc-per-node 2 -m renorm doctor my_doctor.py:case`: where the function sets up
      the process group; the first process shows what it found

    Parameters
    ----------
    target
        The function, as file.py:name or package.module:name. It takes no argument, and returns a
        renorm.doctor.Case, a dict with the same entries, or (model, batches[, loss[, optimizer]]).
    json
        Write all that was measured and found to this file, as JSON lines.
    html
        Write one page with charts to this file, which needs no network.
    depth
        quick compares a few batches in train and eval mode, standard every second one, deep all,
        and takes many times longer.
    try_fixes
        Train with each fix that suits from the present weights, and rank them by the loss on
        batches held out; needs a loss.
    fixes
        Try these fixes alone.
    seed
        Of what is drawn.
    fail_on
        The least severity that gives exit code 1.
    again
        Judge the measurement in this file again, instead of measuring.
    init
        Write a case to begin with to this file, and measure nothing.
    """
    if sum(given is not None for given in (target, again, init)) != 1:
        raise ArgumentError(
            f"Name one thing to do: a function of yours, as in {_KIND.example}, or --again with a "
            f"file that --json wrote, or --init with a file to be written; got "
            f"{_given(target, again, init)}."
        )
    _check_places(json, html)
    folder = Path.cwd()  # the user's code may go to another one
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if init is not None:
        template.write(init)
        messages.print(f"Wrote {init}. Now: renorm doctor {init}:case")
        return DONE
    if again is not None:
        found, command = Diagnosis.load(again), ["--again", str(again)]
    else:
        assert target is not None
        found = _diagnosed(target, depth, try_fixes or fixes is not None, fixes, seed)
        command = [target, *_options(depth, try_fixes, fixes, seed)]
    if _is_first():
        _show(found, json, html, folder, shlex.join(["renorm", "doctor", *command]), messages)
    return _code(found, fail_on)


def load_case(target: str) -> Case:
    """What the function of a user gives.

    Raises:
        ArgumentError: there is none, or it raises an error, or returns something else.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ArgumentError(
            f"The target is a file or a module, a colon, and a function in it, got {target!r}. "
            f"Give it as in {_KIND.example}; {_KIND.template}."
        )
    module = module_at(place, _KIND)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if _is_own(value, module.__name__)]
        raise ArgumentError(
            f"{place} has no function {name!r}. It has {', '.join(own) or 'none'}: give the name "
            "of one that takes no argument after the colon."
        )
    with shown(f"The case {target}"):
        return case_of(factory(), target)


def _diagnosed(
    target: str, depth: str, try_fixes: bool, fixes: tuple[str, ...] | None, seed: int
) -> Diagnosis:
    case = load_case(target)
    stages = Stages(Console(stderr=True)) if _is_first() else nullcontext()
    # an error of the model, the loss or the batches is the user's, with the traceback to it
    with stages as progress, shown(f"The diagnosis of {target}"):
        return diagnose(
            **case.arguments(),
            try_fixes=try_fixes,
            fixes=_split(fixes),
            depth=depth,
            progress=progress,
            seed=seed,
        )


def _show(
    found: Diagnosis,
    json: Path | None,
    html: Path | None,
    folder: Path,
    command: str,
    messages: Console,
) -> None:
    diagnosis_console.show(found.survey, found.findings, Console(), html)
    if json is not None:
        found.to_json(folder / json)
        messages.print(f"Figures: {json}")
    if html is not None:
        found.to_html(folder / html, command=command)
        messages.print(f"Page: {html}")
    if found.survey.interrupted:
        messages.print("Interrupted: these are the findings so far.")


def _code(found: Diagnosis, fail_on: str) -> int:
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != "never" else ()
    if found.worst in failing:
        return SOME_FAILED
    return INTERRUPTED if found.survey.interrupted else DONE


def _check_places(json: Path | None, html: Path | None) -> None:
    """Refuse files whose names say that they are something else, before any work."""
    for option, path, wrong, right in (
        ("--json", json, _HTML, ".jsonl"),
        ("--html", html, _JSON, ".html"),
    ):
        if path is None:
            continue
        if path.suffix.lower() in (*wrong, ".py"):
            raise ArgumentError(
                f"{option} would write over {path}, which is of another kind by its name. Give "
                f"{path.with_suffix(right)}."
            )
        if not path.parent.is_dir():
            raise ArgumentError(
                f"{path} cannot be written: there is no folder {path.parent}. Give another file, "
                "in a folder that is there."
            )
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            why = "it is a folder" if path.is_dir() else "permission denied"
            raise ArgumentError(f"{path} cannot be written: {why}. Give another file.")


def _given(target: str | None, again: Path | None, init: Path | None) -> str:
    named = {"": target, "--again ": again, "--init ": init}
    return " and ".join(f"{k}{v}" for k, v in named.items() if v is not None) or "none"


def _options(depth: str, try_fixes: bool, fixes: tuple[str, ...] | None, seed: int) -> list[str]:
    words = [] if depth == "standard" else ["--depth", depth]
    words += ["--try-fixes"] if try_fixes else []
    words += ["--fixes", *fixes] if fixes else []
    return [*words, *(["--seed", str(seed)] if seed else [])]


def _split(names: tuple[str, ...] | None) -> list[str] | None:
    if names is None:
        return None
    return [part for name in names for part in name.split(",") if part.strip()]


def _is_own(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module


def _is_first() -> bool:
    """Whether this process shows and writes, of several that measure together."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
