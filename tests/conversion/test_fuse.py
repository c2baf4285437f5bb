"""Batch renorm and ReLU as one layer: what is fused, what is not, and the way back."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import renorm
from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormAct1d,
    BatchRenormAct2d,
    BatchRenormAct3d,
    LazyBatchRenorm2d,
    convert,
    freeze,
    fuse,
    limits,
    to_batchnorm,
    unfuse,
)
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import BatchRenorm, BatchRenormAct
from support.networks import same, sequential, state, table

OPEN = limits.fixed(1.5, 0.5)


def network() -> Any:
    """Images (N, 3, 9, 9); pairs at ``1``, ``3.0.1`` (across an end) and ``4.1``; none at ``5``."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.BatchNorm2d(4),
    )
    return convert(model, limits=OPEN, momentum=0.1)


PAIRS = ["1", "3.0.1", "4.1"]


def classes(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


def fused(model: nn.Module) -> list[str]:
    """The names of the activated layers."""
    return [name for name, m in model.named_modules() if isinstance(m, BatchRenormAct)]


def train(model: Any, steps: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Train by SGD; the losses' gradients' effect is in the state that is returned."""
    g = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        y = model(torch.randn(4, 3, 9, 9, generator=g).to(dtype))
        optimizer.zero_grad()
        y.backward(torch.randn(y.shape, generator=g).to(dtype))
        optimizer.step()
    return list(state(model).values())


def test_pairs_of_nested_sequentials_are_fused_and_come_back() -> None:
    model = network()
    train(model)
    model.eval()
    x = torch.randn(2, 3, 9, 9)
    before, kept, kinds, keys = model(x), list(model.modules()), classes(model), list(state(model))
    assert fuse(model) is model
    assert fused(model) == PAIRS
    assert [type(model[2]), type(model[3][1]), type(model[4][2])] == [nn.Identity] * 3
    assert list(state(model)) == keys
    assert torch.equal(model(x), before)
    assert unfuse(model) is model
    assert classes(model) == kinds
    assert list(model.modules()) == kept
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("cls", "made", "shape"),
    [
        (BatchRenorm1d, BatchRenormAct1d, (6, 4)),
        (BatchRenorm2d, BatchRenormAct2d, (4, 4, 3, 3)),
        (BatchRenorm3d, BatchRenormAct3d, (2, 4, 2, 3, 3)),
    ],
)
def test_every_rank(cls: Any, made: type, shape: tuple[int, ...]) -> None:
    model = sequential(cls(4, limits=OPEN), nn.ReLU())
    plain, x = copy.deepcopy(model), torch.randn(shape)
    fuse(model)
    assert type(model[0]) is made
    assert model[0].fused
    torch.testing.assert_close(model(x), plain(x))
    assert type(to_batchnorm(model)[0]) is getattr(nn, cls.__name__.replace("Renorm", "Norm"))


def test_trains_alike() -> None:
    for ours, plain in zip(train(fuse(network())), train(network()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_optimizer_and_references_stay() -> None:
    model = network()
    layer, optimizer = model[1], torch.optim.SGD(model.parameters(), lr=0.1)
    tensors = {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    fuse(model)
    assert {n: id(t) for n, t in (*model.named_parameters(), *model.named_buffers())} == tensors
    before = state(model)
    y = model(torch.randn(4, 3, 9, 9))
    y.backward(torch.randn(y.shape))
    optimizer.step()
    assert model[1] is layer
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_settings_stay() -> None:
    layer = BatchRenorm1d(4, momentum=0.3, limits=OPEN, microbatch=2, single="running")
    before = vars(layer).keys()
    model = fuse(sequential(layer, nn.ReLU()))
    assert (layer.momentum, layer.limits, layer.microbatch) == (0.3, OPEN, 2)
    unfuse(model)
    assert vars(layer).keys() == before
    assert list(layer.children()) == []


def test_to_batchnorm_gives_back_the_original_structure() -> None:
    model = network()
    plain = to_batchnorm(copy.deepcopy(model), momentum=0.1)
    fuse(model)
    train(model)
    x = torch.randn(2, 3, 9, 9)
    before = model.eval()(x)
    to_batchnorm(model, momentum=0.1)
    assert repr(model) == repr(plain.eval())
    assert torch.equal(model(x), before)
    assert b"renorm" not in pickle.dumps(model)


def test_to_batchnorm_of_some() -> None:
    model = to_batchnorm(fuse(network()), include="4.*")
    assert fused(model) == PAIRS[:2]
    assert [type(model[4][1]), type(model[4][2])] == [nn.BatchNorm2d, nn.ReLU]


def test_fused_model_converts_and_freezes_and_sums_up() -> None:
    model = convert(fuse(network()))
    assert fused(model) == PAIRS
    assert all(m.frozen for m in freeze(model).modules() if isinstance(m, BatchRenorm))
    assert [row.then for row in renorm.summary(model).rows] == ["fused with ReLU"] * 3 + [""]
    unfuse(model)
    assert model[1].frozen


def test_calibrates_alike() -> None:
    batches = [torch.randn(4, 3, 9, 9) for _ in range(2)]
    ours, plain = (renorm.calibrate(m, batches) for m in (fuse(network()), network()))
    for a, b in zip(state(ours).values(), state(plain).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_selection() -> None:
    assert fused(fuse(network(), include="3.*")) == ["3.0.1"]
    assert fused(fuse(network(), exclude=["3.*", "1"])) == ["4.1"]
    with pytest.raises(ArgumentError, match="No normalization layer has a name like 'stem'"):
        fuse(network(), include="stem")


def test_a_shared_relu_is_replaced_at_the_matched_places_alone() -> None:
    relu = nn.ReLU()
    model = table(
        a=sequential(BatchRenorm1d(4), relu), b=sequential(nn.Linear(4, 4), relu), c=relu,
        d=sequential(BatchRenorm1d(4), relu),
    )  # fmt: skip
    fuse(model)
    assert [type(model[k][1]) for k in "abd"] == [nn.Identity, nn.ReLU, nn.Identity]
    assert model["c"] is model["b"][1] is model["a"][0].act is relu
    unfuse(model)
    assert all(model[k][1] is relu for k in "abd")


def test_a_shared_norm_is_left_alone() -> None:
    norm = BatchRenorm1d(4)
    model = table(a=sequential(norm, nn.ReLU()), b=sequential(norm, nn.Tanh()), c=network())
    fuse(model)
    assert type(norm) is BatchRenorm1d
    assert fused(model) == [f"c.{name}" for name in PAIRS]
    with pytest.raises(ArgumentError, match=r"a\.0 is used in several places"):
        fuse(table(a=model["a"], b=model["b"]))


def test_a_shared_container_is_fused_inside_and_not_across_its_end() -> None:
    inside = sequential(BatchRenorm1d(4), nn.ReLU(), BatchRenorm1d(4))
    model = table(a=sequential(inside, nn.ReLU()), b=sequential(inside, nn.Tanh()))
    x = torch.randn(6, 4)
    before = [model.eval()[k](x) for k in "ab"]
    fuse(model)
    assert fused(model) == ["a.0.0"]
    assert all(torch.equal(model[k](x), y) for k, y in zip("ab", before, strict=True))


def test_nothing_is_fused_across_the_end_of_a_watched_container() -> None:
    model = sequential(sequential(BatchRenorm1d(4)), nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="no batch renorm layer is followed by"):
        fuse(model)


class Backwards(nn.Sequential):
    def forward(self, input):
        for module in reversed(self):
            input = module(input)
        return input


class Named(nn.Sequential):
    """Changes its construction alone, as torchvision's Conv2dNormActivation."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), BatchRenorm1d(4), nn.ReLU())


def with_forward_on_the_instance() -> nn.Module:
    model = sequential(BatchRenorm1d(4), nn.ReLU())
    model.forward = model.forward
    return model


def with_norm_forward_on_the_instance() -> nn.Module:
    model = sequential(BatchRenorm1d(4), nn.ReLU())
    model[0].forward = model[0].forward
    return model


class Mine(BatchRenorm1d):
    pass


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), r"renorm\.convert\(model\)"),
        (lambda: nn.Linear(3, 4), "Linear has nothing to fuse"),
        (lambda: BatchRenorm1d(4), "no batch renorm layer is followed"),
        (lambda: Backwards(BatchRenorm1d(4), nn.ReLU()), "no batch renorm layer is followed"),
        (with_forward_on_the_instance, "no batch renorm layer is followed"),
        (with_norm_forward_on_the_instance, "0 has a hook, or a forward of its own"),
        (lambda: nn.ModuleList([BatchRenorm1d(4), nn.ReLU()]), "no batch renorm layer is foll"),
        (lambda: nn.Sequential(BatchRenorm1d(4), nn.ReLU6()), "no batch renorm layer is followed"),
        (lambda: nn.Sequential(BatchRenorm(4), nn.ReLU()), "0 is a BatchRenorm; BatchRenorm1d"),
        (lambda: nn.Sequential(Mine(4), nn.ReLU()), "0 is a Mine; BatchRenorm1d"),
        (lambda: nn.Sequential(LazyBatchRenorm2d(), nn.ReLU()), "0 is a LazyBatchRenorm2d"),
        (lambda: nn.Sequential(BatchRenormAct1d(4), nn.ReLU()), "0 has an activation already"),
        (lambda: fuse(network()), "Sequential has nothing to fuse"),
    ],
)  # fmt: skip
def test_nothing_to_fuse(make: Any, why: str) -> None:
    model = make()
    before = classes(model)
    with pytest.raises(ArgumentError, match=why):
        fuse(model)
    assert classes(model) == before


