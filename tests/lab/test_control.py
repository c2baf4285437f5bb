"""CrossQ on Pendulum: whose layers are in it, what a run gives back, and what is refused."""

import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError, MissingExtraError
from renorm.lab import training
from renorm.lab.conditions import CONDITIONS
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import NORMALIZERS, Setting
from renorm.lab.tasks import Plan, control
from renorm.lab.tasks.control import BASELINE, LEARNING_STARTS, NORMS, Control
from renorm.lab.tasks.registry import load
from renorm.nn import BatchRenorm1d
from renorm.report.records import Specification

WHY = "trains with sb3-contrib's CrossQ: pip install -c constraints.txt sb3-contrib"
pytest.importorskip("sb3_contrib", reason=WHY)

SHORT = Specification("pendulum", "crossq", "batch_renorm", "iid", 0, 106, 1e-3, 8, 4)
BATCH_NORMS = ("batch_renorm", "batch_norm", BASELINE.name)


def plan(**changes: Any) -> Plan:
    specification = replace(SHORT, **changes)
    normalizer = NORMALIZERS.get(specification.normalizer, BASELINE)
    return Plan(specification, normalizer, CONDITIONS[specification.condition])


def tiny(warmup: int = 100_000) -> Control:
    return Control(actor=(8, 8), critic=(8, 8), warmup=warmup)


def agent(name: str, task: Control | None = None, seed: int = 0) -> Any:
    with isolated(seed):
        return (task or tiny()).agent(plan(normalizer=name, seed=seed))


def norms(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if hasattr(m, "running_mean") or hasattr(m, "ra_mean")]


def statistics(net: nn.Module) -> list[Tensor]:
    return [b.clone() for m in norms(net) for b in m.buffers()]


@pytest.fixture(autouse=True)
def two_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "EPISODES", 2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load", lambda name, model, data: tiny())


@pytest.mark.usefixtures("small")
def test_the_same_specification_gives_the_same_record_and_leaves_no_trace() -> None:
    folders = set(Path(tempfile.gettempdir()).glob("SB3-*"))
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    first = training.run(SHORT)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert set(Path(tempfile.gettempdir()).glob("SB3-*")) == folders
    np.random.rand(1)
    assert training.run(SHORT) == first
    assert training.run(replace(SHORT, seed=1)).curve != first.curve
    assert first.metric == "return"
    assert not first.percent
    assert first.step_seconds is not None
    assert first.step_seconds > 0


@pytest.mark.usefixtures("small")
def test_curve_and_loss_cover_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    record = training.run(SHORT)
    assert [step for step, _ in record.curve] == [11, 22, 32, 43, 53, 64, 75, 85, 96, 106]
    assert record.score == record.curve[-1][1]
    assert record.score is not None
    assert record.loss is not None
    assert -2000 < record.score < 0
    assert record.loss > 0
    assert record.diverged_at is None
    assert capfd.readouterr() == ("", "")


def test_normalizers_share_weights_and_what_is_seen_before_the_first_update() -> None:
    weights, seen = [], []
    for name in NORMS:
        one = agent(name)
        linear = [m for m in one.policy.modules() if isinstance(m, nn.Linear)]
        weights.append([m.weight.detach().clone() for m in linear])
        with isolated(0):
            one.learn(5)
        seen.append(one.replay_buffer.observations[:5].copy())
    assert all(len(one) == 4 + 2 * 3 for one in weights)
    for others, observations in zip(weights[1:], seen[1:], strict=True):
        assert all(map(torch.equal, others, weights[0]))
        assert np.array_equal(observations, seen[0])


