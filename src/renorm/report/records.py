"""What is kept of a training run: the one currency between measuring and showing.

A record is one line of JSON with a schema version, what was run and its hash, what came out, and
where it ran.
"""

import hashlib
import json
import types
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from renorm.errors import RecordError

SCHEMA = 1
RECIPE = 1


@dataclass(frozen=True)
class Specification:
    """Everything a run's result depends on, apart from the versions of the code.

    Args:
        task, normalizer, condition: names in the tables of ``renorm.lab``.
        seed: of the initial weights and of the data order; normalizers with one seed share both.
        steps: gradient steps.
        lr: learning rate at the start; it falls to 0 along a cosine.
        batch_size: examples in one gradient.
        group_size: examples that share statistics where the condition has groups.
        recipe: version of the training loop, nets and samplers; a change of them that changes
            results raises it, so that old records are not taken for new ones.
    """

    task: str
    normalizer: str
    condition: str
    seed: int
    steps: int
    lr: float
    batch_size: int
    group_size: int
    recipe: int = RECIPE

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name this specification, the same on every machine."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.normalizer}, {self.condition}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """What came out of one run; all accuracies are fractions of test images, 0 to 1.

    ``accuracy`` is over all test images in eval mode, that is by the running statistics. The
    other two are over one and the same draw of test batches, put together as the condition
    puts together training batches: once in train mode (every batch with the statistics of its
    groups, the running ones as the training left them), once in eval mode. Same images and same
    weights, so their difference, the gap, is due to the statistics alone.

    Args:
        specification: what was run.
        accuracy: test accuracy after the last step, in eval mode; None if the run diverged.
        train_mode_accuracy: on the test batches, in train mode; None if the run diverged.
        eval_mode_accuracy: on the same batches, in eval mode; None if the run diverged.
        loss: mean training loss over the last tenth of the steps; None if the run diverged.
        curve: (step, test accuracy in eval mode) after each tenth of the run.
        diverged_at: first step with a loss that is not finite, or None.
        cpu_seconds: processor time of the run; no part of equality.
        environment: versions, platform and commit; no part of equality.
    """

    specification: Specification
    accuracy: float | None
    train_mode_accuracy: float | None
    eval_mode_accuracy: float | None
    loss: float | None
    curve: tuple[tuple[int, float], ...] = ()
    diverged_at: int | None = None
    cpu_seconds: float = field(default=0.0, compare=False)
    environment: dict[str, str | None] = field(default_factory=dict, compare=False)

    @property
    def gap(self) -> float | None:
        """Train-mode less eval-mode accuracy on the same images; None if the run diverged."""
        if self.train_mode_accuracy is None or self.eval_mode_accuracy is None:
            return None
        return self.train_mode_accuracy - self.eval_mode_accuracy


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
    if content.pop("schema") != SCHEMA:
        raise RecordError(f"its schema is not {SCHEMA}, the one this version reads and writes")
    key = content.pop("key", None)
    specification = _build(Specification, content.pop("specification", None))
    record = _build(Record, {**content, "specification": specification})
    if key != specification.key:
        raise RecordError(f"its key {key!r} is not that of its specification")
    return record


def _build(cls: Any, data: Any) -> Any:
    """An instance of a dataclass from JSON's types, each field checked against its annotation."""
    if not isinstance(data, dict):
        raise RecordError(f"it has no {cls.__name__.lower()} object")
    names = {entry.name for entry in fields(cls)}
    if data.keys() != names:
        wrong = ", ".join(sorted(data.keys() ^ names))
        raise RecordError(f"its {cls.__name__.lower()} has missing or unknown entries: {wrong}")
    hints = get_type_hints(cls)
    values = {name: _tuples(value) for name, value in data.items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise RecordError(f"its {name} is {data[name]!r}, which is not {hints[name]}")
    return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
        )
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, parts[1]) for part in value.values())
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)
