"""Reinforcement learning with CrossQ, where batch renorm takes the place of target networks."""

from collections.abc import Callable, Sequence
from contextlib import closing
from math import ceil, isfinite
from statistics import fmean, median
from typing import Any, ClassVar

from torch import nn

from renorm import limits
from renorm.errors import ArgumentError, MissingExtraError
from renorm.lab.normalizers import Normalizer
from renorm.lab.tasks.base import Metric, Outcome, Plan, Task
from renorm.nn import BatchRenorm1d

SB3 = "sb3_batch_renorm"
EPISODES, MARKS = 20, 10
LEARNING_STARTS = 100  # steps of random actions before the first update
# initial states of the evaluation episodes: the same for every run, but not for a search
TEST_STARTS = {"test": 1_000_000, "validation": 2_000_000}


def _layer_norm(theirs: Any, is_input: bool) -> nn.Module:
    # among the three figures of an observation it would remove what they say
    return nn.Identity() if is_input else nn.LayerNorm(theirs.num_features, theirs.eps)


# what takes the place of sb3-contrib's layer, with that layer's settings
NORMS: dict[str, Callable[[Any, bool], nn.Module]] = {
    "batch_renorm": lambda theirs, is_input: BatchRenorm1d(
        theirs.num_features,
        theirs.eps,
        theirs.momentum,
        limits=limits.crossq(theirs.warmup_steps),
    ),
    "batch_norm": lambda theirs, is_input: nn.BatchNorm1d(
        theirs.num_features, theirs.eps, theirs.momentum
    ),
    "layer_norm": _layer_norm,
    "none": lambda theirs, is_input: nn.Identity(),
    SB3: lambda theirs, is_input: theirs,
}


def _only_here(model: nn.Module, setting: object) -> nn.Module:
    raise ArgumentError(
        f"The normalizer {SB3!r} is sb3-contrib's own layer in its CrossQ, which no other model "
        "has. Take batch_renorm."
    )


# the baseline of benchmarks/crossq.py; not in the table that a user chooses from
BASELINE = Normalizer(SB3, "sb3-contrib's own layer, as its CrossQ has it", _only_here)


class Control(Task):
    """A continuous control task of gymnasium, learned by sb3-contrib's CrossQ.

    Norms are on the input and behind each ReLU, with CrossQ's momentum of 0.01 and eps of 1e-3.
    ``batch_norm`` is nn.BatchNorm1d and ``batch_renorm`` ours with these settings and
    ``limits.crossq()``: **up to 100,000 updates that is batch norm**, so that r and d never act in
    a short run. ``layer_norm`` leaves the input as it is. A step is one of the environment; from
    the 101st on an update follows each, and every third update is the actor's, too. The learning
    rate is constant.

    Args:
        environment: name of a gymnasium environment with a box of actions.
        actor, critic: widths of the hidden layers. Critics of the paper have 2,048 and those of
            sb3-contrib 1,024, which Pendulum does not need.
        warmup: updates of a layer before r and d act.
    """

    metric: ClassVar[Metric] = Metric(
        "return",
        f"mean return of {EPISODES} evaluation episodes with the deterministic policy",
        percent=False,
    )
    steps: ClassVar[int] = 10_000
    lr: ClassVar[float] = 1e-3
    batch_size: ClassVar[int] = 256
    normalizers: ClassVar[tuple[str, ...]] = ("batch_norm", "batch_renorm", "layer_norm")
    conditions: ClassVar[tuple[str, ...]] = ("iid",)

    def __init__(
        self,
        environment: str = "Pendulum-v1",
        actor: Sequence[int] = (256, 256),
        critic: Sequence[int] = (256, 256),
        warmup: int = 100_000,
    ) -> None:
        self._environment = environment
        self._widths = {"pi": list(actor), "qf": list(critic)}
        self._warmup = warmup

    def check(self, plan: Plan) -> None:
        """Refuse what has no meaning here: conditions, normalizers, sizes.

        Raises:
            ArgumentError: with what is allowed.
            MissingExtraError: sb3-contrib or gymnasium is not installed.
        """
        specification, name = plan.specification, plan.normalizer.name
        if plan.condition.name not in self.conditions:
            raise ArgumentError(
                "A replay batch is drawn at random from all that was seen, so the task "
                f"{specification.task!r} has only the condition 'iid', got {plan.condition.name!r}."
            )
        if name not in NORMS:
            allowed = ", ".join(one for one in NORMS if one != SB3)
            raise ArgumentError(
                f"The task {specification.task!r} has no normalizer {name!r}: CrossQ's nets take "
                f"{allowed}. Leave it out."
            )
        if specification.steps <= LEARNING_STARTS:
            raise ArgumentError(
                f"The first {LEARNING_STARTS} steps take random actions and train nothing, got "
                f"{specification.steps} steps. Give more; {self.steps} are the default."
            )
        if specification.batch_size < 2:
            raise ArgumentError(
                "Batch statistics need a replay batch of at least 2, got "
                f"{specification.batch_size}."
            )
        if specification.ranks != 1:
            raise ArgumentError(
                f"The task {specification.task!r} trains in one process, got "
                f"{specification.ranks} ranks."
            )
        _crossq()

    def agent(self, plan: Plan) -> Any:
        """The untrained agent of a run, a CrossQ, with all generators of its own seeded."""
        crossq, specification = _crossq(), plan.specification
        agent = crossq.Agent(
            crossq.Policy,
            self._environments(1),
            specification.lr,
            buffer_size=specification.steps,
            learning_starts=LEARNING_STARTS,
            batch_size=specification.batch_size,
            policy_kwargs={
                "replacement": NORMS[plan.normalizer.name],
                "net_arch": self._widths,
                "renorm_warmup_steps": self._warmup,
            },
        )
        # what their seed= does, less seeding the generators of the process, those of GPUs included
        agent.action_space.seed(specification.seed)
        agent.env.seed(specification.seed)
        return agent

    def train(self, plan: Plan) -> Outcome:
        """Train, and evaluate after each tenth of the steps; draws from numpy's generator, too."""
        specification, crossq = plan.specification, _crossq()
        steps, agent, test = specification.steps, self.agent(plan), self._environments(EPISODES)
        curve: list[tuple[int, float]] = []
        with closing(agent.env), closing(test):
            for mark in (ceil(steps * part / MARKS) for part in range(1, MARKS + 1)):
                try:
                    agent.learn(mark - agent.num_timesteps, reset_num_timesteps=False)
                except crossq.Diverged:
                    return Outcome(None, curve=tuple(curve), diverged_at=agent.num_timesteps)
                test.seed(TEST_STARTS[specification.split])
                returns = crossq.returns(agent, test)
                if not isfinite(sum(returns)):
                    return Outcome(None, curve=tuple(curve), diverged_at=mark)
                curve.append((mark, fmean(returns)))
        late = agent.losses[-ceil(steps / MARKS) :]
        return Outcome(
            score=curve[-1][1],
            loss=fmean(late),
            curve=tuple(curve),
            step_seconds=median(agent.seconds),
        )

    def _environments(self, count: int) -> Any:
        return _crossq().environments(self._environment, count)


def _crossq() -> Any:
    """The module of this package that needs sb3-contrib.

    Raises:
        MissingExtraError: sb3-contrib or gymnasium is not installed.
    """
    try:
        from renorm.lab.tasks import crossq
    except ImportError as error:
        raise MissingExtraError(
            "Control tasks train by sb3-contrib's CrossQ in gymnasium's environments, which are "
            f'not installed ({error}). Run: pip install "renorm[rl]"'
        ) from error
    return crossq
