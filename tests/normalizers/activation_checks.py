"""What every activation-based normalizer must do, as functions that raise.

The same list judges the layers and copies of them with planted bugs.
"""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normalizers.activation_subjects import Exact, Subject, numbers
from support.tolerance import assert_close


@dataclass(frozen=True)
class Case:
    """One kind of input: ``offset + noise``, another mean and deviation in each channel."""

    id: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    offset: float = 0.0
    affine: bool = True

    def serves(self, subject: Subject) -> bool:
        return subject.one_position or self.shape[2:] not in ((), (1, 1))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """``(x, dy)``."""
        g = torch.Generator().manual_seed(3)
        C, ones = self.shape[1], [1] * (len(self.shape) - 2)
        mean, spread = torch.randn(C, generator=g), torch.rand(C, generator=g) + 0.5
        x = torch.randn(self.shape, generator=g) * spread.view(-1, *ones) + mean.view(-1, *ones)
        x, dy = x + self.offset, torch.randn(self.shape, generator=g)
        x, dy = x.to(self.dtype), dy.to(self.dtype)
        return (x.to(memory_format=torch.channels_last) if self.channels_last else x), dy


PLAIN = Case("4d", (4, 12, 5, 3))
CASES = [
    PLAIN,
    Case("2d", (16, 12)),
    Case("3d", (6, 12, 7)),
    Case("5d", (2, 12, 3, 2, 2)),
    Case("one position", (9, 12, 1, 1)),
    Case("one example", (1, 12, 4, 4)),
    Case("no affine", (4, 12, 5, 3), affine=False),
    Case("float32", (4, 12, 5, 3), torch.float32),
    Case("channels last", (4, 12, 5, 3), torch.float32, channels_last=True),
    Case("large offset", (8, 12, 5, 3), torch.float32, offset=1e4),
    Case("bfloat16", (4, 12, 5, 3), torch.bfloat16),
    Case("float16", (4, 12, 5, 3), torch.float16),
    Case("float16 channels last", (4, 12, 5, 3), torch.float16, channels_last=True),
]


@dataclass(frozen=True)
class Trial:
    """A layer and an input."""

    subject: Subject
    case: Case

    def made(self, **options: Any) -> Any:
        """A new layer, in training, with parameters of at least float32."""
        dtype = torch.float64 if self.case.dtype == torch.float64 else torch.float32
        return self.subject.build(affine=self.case.affine, dtype=dtype, **options)

    def exact(self, layer: Any) -> Exact:
        x, dy = self.case.tensors()
        return self.subject.exact(layer, numbers(x), numbers(dy))

    @property
    def conditioning(self) -> float:
        """|mean| / std, which multiplies the rounding of a difference from the mean."""
        return max(1.0, 2 * self.case.offset)


def stepped(layer: Any, case: Case) -> tuple[Tensor, Tensor]:
    """A forward and backward pass: ``(y, dx)``."""
    x, dy = case.tensors()
    x.requires_grad_()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def step_matches_the_reference(trial: Trial) -> None:
    case, layer = trial.case, trial.made()
    exact = trial.exact(layer)
    y, dx = stepped(layer, case)
    x, dy = (numbers(t) for t in case.tensors())
    offset = trial.conditioning
    assert_close("y", y, torch.from_numpy(exact.y), case.dtype, offset=offset)
    # dx is a difference of terms up to four times as large
    size = 4 * float(np.abs(exact.dx).max())
    assert_close("dx", dx, torch.from_numpy(exact.dx), case.dtype, scale=size, offset=offset)
    terms = float(np.abs(dy).sum() * max(1.0, np.abs(exact.y).max(), np.abs(x).max()))
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    wanted = {k: v for k, v in exact.gradients.items() if k in gradients}
    assert gradients.keys() == wanted.keys()
    assert case.affine == ("weight" in wanted) == ("bias" in wanted)
    parameters = torch.float64 if case.dtype == torch.float64 else torch.float32
    for name, value in wanted.items():
        assert_close(
            f"d{name}", gradients[name], torch.from_numpy(value), parameters,
            scale=terms, offset=offset,
        )  # fmt: skip


