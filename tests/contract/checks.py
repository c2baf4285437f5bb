"""The contract: what every layer must do on every case, as functions that raise.

Each check gets its layers from a trial of a subject, so the same list judges our layers, torch's
batch norm where the semantics agree, and layers with planted bugs.
"""

import copy
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from contract.trial import Trial, made, state_of
from renorm import limits
from support.cases import HALF, Case, Inputs, inputs
from support.oracle import expected
from support.subjects import BATCH_NORM, Subject, arguments, fill, step
from support.tolerance import assert_close, bound

STATE = {"running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Check:
    """A named part of the contract, and where it applies."""

    run: Callable[[Trial], None]
    when: Callable[[Subject, Case], bool]

    @property
    def id(self) -> str:
        return self.run.__name__


CHECKS: list[Check] = []


def check(
    when: Callable[[Subject, Case], bool] = lambda s, c: True,
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    def register(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
        CHECKS.append(Check(run, lambda s, c: s.serves(c) and when(s, c)))
        return run

    return register


def _agrees(subject: Subject, case: Case) -> bool:
    return subject.renormalizes or case.limits == (1.0, 0.0)


def _ours(subject: Subject, case: Case) -> bool:
    return subject.renormalizes


def _whole(case: Case) -> bool:
    """Whether each channel loses the means that the whole batch has."""
    return case.backward == "batch" and not (case.microbatch or case.masked)


def _followed(case: Case, t: Inputs, y: Tensor) -> Tensor:
    """What follows the normalization, done to its output."""
    y = y if t.residual is None else y + t.residual
    return y.relu() if case.relu else y


@check(when=_agrees)
def forward_matches_the_reference(trial: Trial) -> None:
    exact = trial.exact
    assert_close("y", trial.first.y, exact.y, trial.case.dtype, offset=exact.offset)


@check(when=_agrees)
def gradients_match_the_reference(trial: Trial) -> None:
    case, exact, first = trial.case, trial.exact, trial.first
    assert_close("dx", first.dx, exact.dx, case.dtype, scale=exact.dx_scale, offset=exact.offset)
    if exact.dresidual is not None and case.residual:
        assert_close("dresidual", first.dresidual, exact.dresidual, case.dtype)
    if case.affine:
        assert_close(
            "dweight", first.dweight, exact.dweight, case.dtype,
            scale=exact.dweight_scale, offset=exact.offset,
        )  # fmt: skip
    if case.affine and case.bias:
        assert_close("dbias", first.dbias, exact.dbias, case.dtype, scale=exact.dbias_scale)


@check(when=_ours)
def running_statistics_match_the_reference(trial: Trial) -> None:
    case, exact, state = trial.case, trial.exact, trial.first.state
    stored = case.parameter_dtype or case.dtype
    for name, value in (("running_mean", exact.new_mean), ("running_var", exact.new_var)):
        size = float(value.abs().max())
        # half the arithmetic bound: 1e-6 in float32
        assert_close(name, state[name], value, stored, scale=size * _half_or_one(stored))
    assert int(state["num_batches_tracked"]) == 1


def _half_or_one(dtype: torch.dtype) -> float:
    return 1.0 if dtype in HALF else 0.5


@check(when=_ours)
def second_step_uses_the_statistics_of_the_first(trial: Trial) -> None:
    case, layer = trial.case, trial.stepped
    later = inputs(case, step=1)
    later.running_mean, later.running_var = layer.running_mean.clone(), layer.running_var.clone()
    later.weight, later.bias = layer.weight, layer.bias
    exact = expected(case, later)
    y = layer(later.x, **arguments(later))
    assert_close("y", y, exact.y, case.dtype, offset=exact.offset)


@check(when=lambda s, c: BATCH_NORM.serves(c) and c.dtype == torch.float32)
def never_worse_than_batch_norm(trial: Trial) -> None:
    case, exact = trial.case, trial.plain.exact
    for name, ours, native, value, scale in zip(
        ("y", "dx"),
        trial.plain.first[:2],
        trial.batch_norm[:2],
        (exact.y, exact.dx),
        (float(exact.y.abs().max()), exact.dx_scale),
        strict=True,
    ):
        error, allowed = (float((v - value).abs().max()) for v in (ours, native))
        allowed = max(allowed, bound(case.dtype, scale))
        assert error <= allowed, f"{name}: error {error:.3g}, nn.BatchNorm's {allowed:.3g}"


@check(when=lambda s, c: BATCH_NORM.serves(c))
def limits_of_one_and_zero_are_batch_norm(trial: Trial) -> None:
    exact = trial.plain.exact
    scales = (float(exact.y.abs().max()), exact.dx_scale)
    both = trial.plain.first[:2], trial.batch_norm[:2]
    for ours, native, scale in zip(*both, scales, strict=True):
        assert_close(
            "batch norm", ours, native.double(), trial.case.dtype,
            scale=2 * scale, offset=exact.offset,
        )  # fmt: skip


@check(when=_ours)
def unclipped_training_is_inference(trial: Trial) -> None:
    case = replace(trial.case, limits=(float("inf"), float("inf")))
    layer, t = made(trial.subject, case)
    with torch.no_grad():
        inference = layer.eval()(t.x, **arguments(t))
        training = layer.train()(t.x, **arguments(t))
    exact = expected(case, t)
    scale = 2 * float(exact.y.abs().max())
    # eval subtracts at the size of x, whatever the batch's own offset is
    offset = float((t.x.abs().max().double() / (t.running_var.double() + case.eps).sqrt()).max())
    assert_close("training", training, inference.double(), case.dtype, scale=scale, offset=offset)


@check(when=lambda s, c: _ours(s, c) and _whole(c) and not c.followed)
def gradient_is_batch_norm_scaled_by_r(trial: Trial) -> None:
    """dx is BN's with weight gamma * r: anything more flows through r or d."""
    case, t = trial.case, inputs(trial.case)
    wide = t.x.double()
    dims = [0, *range(2, wide.dim())]
    var, _ = torch.var_mean(wide, dims, correction=0)
    sigma = (t.running_var.double() + case.eps).sqrt()
    r_max = case.limits[0]
    r = ((var + case.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
    gamma = torch.ones_like(r) if t.weight is None else t.weight.double()
    x = wide.clone().requires_grad_()
    F.batch_norm(x, None, None, gamma * r, None, True, 0.0, case.eps).backward(t.dy.double())
    assert x.grad is not None
    exact, dx = trial.exact, trial.first.dx
    assert_close("dx", dx, x.grad, case.dtype, scale=exact.dx_scale, offset=exact.offset)


@check()
def output_has_the_dtype_and_layout_of_the_input(trial: Trial) -> None:
    layer, t = made(trial.subject, trial.case)
    for y in (trial.first.y, layer.eval()(t.x, **arguments(t))):
        assert y.dtype == t.x.dtype
        assert y.shape == t.x.shape
        if trial.case.layout in ("contiguous", "channels_last"):
            assert y.stride() == t.x.stride()


@check()
def eval_is_native_batch_norm_and_changes_nothing(trial: Trial) -> None:
    case, (layer, t) = trial.case, made(trial.subject, trial.case)
    layer.eval()
    before = state_of(layer)
    y = layer(t.x, **arguments(t))
    native = F.batch_norm(
        t.x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=case.eps
    )
    if t.mask is not None:
        native = native * t.mask.unsqueeze(1)
    native = _followed(case, t, native)
    assert torch.equal(y, native)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@check(when=_ours)
def non_finite_batch_leaves_the_statistics(trial: Trial) -> None:
    layer, t = made(trial.subject, trial.case)
    before = state_of(layer)
    for bad in (float("nan"), float("inf")):
        x = t.x.clone(memory_format=torch.contiguous_format)
        x[0, 0] = bad
        y = layer(x, **arguments(t))
        assert not y[0, 0].isfinite().any(), "the output hides the bad values"
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    layer(t.x, **arguments(t))
    assert int(layer.num_batches_tracked) == 1


@check()
def statistics_stay_finite_in_their_dtype(trial: Trial) -> None:
    state = trial.first.state
    assert state["running_mean"].isfinite().all()
    assert state["running_var"].isfinite().all()


@check()
def state_is_that_of_batch_norm(trial: Trial) -> None:
    case, t, layer = trial.case, inputs(trial.case), trial.stepped
    plain = replace(case, masked=False, microbatch=None)
    theirs = BATCH_NORM.build(plain)
    assert list(layer.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    theirs.load_state_dict(layer.state_dict(), strict=True)
    fresh = trial.subject.build(case)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(t.x), layer.eval()(t.x))


@check()
def buffers_are_written_in_place(trial: Trial) -> None:
    first = trial.first
    assert set(first.buffers) == STATE
    assert first.buffers == first.buffers_before


@check()
def copies_and_pickles_train_on_alike(trial: Trial) -> None:
    layer = trial.stepped
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ]
    later = inputs(trial.case, step=1)
    results = []
    for one in (layer, *copies):
        one.zero_grad()
        results.append((*step(one, later), *one.state_dict().values()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@check(
    when=lambda s, c: (
        not (c.masked or c.constant_channel or c.followed) and c.dtype not in HALF and c.offset == 0
    )
)
def batch_norm_phase_ignores_an_affine_change_of_the_input(trial: Trial) -> None:
    case = trial.case
    layer, t = made(trial.subject, replace(case, limits=(1.0, 0.0), eps=1e-30))
    with torch.no_grad():
        y, moved = layer(t.x), layer(4 * t.x + 2 * case.spread)
    assert_close("y", moved, y.double(), case.dtype, scale=2 * float(y.abs().max()), offset=8.0)


@check(when=lambda s, c: c.masked)
def padding_is_never_read_and_becomes_zero(trial: Trial) -> None:
    case, (layer, t) = trial.case, made(trial.subject, trial.case)
    assert t.mask is not None
    keep = t.mask.unsqueeze(1).expand(t.x.shape)
    other = fill(trial.subject.build(case), t)
    y, dx = step(layer, t)
    t.x = torch.where(keep, t.x, float("nan"))
    y_again, dx_again = step(other, t)
    padding = _followed(case, t, torch.zeros_like(y))
    assert torch.equal(y[~keep], padding[~keep])
    assert torch.equal(dx[~keep], torch.zeros_like(dx[~keep]))
    assert torch.equal(y, y_again)
    assert torch.equal(dx, dx_again)
    assert torch.equal(layer.running_mean, other.running_mean)
    assert torch.equal(layer.running_var, other.running_var)


@check(when=lambda s, c: _ours(s, c) and c.id in ("2d", "4d", "microbatch"))
def correction_stays_within_its_limits_after_the_ramp(trial: Trial) -> None:
    case, (layer, t) = trial.case, made(trial.subject, trial.case)
    schedule = limits.over(20)
    for now in (0, 5, 20, 1_000, 100_000):
        fill(layer, t)
        layer.limits = schedule
        layer.num_batches_tracked.fill_(now)
        exact = expected(replace(case, limits=schedule(now)), t)
        y = layer(t.x, **arguments(t))
        assert_close(f"y at step {now}", y, exact.y, case.dtype, scale=float(exact.y.abs().max()))


@check(when=lambda s, c: c.offset == 1e4 and _ours(s, c))
def variance_survives_a_large_offset(trial: Trial) -> None:
    layer, t = made(trial.subject, replace(trial.case, momentum=1.0))
    layer(t.x)
    exact = t.x.double().var([0, *range(2, t.x.dim())], correction=0)
    error = float(((layer.running_var.double() - exact).abs() / exact).max())
    assert error <= 1e-5, f"relative error of the variance is {error:.3g}"


@check(when=lambda s, c: not c.masked and c.microbatch is None)
def order_of_examples_and_channels_does_not_matter(trial: Trial) -> None:
    case, t, y = trial.case, inputs(trial.case), trial.first.y
    examples = torch.arange(case.shape[0]).flip(0)
    channels = torch.arange(case.shape[1]).flip(0)
    turned = Inputs(
        x=t.x[examples][:, channels], dy=t.dy[examples][:, channels],
        running_mean=t.running_mean[channels], running_var=t.running_var[channels],
        weight=None if t.weight is None else t.weight[channels],
        bias=None if t.bias is None else t.bias[channels],
        residual=None if t.residual is None else t.residual[examples][:, channels],
    )  # fmt: skip
    layer = fill(trial.subject.build(case), turned)
    back = layer(turned.x, **arguments(turned)).detach()[examples][:, channels].double()
    scale = 2 * float(y.abs().max())
    assert_close("y", y, back, case.dtype, scale=scale, offset=trial.exact.offset)


@check(when=_ours)  # torch uses the changed statistics here, without a word
def backward_of_an_eval_forward_survives_a_training_step(trial: Trial) -> None:
    layer, t = made(trial.subject, trial.case)
    gradients = []
    for disturbed in (False, True):
        fill(layer, t)
        x = t.x.detach().clone().requires_grad_()
        y = layer.eval()(x, **arguments(t))
        if disturbed:
            layer.train()(t.x, **arguments(t))
        gradients += torch.autograd.grad(y, x, t.dy)
    assert torch.equal(*gradients)


def failures(trial: Trial, checks: Iterable[Check] = CHECKS) -> dict[str, Exception]:
    """What fails of all that applies, by check; a crash is a failure too."""
    failed = {}
    for one in checks:
        if one.when(trial.subject, trial.case):
            try:
                one.run(trial)
            except Exception as error:
                failed[one.id] = error
    return failed
