"""What goes on around a layer and its source: hooks, copies, changes of the source, far offsets."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import renorm
from cross_iteration.networks import batches, network, norms, optimizer_of, state, trained
from cross_iteration.test_state import kinds
from renorm.errors import ArgumentError
from renorm.kernels.patches import Geometry, mean_patch
from support.crossed import CASES, Case


@pytest.mark.parametrize("far", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("image", [False, True])
def test_an_input_far_from_zero_loses_no_variance_of_a_lag(far: float, image: bool) -> None:
    torch.manual_seed(0)
    source: Any = nn.Conv2d(16, 8, 3, bias=False) if image else nn.Linear(16, 8, bias=False)
    norm: Any = (
        renorm.CrossIterationBatchNorm2d(8) if image else renorm.CrossIterationBatchNorm1d(8)
    )
    norm.attach(source)
    x = torch.randn(8, 16, 12, 12) if image else torch.randn(64, 16)
    for _ in range(2):
        norm(source(x + far))
    source(x + far)
    y = copy.deepcopy(source).double()(x.double())
    dims = (0, 2, 3) if image else (0,)
    found, expected = norm._seen.lags[1][:, 0].double(), y.var(dims, correction=0).detach()
    # float32 rounds x itself by far * 6e-8 of its deviation
    torch.testing.assert_close(found, expected, rtol=2e-6 * far + 1e-5, atol=0.0)


@pytest.mark.parametrize("how", ["thawed", "averaged"])
def test_weights_without_gradient_that_change_are_compensated(how: str) -> None:
    torch.manual_seed(0)
    source, norm = nn.Linear(6, 4), renorm.CrossIterationBatchNorm1d(4, compensation="exact")
    norm.attach(source)
    source.requires_grad_(False)
    x = torch.randn(16, 6)
    for _ in range(3):
        norm(source(x))
        with torch.no_grad():
            source.weight.mul_(1.5)
    if how == "thawed":
        source.requires_grad_(True)
    y = source(x)
    seen: Any = norm._seen
    mean, var = seen.lags
    for lag in range(3):
        torch.testing.assert_close(mean[:, lag], y.mean(0).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(var[:, lag], y.var(0, correction=0).detach())


@kinds
@pytest.mark.parametrize("watched", [1, 3])
def test_hooks_on_the_backward_change_nothing(kind: dict[str, Any], watched: int) -> None:
    model, expected = network(**kind), network(**kind)
    seen = []
    model[watched].register_full_backward_hook(lambda *_: seen.append(1))
    found = trained(model, optimizer_of(model), batches(5))
    assert all(map(torch.equal, found, trained(expected, optimizer_of(expected), batches(5))))
    assert len(seen) == 5


class NormsApart(nn.Module):
    """Norm and activation are checkpointed, their sources are not."""

    def __init__(self, model: Any, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, rest in ((0, slice(1, 3)), (3, slice(4, 5))):
            h = self.model[conv](x)
            x = checkpoint(self.model[rest], h, use_reentrant=self.reentrant)
        return x


@kinds
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_norm_may_be_checkpointed_without_its_source(
    kind: dict[str, Any], reentrant: bool
) -> None:
    model, expected = network(**kind), network(**kind)
    wrapped = NormsApart(model, reentrant)
    found = trained(wrapped, optimizer_of(model), batches(5))
    assert all(map(torch.equal, found, trained(expected, optimizer_of(expected), batches(5))))
    for a, b in zip(state(model).values(), state(expected).values(), strict=True):
        assert torch.equal(a, b)


def test_after_a_batch_that_does_not_count_the_oldest_lag_gives_way() -> None:
    norm = renorm.CrossIterationBatchNorm1d(1, window=4, compensation="none")
    for i in (1, 2, 3, 4, float("nan"), 6):
        norm(torch.tensor([[0.0], [2.0]]) + i)
    assert sorted((norm._history.kept()[0][0] - 1).tolist()) == [3, 4, 6]


def test_what_decides_the_history_is_set_by_configure_alone() -> None:
    norm: Any = renorm.CrossIterationBatchNorm2d(4)
    for name in ("window", "compensation", "sample"):
        with pytest.raises(AttributeError):
            setattr(norm, name, 3)
    source = nn.Conv2d(2, 4, 3)
    norm.attach(source)
    norm.configure(window=3, compensation="none")
    assert (norm.window, norm.compensation, norm.source) == (3, "none", None)
    assert not source._forward_hooks


def test_a_source_that_reads_otherwise_since_is_refused() -> None:
    model = network()
    model[3].stride = (1, 1)
    with pytest.raises(ArgumentError, match=r"stride \(2, 2\) .* now .*\(1, 1\)"):
        model(torch.randn(2, 2, 7, 7))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_the_source_alone_has_no_norm(how: str) -> None:
    model = network()
    trained(model, optimizer_of(model), batches(3))
    before = [norm._history.position for norm in norms(model)]
    alone = copy.deepcopy(model[0]) if how == "deepcopy" else pickle.loads(pickle.dumps(model[0]))
    alone(torch.randn(2, 2, 7, 7))
    assert [norm._history.position for norm in norms(model)] == before
    assert len(pickle.dumps(model[0])) < 1.5 * len(pickle.dumps(nn.Conv2d(2, 4, 3, bias=False)))


def test_a_norm_that_is_gone_is_not_kept_by_its_source() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(2))
    gone = weakref.ref(model[1])
    model[1] = nn.Identity()
    gc.collect()
    assert gone() is None
    model(torch.randn(2, 2, 7, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "is batch norm as long as window=1"),
        ({"burn_in": 3}, "burn_in=3"),
        ({"follow": "batch"}, "has no variance for its running statistics"),
    ],
)
def test_one_value_is_refused_where_nothing_could_be_learned(
    settings: dict[str, Any], message: str
) -> None:
    norm = renorm.CrossIterationBatchNorm1d(4, compensation="none", **settings)
    with pytest.raises(ArgumentError, match=message):
        norm(torch.randn(1, 4))


def test_burn_in_counts_what_the_checkpoint_counts() -> None:
    norm = renorm.CrossIterationBatchNorm1d(2, compensation="none", burn_in=2)
    for x in (1.0, float("nan"), 1.0):
        norm(torch.randn(4, 2) * x)
    assert norm.num_batches_tracked == 2
    assert norm._history.empty
    norm(torch.randn(4, 2))
    assert not norm._history.empty


@pytest.mark.parametrize("case", [c for c in CASES if c.kernel], ids=str)
def test_mean_patches_of_large_images_are_those_of_small_ones(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from renorm.kernels import patches
    from renorm.nn.window_settings import geometry_of

    x = torch.randn(case.shape, dtype=torch.float64)
    g: Geometry = geometry_of(case.source())
    expected = mean_patch(x, g, torch.float64)
    torch.testing.assert_close(expected.numpy(), case.patches(x).mean(1))
    for entries in (0, 8):  # as if every table were too large, or some
        monkeypatch.setattr(patches, "_KEPT", entries)
        patches._plan.cache_clear()
        found = mean_patch(x, g, torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    patches._plan.cache_clear()
