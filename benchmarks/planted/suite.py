"""All cases, and what the doctor makes of one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import renorm
from planted import healthy, of_batches, of_channels, of_statistics, of_use
from planted.case import Case, Patient
from planted.ground import Ground
from renorm.doctor import Diagnosis
from renorm.lab.isolation import isolated
from renorm.measure.records import FixTrial

DISEASES = (*of_batches.CASES, *of_statistics.CASES, *of_channels.CASES, *of_use.CASES)
CONTROLS = healthy.CASES
CASES = {case.name: case for case in (*DISEASES, *CONTROLS)}
TOP = 2


@dataclass(frozen=True)
class Outcome:
    """What the doctor said of a case.

    Args:
        case: its name.
        planted: id of the finding that was planted; None for a control.
        found: ids and severities of the findings, the worst first.
        hit: whether the planted one is among the first two; of a control, whether none is an
            error.
        sick, well: as in ``Patient``.
        fix: that was ranked first; None if none was tried.
        cured: whether that is one that was expected; None if none was tried.
        gains: fixes in their order, each with its mean gain in loss, or None if it has none.
        training, diagnosis: seconds, of the patient's making and of the doctor.
    """

    case: str
    planted: str | None
    found: tuple[tuple[str, str], ...]
    hit: bool
    sick: float | None
    well: float | None
    fix: str | None
    cured: bool | None
    gains: tuple[tuple[str, float | None], ...]
    training: float
    diagnosis: float


def diagnose(patient: Patient, *, fixes: bool = False) -> Diagnosis:
    """What the doctor finds; with ``fixes``, what helps too."""
    model, said = patient.model, patient.setting
    return renorm.diagnose(
        model,
        patient.batches,
        patient.loss,
        held_out=patient.held_out if fixes else None,
        purpose=said.purpose,
        steps=said.steps,
        accumulation=said.accumulation,
        processes=said.processes,
        before=patient.before,
        try_fixes=fixes,
    )


def examine(case: Case, ground: Ground, *, fixes: bool = False) -> tuple[Outcome, Diagnosis]:
    """Make the patient of a case, and have it diagnosed.

    Args:
        case: of the suite.
        ground: what the patient is made of.
        fixes: whether to try fixes, where one of them is expected to help.
    """
    begun = time.perf_counter()
    with isolated(ground.seed):
        patient = case.make(ground)
        made = time.perf_counter()
        diagnosis = diagnose(patient, fixes=fixes and bool(case.fixes))
    ended = time.perf_counter()
    found = tuple((one.id, one.severity) for one in diagnosis.findings)
    trials = diagnosis.survey.of(FixTrial)
    fix = next((trial.fix for trial in trials), None)
    outcome = Outcome(
        case=case.name,
        planted=case.planted,
        found=found,
        hit=is_hit(case, found),
        sick=patient.sick,
        well=patient.well,
        fix=fix,
        cured=None if fix is None else fix in case.fixes,
        gains=tuple((trial.fix, _mean(trial.gains)) for trial in trials),
        training=made - begun,
        diagnosis=ended - made,
    )
    return outcome, diagnosis


def _mean(gains: Sequence[float | None]) -> float | None:
    told = [gain for gain in gains if gain is not None]
    return fmean(told) if told else None


def is_hit(case: Case, found: tuple[tuple[str, str], ...]) -> bool:
    """Whether the findings, ids and severities, are what they should be."""
    if case.planted is None:
        return all(severity != "error" for _, severity in found)
    return any(one in (case.planted, *case.accepted) for one, _ in found[:TOP])
