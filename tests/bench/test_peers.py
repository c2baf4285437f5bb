import sys
import types

import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm2d, limits
from renorm.bench import peers
from renorm.bench.peers import KNOWN, Peer, UnavailableError, admitted, by_path
from renorm.bench.registry import Shape
from renorm.errors import ArgumentError

MAPS = Shape("peers", (16, 8, 5, 5))


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("rows only\nand more")


def peer(layer: nn.Module) -> Peer:
    return Peer("theirs", "", lambda sizes: layer)


def test_deviation_is_from_the_formula_at_whichever_limits_are_nearer() -> None:
    exact = BatchRenorm2d(6, limits=limits.fixed(3, 5))
    assert admitted(peer(exact), MAPS).deviation < 1e-5
    assert admitted(peer(nn.BatchNorm2d(6)), MAPS).deviation < 1e-5
    assert admitted(peer(BatchRenorm2d(6, limits=limits.fixed(1.1, 0.1))), MAPS).deviation > 0.05


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Infinite(), "gives no finite output of the input's shape on 8x6x5x5"),
        (nn.Flatten(), "gives no finite output of the input's shape on 8x6x5x5"),
        (Raising(), "fails on 8x6x5x5: ValueError: rows only$"),
    ],
)
def test_a_peer_that_does_not_run_says_why(layer: nn.Module, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        admitted(peer(layer), MAPS)


@pytest.mark.parametrize("known", KNOWN, ids=lambda one: one.name)
def test_a_peer_that_is_not_installed_says_so(known: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [name for name in sys.modules if name.startswith("sb3_contrib.")]
    for name in ("keras", "sb3_contrib", "torchrl", *parts):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match="not installed"):
        admitted(known, MAPS)


class Layer(nn.Module):
    """Stands for a layer of somebody else: records how it was made."""

    epsilon = 1e-3

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()
        self.made = arguments, options
        self.weight = nn.Parameter(torch.ones(1))

    def build(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def forward(self, x: Tensor, training: bool = True) -> Tensor:
        return x * self.weight


def module(name: str, monkeypatch: pytest.MonkeyPatch, **content: object) -> types.ModuleType:
    made = types.ModuleType(name)
    for key, value in content.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras_is_clipped_and_on_torch(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    module(
        "keras",
        monkeypatch,
        backend=types.SimpleNamespace(backend=lambda: backend),
        layers=types.SimpleNamespace(BatchNormalization=Layer),
    )
    if backend == "jax":
        with pytest.raises(UnavailableError, match="its backend here is jax"):
            KNOWN[0].make((2, 3, 4, 4))
        return
    layer = KNOWN[0].make((2, 3, 4, 4))
    assert isinstance(layer, peers.Keras)
    assert layer.layer.sizes == (2, 3, 4, 4)
    assert layer.layer.made[1]["axis"] == 1
    assert layer.layer.made[1]["renorm_clipping"] == {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), x)


def test_layers_of_the_others_are_past_their_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    module("sb3_contrib", monkeypatch)
    module("sb3_contrib.common", monkeypatch)
    module("sb3_contrib.common.torch_layers", monkeypatch, BatchRenorm1d=Layer)
    module("torchrl", monkeypatch)
    module("torchrl.modules", monkeypatch, BatchRenorm1d=Layer)
    made = [one.make((2, 3)).made for one in KNOWN[1:]]
    assert made == [((3,), {"warmup_steps": -1}), ((3,), {"warmup_steps": 0})]


def test_a_class_by_its_path() -> None:
    found = by_path("torch.nn:BatchNorm2d")
    assert found.title() == "torch.nn:BatchNorm2d"
    assert isinstance(found.make((2, 3, 4, 4)), nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.nn.BatchNorm2d", "A peer is package.module:Class, got 'torch.nn.BatchNorm2d'"),
        (":BatchNorm2d", "A peer is package.module:Class"),
        ("no.such:Layer", "'no.such:Layer' cannot be imported: No module named"),
        ("torch.nn:BatchNorm7d", "cannot be imported: .*has no attribute"),
        ("torch:randn", "is no class of modules"),
    ],
)
def test_a_path_to_no_class_is_refused(path: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        by_path(path)
