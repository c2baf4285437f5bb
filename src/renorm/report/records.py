"""What is kept of a training run: the one currency between measuring and showing.

A record is one line of JSON with a schema version, what was run and its hash, what came out, and
where it ran.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from renorm.decoding import decode
from renorm.errors import RecordError

SCHEMA = 3
RECIPE = 2


@dataclass(frozen=True)
class Specification:
    """Everything a run's result depends on, apart from the versions of the code.

    Args:
        task, model, normalizer, condition: names in the tables of ``renorm.lab``; a task of a
            user's own is ``file.py:Name`` or ``module:Name``.
        seed: of the initial weights and of the data order; normalizers with one seed share both.
        steps: gradient steps.
        lr: learning rate at the start; supervised tasks let it fall to 0 along a cosine.
        batch_size: examples in one gradient.
        group_size: examples that share statistics where the condition has groups.
        split: what is scored: ``test``, or ``validation``, a part held out of the training data
            for the choice of a learning rate.
        ranks: processes that share the batches of the run.
        source: fingerprint of the file of a user's own task; empty for a task of the package.
        recipe: version of the training loop, nets and samplers; a change of them that changes
            results raises it, so that old records are not taken for new ones.
    """

    task: str
    model: str
    normalizer: str
    condition: str
    seed: int
    steps: int
    lr: float
    batch_size: int
    group_size: int
    split: str = "test"
    ranks: int = 1
    source: str = ""
    recipe: int = RECIPE

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name this specification, the same on every machine."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        searched = f", lr {self.lr:g} on validation" if self.split == "validation" else ""
        return f"{self.normalizer}, {self.condition}, seed {self.seed}{searched}"


@dataclass(frozen=True)
class Corrections:
    """The corrections r and d of batch renorm at one step, over all channels of all layers.

    Args:
        step: training steps done before.
        r_max, d_max: the limits at that step.
        r, d: their 5, 25, 50, 75 and 95 % quantiles, after clipping.
        clipped_r, clipped_d: fractions that lie at a limit, 0 to 1.
    """

    step: int
    r_max: float
    d_max: float
    r: tuple[float, float, float, float, float]
    d: tuple[float, float, float, float, float]
    clipped_r: float
    clipped_d: float


@dataclass(frozen=True)
class Record:
    """What became of one run.

    ``score`` is over all test examples in eval mode, that is by the running statistics. The
    other two are over one and the same draw of test batches, put together as the condition
    puts together training batches: once in train mode (every batch with the statistics of its
    groups, the running ones as the training left them), once in eval mode. Same examples and same
    weights, so their difference, the gap, is due to the statistics alone.

    Args:
        specification: what was run.
        metric: what the scores are called, such as ``accuracy``.
        percent: whether scores are fractions, to be shown as percentages.
        score: after the last step, in eval mode; None if the run diverged or failed.
        train_mode_score: on the test batches, in train mode; None also where a task has no such
            thing.
        eval_mode_score: on the same batches, in eval mode.
        loss: mean training loss over the last tenth of the steps.
        curve: (step, score in eval mode) along the run.
        corrections: r and d along the run, where the normalizer has them.
        figures: (name, value) of what else the task measures.
        diverged_at: first step with a loss that is not finite, or None.
        error: the traceback of a run that failed, or None.
        step_seconds: processor time of a training step, the median; no part of equality.
        cpu_seconds: processor time of the run; no part of equality.
        environment: versions, platform and commit; no part of equality.
    """

    specification: Specification
    metric: str = "accuracy"
    percent: bool = True
    score: float | None = None
    train_mode_score: float | None = None
    eval_mode_score: float | None = None
    loss: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    corrections: tuple[Corrections, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    diverged_at: int | None = None
    error: str | None = None
    step_seconds: float | None = field(default=None, compare=False)
    cpu_seconds: float = field(default=0.0, compare=False)
    environment: dict[str, str | None] = field(default_factory=dict, compare=False)

    @property
    def gap(self) -> float | None:
        """Train-mode less eval-mode score on the same examples; None without both."""
        if self.train_mode_score is None or self.eval_mode_score is None:
            return None
        return self.train_mode_score - self.eval_mode_score


def to_line(record: Record) -> str:
    """The record as one line of JSON, without the newline."""
    content = {"schema": SCHEMA, "key": record.specification.key, **asdict(record)}
    return json.dumps(content, allow_nan=False)


def from_line(line: str) -> Record:
    """The record that ``to_line`` wrote.

    Raises:
        RecordError: not JSON, another schema, a key missing, unknown or of the wrong type, or a
            hash that does not belong to the specification.
    """
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise RecordError('it is not an object with a "schema"')
    if content.get("kind") == "Survey":
        raise RecordError("it begins a diagnosis; renorm doctor --again shows that")
    if content.pop("schema") != SCHEMA:
        raise RecordError(f"its schema is not {SCHEMA}, the one this version reads and writes")
    key = content.pop("key", None)
    record = decode(Record, content)
    if key != record.specification.key:
        raise RecordError(f"its key {key!r} is not that of its specification")
    return record
