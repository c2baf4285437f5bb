"""What a task is to the lab, and what a run of it is given and gives back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from renorm.lab.conditions import Condition
from renorm.lab.normalizers import Normalizer
from renorm.lab.ranks import ALONE, Ranks
from renorm.report.records import Corrections, Specification


@dataclass(frozen=True)
class Metric:
    """What a score is called and how it is read; more is better.

    Args:
        name: a word or two, such as ``accuracy``.
        about: one sentence for the legend of a table.
        percent: whether scores are fractions, shown as percentages.
    """

    name: str
    about: str
    percent: bool = True


@dataclass(frozen=True)
class Plan:
    """A run, with the names of its specification looked up.

    Args:
        specification: what to run.
        normalizer: what stands where the model has nn.BatchNorm.
        condition: how batches are put together.
        ranks: the processes that share the run's batches.
    """

    specification: Specification
    normalizer: Normalizer
    condition: Condition
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Outcome:
    """What came out of training; ``renorm.report.records.Record`` says what the entries are."""

    score: float | None
    train_mode_score: float | None = None
    eval_mode_score: float | None = None
    loss: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    corrections: tuple[Corrections, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    diverged_at: int | None = None
    step_seconds: float | None = None


class Task(ABC):
    """Something to train, and a score to judge it by.

    Most tasks are ``Supervised``, which has the training loop; a task with a loop of its own
    (reinforcement learning) is a direct subclass.

    The class attributes are the settings of a run where none are given; ``data_parallel`` says
    whether ``train`` heeds ``Plan.ranks``, so that several processes may share a run.
    """

    metric: ClassVar[Metric]
    steps: ClassVar[int] = 1000
    lr: ClassVar[float] = 0.1
    batch_size: ClassVar[int] = 32
    group_size: ClassVar[int] = 4
    normalizers: ClassVar[tuple[str, ...]] = ("batch_norm", "batch_renorm", "group_norm")
    conditions: ClassVar[tuple[str, ...]] = ("iid", "microbatch", "clustered")
    data_parallel: ClassVar[bool] = False

    @abstractmethod
    def check(self, plan: Plan) -> None:
        """Refuse, before any run, a condition or sizes that do not fit the data.

        Raises:
            ArgumentError: with what is allowed.
        """

    @abstractmethod
    def train(self, plan: Plan) -> Outcome:
        """Train and test once, drawing from torch's generator, which is seeded for the run.

        The same plan gives the same outcome, ``step_seconds`` apart. A loss that is not finite is
        an outcome (``diverged_at``), any other trouble an exception.
        """
