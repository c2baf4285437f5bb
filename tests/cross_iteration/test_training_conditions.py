"""Where people train: checkpointing, mixed precision, accumulation, compilation, copies."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import renorm
from cross_iteration.networks import (
    batches,
    network,
    norms,
    optimizer_of,
    same,
    state,
    trained,
)
from cross_iteration.test_state import kinds


class Checkpointed(nn.Module):
    def __init__(self, model: Any, parts: list[slice], reentrant: bool) -> None:
        super().__init__()
        self.model, self.parts, self.reentrant = model, parts, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            inner = self.model[part]
            x = checkpoint(inner, x.requires_grad_(), use_reentrant=self.reentrant)
        return x


@kinds
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("parts", [[slice(0, 5)], [slice(0, 3), slice(3, 5)]])
def test_activation_checkpointing_changes_nothing(
    kind: dict[str, Any], reentrant: bool, parts: list[slice]
) -> None:
    expected = network(**kind)
    outputs = trained(expected, optimizer_of(expected), batches(6))
    model = network(**kind)
    wrapped = Checkpointed(model, parts, reentrant)
    found = trained(wrapped, optimizer_of(model), batches(6))
    assert all(map(torch.equal, found, outputs))
    assert same(state(model), state(expected))


@kinds
def test_training_without_gradients_updates_as_batch_norm_does(kind: dict[str, Any]) -> None:
    model, expected = network(**kind), network(**kind)
    for x, _ in batches(4):
        with torch.no_grad():
            model(x)
        expected(x)
    assert same(state(model), state(expected))
    x, _ = next(batches(1))
    with torch.inference_mode():
        model(x)


@kinds
def test_autocast_keeps_history_in_float32_and_near_that_of_float32(kind: dict[str, Any]) -> None:
    model, expected = network(**kind), network(**kind)
    for x, _ in batches(6):
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        expected(x)
        for p, q in zip(model.parameters(), expected.parameters(), strict=True):
            with torch.no_grad():
                p.add_(0.02 * torch.randn_like(p))
                q.copy_(p)
    for norm, other in zip(norms(model), norms(expected), strict=True):
        assert {t.dtype for t in norm._history.tensors.values()} == {torch.float32}
        for found, wanted in zip(lags(norm), lags(other), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.01)


def lags(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of what is remembered at the weights of now."""
    history, source = norm._history, norm.source
    if source is None:
        return history.kept()
    W = source.weight.detach().flatten(1).unsqueeze(0).to(history.tensors["rest"].dtype)
    bias = None if source.bias is None else source.bias.detach()
    return history.means(W, bias, None)[:, :-1], history.variances(W)


@kinds
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_not_remembered(kind: dict[str, Any], poison: float) -> None:
    model = network(**kind)
    optimizer = optimizer_of(model)
    trained(model, optimizer, batches(5))
    before = state(model)
    x, dy = next(batches(1, seed=4))
    x[0, 0, 0, 0] = poison
    model(x).backward(dy)
    optimizer.zero_grad()
    after = state(model)
    for name in before:
        if not name.endswith("host"):  # the place of the lag that was not kept goes by
            assert torch.equal(after[name], before[name]), name
    outputs = trained(model, optimizer, batches(5, seed=5))
    assert all(y.isfinite().all() for y in outputs)
    assert all(t.isfinite().all() for t in state(model).values())


def test_a_batch_that_overflows_float16_is_not_remembered() -> None:
    model = network().half()
    x, dy = next(batches(1))
    model(x.half()).backward(dy.half())
    model((x * 6e4).half())
    assert all(t.isfinite().all() for t in state(model).values())


def test_first_batch_that_is_not_finite_leaves_the_window_empty() -> None:
    model = network()
    x, _ = next(batches(1))
    model(x * float("inf"))
    assert all(norm._history.empty for norm in norms(model))
    assert [norm.num_batches_tracked for norm in norms(model)] == [0, 0]
    y = model(x)
    assert y.isfinite().all()


@kinds
def test_micro_batches_are_iterations(kind: dict[str, Any]) -> None:
    model, expected = network(**kind), network(**kind)
    with renorm.accumulate(model):
        for x, _ in batches(4):
            model(x)
    for x, _ in batches(4):
        expected(x)
    assert same(state(model), state(expected))


def test_with_equal_weights_the_window_is_the_joint_batch() -> None:
    model = network(window=4).double()
    data = [x.double() for x, _ in batches(4)]
    outputs = [model[0](x).detach() for x in data]
    for x in data[:3]:
        model[1](model[0](x))
    _, mean, var = renorm.functional.cross_iteration_batch_norm(outputs[3], *lags(model[1]))
    joint = torch.cat(outputs)
    torch.testing.assert_close(mean, joint.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, joint.var((0, 2, 3), correction=0), rtol=1e-12, atol=1e-12)


