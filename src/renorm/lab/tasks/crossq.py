"""CrossQ of sb3-contrib with other norms in its nets; only to be imported where that is installed.

Source: Bhatt et al. 2024 (arXiv 1902.05605), as in sb3_contrib/crossq of sb3-contrib 2.9.2.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm as Theirs
from sb3_contrib.crossq import policies
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# (their layer, whether it normalizes the input of the net) -> what stands in its place
Replacement = Callable[[Theirs, bool], nn.Module]


class Diverged(Exception):  # noqa: N818 - an outcome, caught by the task
    """A loss of the critic or of the actor is not finite."""


class Switched(nn.Module):
    """A net of CrossQ whose norms are put into train and eval mode, whatever their class.

    CrossQ does this several times a step: only the joint forward of the critic, and the actor's in
    its own update, use and move batch statistics. sb3-contrib finds the layers by its own class.
    """

    def set_bn_training_mode(self, mode: bool) -> None:
        """Put every batch norm in train or eval mode."""
        for module in self.modules():
            if isinstance(module, (Theirs, _BatchNorm)):
                module.train(mode)


class Actor(Switched, policies.Actor):
    """Their actor with any norm."""


class Critic(Switched, policies.CrossQCritic):
    """Their pair of critics with any norm."""


class Policy(policies.CrossQPolicy):
    """Their policy with other norms, in place before the optimizers collect the parameters.

    Their layers draw no random numbers, so policies with one seed start from the same weights.

    Args:
        *args: of their policy.
        replacement: makes the norms from theirs.
        **options: of their policy.
    """

    def __init__(self, *args: Any, replacement: Replacement, **options: Any) -> None:
        self._replacement = replacement  # their constructor builds the nets
        super().__init__(*args, **options)

    def make_actor(self, features_extractor: Any = None) -> Actor:
        """The actor, with its norms replaced."""
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return self._replaced(Actor(**options)).to(self.device)

    def make_critic(self, features_extractor: Any = None) -> Critic:
        """The critics, with their norms replaced."""
        options = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return self._replaced(Critic(**options)).to(self.device)

    def _replaced(self, net: Any) -> Any:
        nets = [part for part in net.modules() if isinstance(part, nn.Sequential)]
        for part in nets:
            for place, layer in enumerate(part):
                if isinstance(layer, Theirs):
                    part[place] = self._replacement(layer, place == 0)
        return net


class Agent(CrossQ):
    """CrossQ on the CPU that prints and writes nothing, and keeps what its updates took and lost.

    Args:
        *args: of CrossQ.
        **options: of CrossQ.

    Attributes:
        seconds: processor time of each update; every third one updates the actor, too.
        losses: of the critic in each update.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, device="cpu", verbose=0, **options)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.set_logger(Logger(None, []))  # the default makes a folder for itself

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update the critic, and the actor when it is its turn.

        Raises:
            Diverged: a loss is not finite.
        """
        started = time.process_time()
        super().train(gradient_steps, batch_size)
        self.seconds.append(time.process_time() - started)
        found = self.logger.name_to_value
        self.losses.append(float(found["train/critic_loss"]))
        if not math.isfinite(self.losses[-1] + found.get("train/actor_loss", 0.0)):
            raise Diverged


def environments(name: str, count: int) -> DummyVecEnv:
    """So many of gymnasium's environments of one name, which take their steps together."""
    return DummyVecEnv([lambda: gymnasium.make(name)] * count)


def returns(agent: CrossQ, test: DummyVecEnv) -> list[float]:
    """The return of an episode in each environment, with the deterministic policy."""
    found, _ = evaluate_policy(
        agent, test, test.num_envs, deterministic=True, return_episode_rewards=True, warn=False
    )
    return [float(one) for one in found]  # type: ignore[union-attr]