def test_a_subclass_with_sequentials_forward_is_fused() -> None:
    assert fused(fuse(Named())) == ["1"]


def test_a_lazy_layer_is_fused_once_it_is_made() -> None:
    model = sequential(LazyBatchRenorm2d(limits=OPEN), nn.ReLU())
    model(torch.randn(2, 5, 3, 3))
    assert type(fuse(model)[0]) is BatchRenormAct2d


REGISTER = ["register_forward_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", [*REGISTER, "register_forward_pre_hook"])
def test_a_relu_with_hooks_is_left_alone(register: str) -> None:
    model = network()
    getattr(model[2], register)(lambda *_: None)
    assert fused(fuse(model)) == PAIRS[1:]
    assert type(model[2]) is nn.ReLU


@pytest.mark.parametrize("register", REGISTER)
def test_a_norm_whose_output_is_watched_is_left_alone(register: str) -> None:
    model = network()
    getattr(model[1], register)(lambda *_: None)
    assert fused(fuse(model)) == PAIRS[1:]


def test_a_hook_on_the_input_of_the_norm_stays() -> None:
    model, seen = network(), []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 3, 9, 9)
    fuse(model)(x)
    assert torch.equal(seen[0], model[0](x))
    assert fused(model) == PAIRS


def test_through_wrappers() -> None:
    inside = network()
    model = nn.DataParallel(inside)
    assert fused(fuse(model)) == [f"module.{name}" for name in PAIRS]
    to_batchnorm(model)
    assert type(inside[1]) is nn.BatchNorm2d


