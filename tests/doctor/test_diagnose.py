"""What renorm.diagnose takes, refuses, and gives."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from doctored import finding, loss, model, rows
from torch import Tensor, nn

import renorm
from renorm.doctor import Diagnosis, diagnosing, trying
from renorm.errors import ArgumentError
from renorm.measure.records import (
    MODEL,
    BatchNoise,
    Converted,
    FixTrial,
    LimitsAhead,
    OutputGap,
    RankSpread,
    Record,
    Setting,
    Survey,
)


def test_findings_are_of_all_records(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Survey] = []

    def judge(survey: Survey) -> tuple:
        judged.append(survey)
        return (finding("error"), finding("note"))

    ahead = LimitsAhead("1", 100, 3.0, 5.0)
    spread = RankSpread("1", 2, 0.5, 0.1)
    changed = Converted("1", "BatchRenorm1d", "SyncBatchNorm", True, False)
    asked: list[Any] = []
    monkeypatch.setattr(diagnosing, "judge", judge)
    monkeypatch.setattr(diagnosing, "limits_ahead", lambda *a: asked.append(a) or (ahead,))
    monkeypatch.setattr(diagnosing, "rank_spread", lambda *a: asked.append(a) or (spread,))
    monkeypatch.setattr(diagnosing, "converted", lambda *a: asked.append(a) or (changed,))
    net, before = model(), model()
    found = renorm.diagnose(
        net, rows(), loss, before=before, purpose="finetuning", steps=100, accumulation=4
    )
    assert isinstance(found, Diagnosis)
    assert found.survey is judged[0]
    assert found.worst == "error"
    setting = Setting(MODEL, "finetuning", 100, 4, 1)
    assert found.records[-4:] == (setting, ahead, changed, spread)
    assert {BatchNoise, OutputGap} <= set(map(type, found.records))
    assert asked == [(net, 100), (before, net), (net,)]


def test_what_is_not_said_is_not_assumed() -> None:
    found = renorm.diagnose(model(), rows())
    assert found.survey.of(Setting) == (Setting(MODEL, "training", None, 1, 1),)
    assert found.survey.of(Converted) == ()
    assert found.trials == ()


class Trials(tuple[FixTrial, ...]):
    interrupted = False


def trial(fix: str, *gains: float) -> FixTrial:
    return FixTrial(MODEL, fix, "", 5, tuple(range(len(gains))), gains, gains, 1.0, "")


def test_fixes_are_tried_with_all_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def try_fixes(*given: Any, **options: Any) -> Trials:
        calls.append((given, options))
        return Trials([trial("calibrate", 0.2, 0.3)])

    monkeypatch.setattr(trying, "try_fixes", try_fixes)
    net, batches, held_out = model(), rows(), rows(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options: dict[str, Any] = {"optimizer": optimizer, "held_out": held_out, "seed": 3}
    found = renorm.diagnose(
        net, batches, loss, try_fixes=True, fixes=["calibrate"], trial_steps=5, trial_seeds=2,
        **options,
    )  # fmt: skip
    assert [one.fix for one in found.trials] == ["calibrate"]
    ((given, passed),) = calls
    assert given == (net, batches, loss)
    more = {"fixes": ("calibrate",), "steps": 5, "seeds": 2, "forward": None, "progress": None}
    assert passed == {**options, **more}
    assert "calibrate +0.25" in str(found)


def test_trials_that_were_interrupted_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials([trial("calibrate", 0.2)])
    trials.interrupted = True
    monkeypatch.setattr(trying, "try_fixes", lambda *_, **__: trials)
    found = renorm.diagnose(model(), rows(), loss, try_fixes=True)
    assert found.survey.interrupted
    assert len(found.trials) == 1


def test_an_interrupt_gives_the_findings_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("called after an interrupt")

    monkeypatch.setattr(trying, "try_fixes", never)
    monkeypatch.setattr(diagnosing, "rank_spread", never)  # other processes may not be there
    monkeypatch.setattr(diagnosing, "judge", lambda survey: (finding(),))

    class Interrupted(list[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from rows(3)
            raise KeyboardInterrupt

    found = renorm.diagnose(model(), Interrupted(), loss, try_fixes=True)
    assert (found.survey.interrupted, found.survey.batches) == (True, 3)
    assert found.survey.of(BatchNoise)
    assert found.survey.of(Setting)
    assert found.worst == "warning"


@dataclass
class Pair:
    x: Tensor
    y: Tensor


class Detector(nn.Module):
    """Takes a dataclass, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, batch: Pair) -> dict[str, Any]:
        return {"scores": self.inner(batch.x), "name": "scores"}