def statistics_are_averaged(trial: Trial) -> None:
    for momentum in (0.3, None):
        layer = trial.made()
        if hasattr(layer, "momentum"):
            layer.momentum = momentum
        kept = {name: numbers(b) for name, b in layer.named_buffers()}
        objects = {name: id(b) for name, b in layer.named_buffers()}
        exact = trial.exact(layer)
        for count in range(2):
            stepped(layer, trial.case)
            rate = 1 / (count + 1) if momentum is None else momentum
            for name, value in exact.statistics.items():
                kept[name] = (1 - rate) * kept[name] + rate * value
        if exact.statistics:
            assert int(layer.num_batches_tracked) == 2
        assert set(kept) - {"num_batches_tracked"} == set(exact.statistics)
        assert objects == {name: id(b) for name, b in layer.named_buffers()}
        for name in exact.statistics:
            stored = layer.get_buffer(name)
            value = torch.from_numpy(kept[name])
            assert_close(name, stored, value, stored.dtype, offset=trial.conditioning)


def eval_matches_the_reference_and_changes_nothing(trial: Trial) -> None:
    case, layer = trial.case, trial.made()
    stepped(layer, case)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x, _ = case.tensors()
    inference = trial.subject.inference
    value = trial.exact(layer).y if inference is None else inference(layer, numbers(x))
    scale = max(1.0, float(np.abs(value).max()))
    offset = trial.conditioning
    assert_close("y", layer(x), torch.from_numpy(value), case.dtype, scale=scale, offset=offset)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert_close("one", layer(x[:1]), torch.from_numpy(value[:1]), case.dtype, scale=scale,
                 offset=offset)  # fmt: skip


def output_is_like_the_input(trial: Trial) -> None:
    x, _ = trial.case.tensors()
    layer = trial.made()
    for y in (layer(x), layer.eval()(x)):
        assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())


def non_finite_batch_leaves_the_statistics(trial: Trial) -> None:
    x, _ = trial.case.tensors()
    layer = trial.made()
    before = copy.deepcopy(layer.state_dict())
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[0, 0] = bad
        y = layer(broken)
        assert not y[0, 0].isfinite().all(), "the output hides the bad values"
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def affine_changes_matter_where_they_should(trial: Trial) -> None:
    if trial.case.dtype != torch.float64:
        return
    x, _ = trial.case.tensors()
    for name, moved, ignored in (
        ("shift", x + 3, trial.subject.ignores_shift),
        ("scale", 4 * x, trial.subject.ignores_scale),
    ):
        layers = [trial.made(eps=1e-30) for _ in range(2)]
        y, z = (layer(t).detach() for layer, t in zip(layers, (x, moved), strict=True))
        if ignored:
            assert_close(name, z, y, trial.case.dtype, offset=10.0)
        else:
            assert float((y - z).abs().max()) > 1e-3, f"a {name} of the input is lost"


def examples_are_apart_where_they_should(trial: Trial) -> None:
    x, _ = trial.case.tensors()
    if len(x) == 1:
        return
    layers = [trial.made() for _ in range(2)]
    other = torch.cat([x[:1], x[1:] * 3])
    y, z = (layer(t)[0] for layer, t in zip(layers, (x, other), strict=True))
    assert torch.equal(y, z) == trial.subject.alone


def copies_go_on_alike(trial: Trial) -> None:
    layer = trial.made()
    stepped(layer, trial.case)
    fresh = trial.made()
    fresh.load_state_dict(layer.state_dict(), strict=True)
    if hasattr(layer, "generator"):
        fresh.generator.set_state(layer.generator.get_state())
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh]
    copies.append(torch.load(stream, weights_only=False))
    first, *others = [
        (*stepped(one, trial.case), *one.state_dict().values()) for one in (layer, *copies)
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def backward_of_an_eval_forward_survives_a_training_step(trial: Trial) -> None:
    x, dy = trial.case.tensors()
    gradients = []
    for disturbed in (False, True):
        layer, given = trial.made(), x.clone().requires_grad_()
        y = layer.eval()(given)
        if disturbed:
            layer.train()(x)
        gradients += torch.autograd.grad(y, given, dy)
    assert torch.equal(*gradients)


CHECKS: list[Callable[[Trial], None]] = [
    step_matches_the_reference,
    statistics_are_averaged,
    eval_matches_the_reference_and_changes_nothing,
    output_is_like_the_input,
    non_finite_batch_leaves_the_statistics,
    affine_changes_matter_where_they_should,
    examples_are_apart_where_they_should,
    copies_go_on_alike,
    backward_of_an_eval_forward_survives_a_training_step,
]


def failures(trial: Trial) -> dict[str, Exception]:
    """What fails of all checks, by name; a crash is a failure too."""
    failed = {}
    for check in CHECKS:
        try:
            check(trial)
        except Exception as error:
            failed[check.__name__] = error
    return failed