def test_partly_frozen_and_in_eval() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    model[3].eval()
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    fuse(model)
    assert [p.requires_grad for p in model.parameters()] == grads
    assert not any(m.training for m in model[3].modules())
    unfuse(model)
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, plain = fuse(network()).to(dtype), network().to(dtype)
    x = torch.randn(4, 3, 9, 9, dtype=dtype)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), plain.train(mode)(x))
    assert model(x).dtype == dtype


def test_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model = fuse(network())
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(compiled(x), model(x))


def test_a_compiled_model_runs_the_fused_layers() -> None:
    torch._dynamo.reset()
    model = network()
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(4, 3, 9, 9)
    compiled(x)
    fuse(model)
    torch.testing.assert_close(copy.deepcopy(model)(x), compiled(x))


def test_copies_and_files_come_back_too() -> None:
    model = fuse(network())
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    x = torch.randn(2, 3, 9, 9)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
    ):
        assert same(state(other), state(model))
        assert classes(unfuse(other)) == classes(network())
        assert torch.equal(other.eval()(x), model.eval()(x))
        model.train()


def test_checkpoints_of_before_and_after_fit() -> None:
    plain, model = network(), fuse(network())
    train(model)
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)


def test_a_parametrized_layer() -> None:
    model = sequential(BatchRenorm1d(4, limits=OPEN), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    plain, x = copy.deepcopy(model), torch.randn(6, 4)
    fuse(model)
    assert parametrize.type_before_parametrizations(model[0]) is BatchRenormAct1d
    assert torch.equal(model(x), plain(x))
    unfuse(model)
    assert parametrize.type_before_parametrizations(model[0]) is BatchRenorm1d


def test_an_activation_that_was_exchanged_comes_back_as_it_is() -> None:
    model = fuse(network())
    model[1].act = nn.SiLU()
    assert type(to_batchnorm(model)[2]) is nn.SiLU


def test_nothing_to_undo() -> None:
    built = nn.Sequential(BatchRenormAct1d(4), nn.Identity())
    with pytest.raises(ArgumentError, match=r"no layer that renorm\.fuse made"):
        unfuse(built)


@pytest.mark.parametrize("back", [unfuse, to_batchnorm])
@pytest.mark.parametrize("other", [nn.Tanh(), nn.Identity()], ids=["exchanged", "watched"])
def test_a_lost_place_is_refused_before_anything_changes(back: Any, other: nn.Module) -> None:
    model = fuse(network())
    model[2] = other
    other.register_forward_hook(lambda *_: None)
    with pytest.raises((ArgumentError, ConversionError), match=r"1 .*was fused with a ReLU, and"):
        back(model)
    assert fused(model) == PAIRS
    with pytest.raises(
        (ArgumentError, ConversionError), match=r"the model .*was fused with a ReLU"
    ):
        back(model[1])
