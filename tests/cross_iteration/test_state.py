"""What a layer keeps: state_dict, resumption, copies, devices and dtypes, and memory."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
from renorm.nn import CrossIterationBatchNorm

KINDS: list[dict[str, Any]] = [
    {"compensation": "first_order"},
    {"compensation": "first_order", "sample": 5},
    {"compensation": "exact"},
    {"compensation": "exact", "sample": 5},
    {"compensation": "none"},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))


def plain() -> Any:
    return renorm.to_batchnorm(network())


@kinds
def test_state_has_the_five_entries_of_batch_norm(kind: dict[str, Any]) -> None:
    model = network(**kind)
    trained(model, optimizer_of(model), batches(3))
    assert list(model.state_dict()) == list(plain().state_dict())
    plain().load_state_dict(model.state_dict())
    model.load_state_dict(plain().state_dict())


@kinds
def test_eval_is_that_of_batch_norm_and_stays_so_after_conversion_back(
    kind: dict[str, Any],
) -> None:
    model = network(**kind)
    trained(model, optimizer_of(model), batches(5))
    x, _ = next(batches(1, seed=9))
    expected = plain()
    expected.load_state_dict(model.state_dict())
    found = model.eval()(x)
    assert torch.equal(found, expected.eval()(x))
    back = renorm.to_batchnorm(model)
    assert torch.equal(back(x), found)
    assert [type(m) for m in back] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Conv2d,
        nn.BatchNorm2d,
    ]
    assert not any(m._forward_hooks or m._forward_hooks_with_kwargs for m in back)
    assert "renorm" not in pickle.dumps(back).decode("latin1")


@kinds
@pytest.mark.parametrize("at", [1, 3, 6])
def test_saved_history_resumes_bit_for_bit(kind: dict[str, Any], at: int, tmp_path: Path) -> None:
    whole = network(history="save", **kind)
    optimizer = optimizer_of(whole)
    data = list(batches(10))
    trained(whole, optimizer, iter(data[:at]))
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c")
    expected = trained(whole, optimizer, iter(data[at:]))

    resumed = network(seed=5, history="save", **kind)
    optimizer = optimizer_of(resumed)
    checkpoint = torch.load(tmp_path / "c", weights_only=True)
    resumed.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    found = trained(resumed, optimizer, iter(data[at:]))
    assert all(map(torch.equal, found, expected))
    assert same(state(resumed), state(whole))


# one process is what is meant
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_saved_history_passes_through_distributed_checkpoints(tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = network(history="save")
    trained(model, optimizer_of(model), batches(5))
    dcp.save(get_model_state_dict(model), checkpoint_id=tmp_path, no_dist=True)
    other = network(seed=5, history="save")
    entries = get_model_state_dict(other)
    dcp.load(entries, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(other, entries)
    assert same(state(other), state(model))


def test_without_saved_history_the_window_fills_anew() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(5))
    other = network(seed=5)
    trained(other, optimizer_of(other), batches(2))
    other.load_state_dict(model.state_dict())
    assert all(norm._history.empty for norm in norms(other))
    trained(other, optimizer_of(other), batches(2))
    assert all(norm._history.position == 2 for norm in norms(other))


def test_saved_history_of_other_settings_is_left_out() -> None:
    model = network(history="save", window=4)
    trained(model, optimizer_of(model), batches(5))
    changed: list[dict[str, Any]] = [{"window": 3}, {"compensation": "none"}]
    for settings in changed:
        other = network(history="save", **settings)
        other.load_state_dict(model.state_dict())
        assert all(norm._history.empty for norm in norms(other))
        trained(other, optimizer_of(other), batches(2))


def test_a_layer_that_drops_its_history_takes_a_checkpoint_that_has_one() -> None:
    model = network(history="save")
    trained(model, optimizer_of(model), batches(3))
    other = network(seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    with pytest.raises(RuntimeError, match="_extra_state"):
        plain().load_state_dict(model.state_dict())


def test_burn_in_goes_on_after_a_checkpoint() -> None:
    model = network(burn_in=4)
    trained(model, optimizer_of(model), batches(3))
    assert all(norm._history.empty for norm in norms(model))
    other = network(burn_in=4)
    other.load_state_dict(model.state_dict())
    trained(other, optimizer_of(other), batches(1))
    assert all(norm._history.empty for norm in norms(other))
    trained(other, optimizer_of(other), batches(1))
    assert not any(norm._history.empty for norm in norms(other))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@kinds
def test_copies_go_on_alone_and_alike(kind: dict[str, Any], how: str) -> None:
    model = network(**kind)
    trained(model, optimizer_of(model), batches(5))
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    before = state(model)
    found = trained(other, optimizer_of(other), batches(4, seed=3))
    assert same(state(model), before)
    assert all(map(torch.equal, found, trained(model, optimizer_of(model), batches(4, seed=3))))
    for norm in norms(other):
        if norm.compensation != "none":
            assert norm.source in list(other.modules())


def test_a_copy_may_be_taken_between_source_and_norm() -> None:
    model = network()
    x, _ = next(batches(1))
    model[0](x)  # the norm has been told, and not called
    copy.deepcopy(model)(x)


@kinds
def test_history_follows_the_model_to_other_dtypes_in_float32_at_least(
    kind: dict[str, Any],
) -> None:
    model = network(**kind)
    trained(model, optimizer_of(model), batches(5))
    model.bfloat16()
    assert {t.dtype for norm in norms(model) for t in norm._history.tensors.values()} == {
        torch.float32
    }
    positions = [norm._history.position for norm in norms(model)]
    x, dy = next(batches(1))
    model(x.bfloat16()).backward(dy.bfloat16())
    assert [norm._history.position for norm in norms(model)] == [p + 1 for p in positions]
    model.double()
    model(x.double()).backward(dy.double())
    assert {t.dtype for norm in norms(model) for t in norm._history.tensors.values()} == {
        torch.float64
    }
    assert not any(norm._history.empty for norm in norms(model))


def test_history_goes_to_another_device_and_back_to_nothing() -> None:
    model = network()
    trained(model, optimizer_of(model), batches(5))
    model.to("meta")
    assert all(t.is_meta for norm in norms(model) for t in norm._history.tensors.values())


def test_statistics_can_be_reset() -> None:
    model = network(burn_in=2)
    trained(model, optimizer_of(model), batches(5))
    for norm in norms(model):
        norm.reset_running_stats()
    assert all(norm._history.empty for norm in norms(model))
    trained(model, optimizer_of(model), batches(2))
    assert all(norm._history.empty for norm in norms(model))


@kinds
def test_memory_is_what_the_formula_says(kind: dict[str, Any]) -> None:
    model = network(**kind)
    predicted = [norm.history_bytes() for norm in norms(model)]
    trained(model, optimizer_of(model), batches(2))
    held = [
        sum(t.untyped_storage().nbytes() for t in n._history.tensors.values()) for n in norms(model)
    ]
    assert held == predicted == [row.history for row in renorm.summary(model).rows]


def test_first_order_takes_less_than_half_of_what_copies_of_the_weights_would() -> None:
    norm = renorm.CrossIterationBatchNorm2d(64, window=8)
    norm.attach(nn.Conv2d(64, 64, 3))
    official = 7 * 3 * 64 * 64 * 9 * 4
    assert norm.history_bytes() < 0.36 * official


def test_history_is_no_buffer() -> None:
    model = network(history="save")
    trained(model, optimizer_of(model), batches(3))
    assert {name.split(".")[-1] for name, _ in model.named_buffers()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_attach_and_detach_leave_the_source_as_it_was() -> None:
    source, norm = nn.Linear(3, 4), renorm.CrossIterationBatchNorm1d(4)
    norm.attach(source)
    norm.attach(source)
    assert len(source._forward_hooks) == 1
    assert norm.source is source
    assert list(norm.children()) == []
    other = nn.Linear(3, 4)
    norm.attach(other)
    assert not source._forward_hooks
    norm.detach()
    assert not other._forward_hooks
    assert not other._forward_hooks_with_kwargs
    assert norm.source is None
    assert isinstance(norm, CrossIterationBatchNorm)