def scored(output: Any, batch: Any) -> Tensor:
    scores = output["scores"] if isinstance(output, dict) else output
    target = batch.y if isinstance(batch, Pair) else scores.detach() * 0
    return (scores[:, 0] - target.reshape(len(scores), -1)[:, 0]).square().mean()


@pytest.mark.parametrize(
    ("made", "wrap"),
    [
        (model, lambda x: (x, x[:, 0])),
        (model, lambda x: [x, x[:, 0]]),
        (model, lambda x: {"input": x}),
        (Detector, lambda x: Pair(x, x[:, 0])),
    ],
    ids=["tuple", "list", "dict", "dataclass"],
)
def test_batches_and_outputs_in_each_form(made: Any, wrap: Any) -> None:
    found = renorm.diagnose(made(), [wrap(x) for x in rows()], scored)
    assert found.survey.complete
    (gap,) = found.survey.of(OutputGap)
    assert gap.gap is not None
    assert gap.loss_running is not None


def test_a_generator_is_read_once_and_may_end_early() -> None:
    found = renorm.diagnose(model(), (x for x in rows(3)), loss)
    assert (found.survey.batches, found.survey.complete) == (3, True)


def test_batches_of_other_shapes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    batches = [torch.randn(n, 3, side, side) for n, side in ((4, 8), (2, 12), (1, 6), (3, 8))]
    found = renorm.diagnose(net, batches, loss)
    assert (found.survey.examples, found.survey.complete) == (10, True)


def test_batches_that_do_not_fit_are_refused_by_the_model() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        renorm.diagnose(model(), rows(width=5), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    found = renorm.diagnose(model().to(dtype), [x.to(dtype) for x in rows()], loss)
    (gap,) = found.survey.of(OutputGap)
    assert gap.gap is not None


def test_autocast() -> None:
    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch.float())

    found = renorm.diagnose(model().float(), rows(), loss, forward=forward)
    (gap,) = found.survey.of(OutputGap)
    assert gap.gap is not None
    with torch.autocast("cpu", torch.bfloat16):
        outside = renorm.diagnose(model().float(), [x.float() for x in rows()], loss)
    assert outside.survey.complete


def test_a_compiled_model_is_looked_at_uncompiled() -> None:
    torch.manual_seed(0)
    net = model()
    compiled: Any = torch.compile(net, backend="eager")
    compiled(rows()[0])
    assert renorm.diagnose(compiled, rows(), loss) == renorm.diagnose(net, rows(), loss)


def test_progress_tells_of_every_batch() -> None:
    steps: list[tuple] = []
    renorm.diagnose(model(), rows(2), progress=lambda *step: steps.append(step))
    assert steps[:2] == [("train mode", 1, 2), ("train mode", 2, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": nn.Sequential(nn.Linear(3, 3))}, "Sequential has no normalization layer"),
        ({"model": "resnet18"}, "model is a torch.nn.Module, got str"),
        ({"batches": []}, "no batch to measure by"),
        ({"batches": iter([])}, "no batch to measure by"),
        ({"batches": torch.zeros(8, 3)}, r"got Tensor. For a single batch give \[batch\]"),
        ({"purpose": "fun"}, "purpose is 'training', 'finetuning', 'export', got 'fun'"),
        ({"steps": -1}, "steps is a whole number from 0 on .* got -1"),
        ({"accumulation": 1.5}, "accumulation is a whole number from 1 on .* got 1.5"),
        ({"processes": True}, "processes is a whole number from 1 on .* got True"),
        ({"depth": "full"}, "depth is 'quick', 'standard', 'deep', got 'full'"),
        ({"fixes": ["calibrate"]}, "fixes are tried with try_fixes=True, got fixes="),
        ({"before": 3}, "before is a torch.nn.Module, got int"),
        (
            {"try_fixes": True, "loss": lambda y, x: 1 / 0, "fixes": ["sgd"]},  # before any work
            "fixes are among calibrate.* got",
        ),
        ({"try_fixes": True}, "takes a loss to train by, got None"),
        ({"try_fixes": True, "loss": loss, "fixes": ["bn"]}, "fixes are among calibrate, .*'bn'"),
        (
            {"try_fixes": True, "loss": loss, "batches": iter(rows())},
            "reads the batches several times, got list_iterator",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        renorm.diagnose(**{"model": model(), "batches": rows(), **changes})


def test_it_is_imported_where_it_is_first_asked_for() -> None:
    code = (
        "import sys, renorm; assert not [m for m in sys.modules if m.startswith("
        "('renorm.doctor', 'renorm.measure'))]; "
        "renorm.diagnose, renorm.doctor; "
        "assert not {'rich', 'cyclopts', 'plotly', 'jinja2', 'sklearn', 'scipy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_are_records() -> None:
    assert all(isinstance(one, Record) for one in renorm.diagnose(model(), rows()).records)