def test_the_layers_are_ours_with_the_settings_of_theirs() -> None:
    ours, theirs = agent("batch_renorm"), agent(BASELINE.name)
    pairs = list(zip(norms(ours.policy), norms(theirs.policy), strict=True))
    assert [a.num_features for a, _ in pairs] == [3, 8, 8, 4, 8, 8, 4, 8, 8]
    for a, b in pairs:
        assert type(a) is BatchRenorm1d
        assert type(b).__module__.startswith("sb3_contrib")
        assert (a.num_features, a.eps, a.momentum) == (b.num_features, b.eps, b.momentum)
        assert a.limits(b.warmup_steps - 1) == (1, 0)
        assert a.limits(b.warmup_steps) == (b.rmax, b.dmax)
    for net in (ours.actor, ours.critic):
        learned = {id(p) for group in net.optimizer.param_groups for p in group["params"]}
        assert learned == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("batch_norm", [nn.BatchNorm1d] * 3),
        ("layer_norm", [nn.Identity, nn.LayerNorm, nn.LayerNorm]),
    ],
)
def test_other_norms_stand_where_theirs_do(name: str, kinds: list[type]) -> None:
    one = agent(name)
    for net in (one.actor.latent_pi, one.critic.qf0, one.critic.qf1):
        found = [m for m in net if not isinstance(m, nn.Linear | nn.ReLU)]
        assert [type(m) for m in found] == kinds
    assert not any(isinstance(m, nn.LayerNorm) for m in agent("none").policy.modules())


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_statistics_move_in_training_as_crossq_has_it_and_not_in_evaluation(name: str) -> None:
    one = agent(name)
    with isolated(0):
        one.learn(LEARNING_STARTS)
        before = statistics(one.policy)
        one.policy.predict(np.zeros((4, 3), np.float32), deterministic=True)
        assert all(map(torch.equal, statistics(one.policy), before))
        one.train(3, 8)
    counts = [int(b) for b in statistics(one.policy) if b.dim() == 0]
    assert counts == [1] * 3 + [3] * 6  # the actor's update is every third
    assert not any(map(torch.equal, statistics(one.policy), before))
    assert not any(m.training for m in norms(one.policy))
    after = statistics(one.policy)
    with isolated(0):
        control._crossq().returns(one, control._crossq().environments("Pendulum-v1", 2))
    assert all(map(torch.equal, statistics(one.policy), after))


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_modes_are_switched_alike(name: str) -> None:
    one, modes = agent(name), []

    def note(module: nn.Module, args: Any) -> None:
        modes.append(module.training)

    with isolated(0):
        one.learn(LEARNING_STARTS)
        for layer in norms(one.policy):
            layer.register_forward_pre_hook(note)
        one.train(3, 8)
    critic_update = [False] * 3 + [True] * 6  # next actions by the actor; the joint forward
    actor_update = [True] * 3 + [False] * 6
    assert modes == critic_update * 3 + actor_update


# What follows puts sb3-contrib's layer beside ours. It takes the unbiased variance v N / (N - 1)
# where ours takes v, and averages variances where ours averages deviations. With
# c^2 = (N - 1) / N its
#     (x - mu) / sqrt(v / c^2 + eps) = c (x - mu) / sqrt(v + c^2 eps)
# is ours with c^2 eps for eps and a weight times c.


def their_layer(features: int, **settings: Any) -> Any:
    from sb3_contrib.common.torch_layers import BatchRenorm1d as Theirs

    return Theirs(features, **settings).double()


def our_layer(theirs: Any) -> Any:
    return NORMS["batch_renorm"](theirs, False).double()