# torch warns of itself: it looks at .grad of what comes out of the part that is not compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_is_that_of_eager_with_graph_breaks(backend: str) -> None:
    expected = network()
    outputs = trained(expected, optimizer_of(expected), batches(5))
    torch._dynamo.reset()
    model = network()
    found = trained(torch.compile(model, backend=backend), optimizer_of(model), batches(5))
    for a, b in zip(found, outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(norm._history.position == 5 for norm in norms(model))


def test_eval_compiles_to_one_graph_and_exports_plain_batch_norm() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(3))
    model.eval()
    x, _ = next(batches(1))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    graph = torch.export.export(model, (x,)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not any("renorm" in name for name in called)


def test_frozen_layers_use_running_statistics_and_remember_nothing() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(3))
    renorm.freeze(model).train()
    before = state(model)
    x, _ = next(batches(1))
    found = model(x)
    assert same(state(model), before)
    torch.testing.assert_close(found, model.eval()(x))
    renorm.unfreeze(model).train()(x)
    assert not same(state(model), before)


@kinds
def test_eval_between_training_steps_changes_nothing(kind: dict[str, Any]) -> None:
    model, expected = network(**kind), network(**kind)
    optimizers = optimizer_of(model), optimizer_of(expected)
    for data in batches(4):
        trained(expected, optimizers[1], iter([data]))
        trained(model, optimizers[0], iter([data]))
        model.eval()(data[0])
        model.train()
    assert same(state(model), state(expected))


def test_copies_as_of_a_target_network_go_their_own_way() -> None:
    model = network()
    target = copy.deepcopy(model)
    trained(model, optimizer_of(model), batches(3))
    assert all(norm._history.empty for norm in norms(target))
    with torch.no_grad():
        for p, q in zip(target.parameters(), model.parameters(), strict=True):
            p.lerp_(q, 0.1)
    x, _ = next(batches(1))
    target.eval()(x)
    assert all(norm._history.empty for norm in norms(target))


def test_functional_call_is_told_of_the_parameters_it_gives() -> None:
    model, expected = network(), network()
    for x, _ in batches(3):
        model(x)
        expected(x)
    changed = {name: 1.1 * p.detach() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in expected.named_parameters():
            p.copy_(changed[name])
    x, _ = next(batches(1, seed=8))
    found = torch.func.functional_call(model, changed, (x,))
    torch.testing.assert_close(found, expected(x))


def test_limits_correct_towards_the_running_statistics() -> None:
    open_wide = renorm.limits.fixed(float("inf"), float("inf"))
    model = network(limits=open_wide)
    optimizer = optimizer_of(model)
    trained(model, optimizer, batches(4))
    x, _ = next(batches(1))
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    closed, none = network(limits=renorm.limits.fixed(1, 0)), network()
    for y, z in zip(
        trained(closed, optimizer_of(closed), batches(4)),
        trained(none, optimizer_of(none), batches(4)),
        strict=True,
    ):
        torch.testing.assert_close(y, z)
    row = renorm.summary(network(limits=renorm.limits.fixed(2, 1))).rows[0]
    assert (row.r_max, row.d_max) == (2.0, 1.0)


def test_second_derivatives_hold_the_lags() -> None:
    model = network().double()
    for x, _ in batches(3):
        model(x.double())
    norm, (mean, var) = model[1], lags(model[1])

    def normalized(y: torch.Tensor) -> torch.Tensor:
        return renorm.functional.cross_iteration_batch_norm(y, mean, var, norm.weight)[0]

    y = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(normalized, (y,))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_the_average_of_the_windows(momentum: float | None) -> None:
    model = network(momentum=momentum, window=1)
    plain = renorm.to_batchnorm(network(momentum=momentum, window=1))
    for x, _ in batches(4):
        model(x)
        plain(x)
    torch.testing.assert_close(model[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(model[4].running_var, plain[4].running_var)
    assert model[1].num_batches_tracked == plain[1].num_batches_tracked == 4


def test_without_running_statistics_the_window_serves_in_eval_too() -> None:
    torch.manual_seed(0)
    source = nn.Linear(3, 4)
    norm = renorm.CrossIterationBatchNorm1d(4, track_running_stats=False, window=3)
    norm.attach(source)
    for _ in range(3):
        norm(source(torch.randn(5, 3)))
    x = torch.randn(5, 3)
    expected = copy.deepcopy((source, norm))
    found = norm.eval()(source(x))
    torch.testing.assert_close(found, expected[1](expected[0](x)))


def test_calibration_sees_the_inputs_of_the_layers() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(3))
    before = [norm._history.position for norm in norms(model)]
    data = [x for x, _ in batches(3, seed=6)]
    renorm.calibrate(model, data)
    joint = torch.cat([model[0](x) for x in data]).detach()
    torch.testing.assert_close(model[1].running_mean, joint.mean((0, 2, 3)))
    assert [norm._history.position for norm in norms(model)] == before