def random_batches(n: int, count: int, features: int) -> list[Tensor]:
    spread = torch.linspace(0.5, 2, features, dtype=torch.float64)
    noise = torch.randn(count, n, features, dtype=torch.float64)
    return list((noise * (1 + 0.3 * torch.rand(count, 1, 1)) + 1) * spread)


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """The output and the gradients by x, weight and bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def assert_equal_but_for_rounding(actual: Tensor, expected: Tensor) -> None:
    # float64: sums of 12 terms up to 20 round by 12 * 20 * 2^-53 = 3e-14, and division by
    # deviations of 0.1 at least, twice in a gradient, leaves that below 1e-11
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_in_the_warm_up_ours_is_theirs_but_for_the_factor_of_the_unbiased_variance() -> None:
    n, features, eps = 12, 5, 1e-3
    c = ((n - 1) / n) ** 0.5
    theirs = their_layer(features, eps=eps)
    ours = our_layer(theirs)
    assert ours.eps == eps
    ours.eps = eps * c**2
    for x in random_batches(n, 6, features):
        weight, bias = torch.rand(2, features, dtype=torch.float64) + 0.5
        with torch.no_grad():
            theirs.scale.copy_(weight)
            theirs.bias.copy_(bias)
            ours.weight.copy_(weight * c)
            ours.bias.copy_(bias)
        dy = torch.randn_like(x)
        y, dx, dscale, dbias = gradients(theirs, x, dy)
        own_y, own_dx, own_dweight, own_dbias = gradients(ours, x, dy)
        for actual, expected in (
            (own_y, y),
            (own_dx, dx),
            (own_dweight * c, dscale),
            (own_dbias, dbias),
            (ours.running_mean, theirs.ra_mean),
        ):
            assert_equal_but_for_rounding(actual, expected)
    assert int(ours.num_batches_tracked) == int(theirs.steps) == 6


def test_at_the_batch_of_the_task_outputs_differ_by_a_thousandth_at_most() -> None:
    n = 2 * Control.batch_size  # the joint forward
    theirs = their_layer(4)
    ours = our_layer(theirs)
    for x in random_batches(n, 3, 4):
        share = (theirs(x) / ours(x)).detach()
        # c (v + eps)^(1/2) / (v + c^2 eps)^(1/2)
        assert ((n - 1) / n) ** 0.5 <= float(share.min())
        assert float(share.max()) < 1
    assert 1 - ((n - 1) / n) ** 0.5 < 1e-3


def test_their_running_variance_is_ours_and_the_spread_of_the_deviations() -> None:
    n, features, eps, m, count = 12, 5, 1e-3, 0.2, 20
    theirs = their_layer(features, eps=eps, momentum=m)
    ours = our_layer(theirs)
    batches = random_batches(n, count, features)
    for x in batches:
        theirs(x)
        ours(x)
    shares = [(1 - m) ** count, *(m * (1 - m) ** (count - 1 - i) for i in range(count))]
    weights = torch.tensor(shares, dtype=torch.float64)[:, None]
    first = torch.ones(features, dtype=torch.float64)
    biased = torch.stack([first, *(x.var(0, correction=0) for x in batches)])
    unbiased = torch.stack([first, *(x.var(0) for x in batches)])
    sigma = (biased + eps).sqrt()
    mean = (weights * sigma).sum(0)
    spread = (weights * (sigma - mean) ** 2).sum(0)
    correction = (weights * (unbiased - biased)).sum(0)
    assert (spread > 1e-3).all()
    assert_equal_but_for_rounding(ours.running_var + spread + correction, theirs.ra_var)


def test_within_open_limits_the_two_are_the_same_function_of_x_but_for_eps() -> None:
    n, features, eps, warmup, count = 12, 5, 1e-14, 4, 10
    # theirs open behind the step that its warm-up names, ours at it
    theirs = their_layer(features, eps=eps, momentum=0.5, warmup_steps=warmup - 1)
    settings = their_layer(features, eps=eps, momentum=0.5, warmup_steps=warmup)
    ours = our_layer(settings)
    for step, x in enumerate(random_batches(n, count, features)):
        mean, var = theirs.ra_mean.clone(), theirs.ra_var.clone()
        ours.running_mean.copy_(mean)
        ours.running_var.copy_(var)
        dy = torch.randn_like(x)
        expected, actual = gradients(theirs, x, dy), gradients(ours, x, dy)
        if step < warmup:
            assert not torch.allclose(actual[0], expected[0], rtol=1e-2)  # the factor c
            continue
        assert_equal_but_for_rounding(actual[0], (x - mean) / var.sqrt())  # no limit is reached
        for mine, other in zip(actual, expected, strict=True):
            assert_equal_but_for_rounding(mine, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "clustered"}, r"only the condition 'iid', got 'clustered'"),
        (
            {"normalizer": "cross_iteration"},
            r"take batch_renorm, batch_norm, layer_norm, none\. Leave",
        ),
        ({"normalizer": "group_norm"}, "no normalizer 'group_norm'"),
        ({"steps": LEARNING_STARTS}, "first 100 steps take random actions .* got 100 steps"),
        ({"batch_size": 1}, "at least 2, got 1"),
        ({"ranks": 2}, "one process, got 2 ranks"),
    ],
)
def test_what_has_no_meaning_here_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tiny().check(plan(**changes))


def test_what_has_a_meaning_is_not_refused() -> None:
    for name in NORMS:
        tiny().check(plan(normalizer=name))
    assert type(load("pendulum", "crossq", None)) is Control


def test_their_layer_is_for_this_task_alone() -> None:
    with pytest.raises(ArgumentError, match=r"no other model has\. Take batch_renorm"):
        BASELINE.apply(nn.BatchNorm1d(3), Setting(None, 10, torch.zeros(1, 3)))


def test_without_sb3_contrib_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "renorm.lab.tasks.crossq", raising=False)
    monkeypatch.delattr("renorm.lab.tasks.crossq", raising=False)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[rl\]"'):
        tiny().check(plan())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_loss_that_is_not_finite_is_a_record(lr: float) -> None:
    record = training.run(replace(SHORT, normalizer="none", lr=lr))
    assert record.diverged_at is not None
    assert LEARNING_STARTS < record.diverged_at <= LEARNING_STARTS + 4
    assert (record.score, record.loss, record.step_seconds) == (None, None, None)
    assert [step for step, _ in record.curve] == [11, 22, 32, 43, 53, 64, 75, 85, 96]


@pytest.mark.usefixtures("small")
def test_a_return_that_is_not_finite_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def returns(agent: Any, test: Any) -> list[float]:
        return [float("nan"), 0.0]

    monkeypatch.setattr(control._crossq(), "returns", returns)
    assert training.run(SHORT).diverged_at == 11
