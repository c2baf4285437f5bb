"""The libraries themselves: their layers are trained, and ours go on from their state.

Keras and TorchRL are not in constraints.txt: a test skips unless its library was installed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, checkpoints
from renorm.errors import ArgumentError
from renorm.limits import Limits, Ramp, fixed
from renorm.nn import BatchRenorm
from support.tolerance import assert_close

C = 6
# Keras's own, in its Variable.numpy() under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WHY = "compares with the library itself, which is not installed"


def _batches(n: int, *shape: int) -> list[Tensor]:
    """Channels of unlike mean and deviation, as a layer inside of a network sees them."""
    spread = torch.linspace(0.3, 3.0, C).view(1, C, *[1] * (len(shape) - 2))
    return [torch.randn(shape) * spread + spread for _ in range(n)]


def _train(layer: nn.Module, batches: list[Tensor]) -> None:
    """Some steps in which weight and bias learn too."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for x in batches:
        loss = (layer(x) * torch.randn_like(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _assert_same_eval(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    y = theirs.eval()(x)
    assert float((y - x).detach().abs().max()) > 0.1
    assert_close("eval output", ours.eval()(x), y.detach().double(), torch.float32)


@pytest.mark.parametrize("shape", [(32, C), (8, C, 5), (4, C, 5, 5)], ids=str)
def test_torchrl(shape: tuple[int, ...]) -> None:
    torchrl = pytest.importorskip("torchrl.modules", reason=WHY)
    warmup = 40
    theirs = nn.Sequential(torchrl.BatchRenorm1d(C, warmup_steps=warmup, momentum=0.05))
    _train(theirs, _batches(50, *shape))
    limits = Limits(Ramp(1.0, 3.0, warmup, warmup), Ramp(0.0, 5.0, warmup, warmup))
    layer = BatchRenorm(C, momentum=0.05, limits=limits)
    ours = nn.Sequential(layer)
    state = checkpoints.torchrl(theirs.state_dict())
    assert int(state["0.num_batches_tracked"]) == 50
    ours.load_state_dict(state, strict=True)
    x, y = _batches(2, *shape)
    _assert_same_eval(ours, theirs, x)
    exact = theirs.train()(y).detach().double()
    assert_close("training output", ours.train()(y), exact, torch.float32)
    mean = theirs.state_dict()["0.running_mean"].double()
    assert_close("running_mean", layer.running_mean, mean, torch.float32)


def test_torchrl_layer_that_is_lost_is_refused() -> None:
    torchrl = pytest.importorskip("torchrl.modules", reason=WHY)
    theirs = torchrl.BatchRenorm1d(C)
    theirs(torch.randn(1, C, 8, 8))  # N / (N - 1)
    with pytest.raises(ArgumentError, match=r"running_var .* got inf in channel 0"):
        checkpoints.torchrl(theirs.state_dict())


@pytest.mark.parametrize("affine", [True, False])
def test_sb3_contrib(affine: bool) -> None:
    layers = pytest.importorskip("sb3_contrib.common.torch_layers", reason=WHY)
    theirs = nn.Sequential(
        nn.Linear(C, C), layers.BatchRenorm1d(C, affine=affine, warmup_steps=20, momentum=0.05)
    )
    _train(theirs, _batches(50, 32, C))
    ours = nn.Sequential(nn.Linear(C, C), BatchRenorm1d(C, eps=1e-3, momentum=0.05))
    ours.load_state_dict(checkpoints.sb3_contrib(theirs.state_dict()), strict=True)
    assert int(ours[1].num_batches_tracked) == 50  # type: ignore[arg-type]
    _assert_same_eval(ours, theirs, *_batches(1, 9, C))


def test_sb3_contrib_crossq_policy() -> None:
    gym = pytest.importorskip("gymnasium", reason=WHY)
    sb3_contrib = pytest.importorskip("sb3_contrib", reason=WHY)
    env = gym.make("Pendulum-v1")
    agent = sb3_contrib.CrossQ("MlpPolicy", env, learning_starts=20, device="cpu", seed=0)
    agent.learn(30)
    theirs = agent.policy.state_dict()
    state = checkpoints.sb3_contrib(theirs)
    layers = [key for key in theirs if key.endswith("ra_mean")]
    assert layers
    assert not [key for key in state if key.endswith(("ra_mean", "ra_var", "steps", "scale"))]
    for key in layers:
        name = key.removesuffix(".ra_mean")
        layer = agent.policy.get_submodule(name)
        ours = BatchRenorm1d(layer.num_features, eps=1e-3)
        own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        ours.load_state_dict(own, strict=True)
        x = torch.randn(7, layer.num_features)
        y = layer.eval()(x).detach().double()
        assert_close(f"{name} output", ours.eval()(x), y, torch.float32)


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason=WHY)


def _keras_layer(keras: Any, **settings: Any) -> Any:
    layer = keras.layers.BatchNormalization(axis=1, **{"renorm": True, **settings})
    layer.build((None, C))
    for weight in layer.trainable_weights:
        weight.assign(torch.rand(C) + 0.5)
    for x in _batches(50, 32, C):
        layer(x, training=True)
    return layer


def _weights(layer: Any) -> dict[str, Any]:
    return {w.name: w.numpy() for w in layer.weights}


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("renorm", [True, False])
def test_keras_inference(keras: Any, scale: bool, center: bool, renorm: bool) -> None:
    theirs = _keras_layer(keras, scale=scale, center=center, renorm=renorm, momentum=0.9)
    ours = BatchRenorm1d(C, eps=1e-3, affine=scale or center, bias=center)
    ours.load_state_dict(checkpoints.keras(_weights(theirs)), strict=True)
    (x,) = _batches(1, 9, C)
    exact = theirs(x, training=False).detach().double()
    assert_close("eval output", ours.eval()(x), exact, torch.float32)


def test_keras_training_goes_on(keras: Any) -> None:
    """Thirty more steps in both: outputs and, at the end, all of Keras's statistics."""
    clipping = {"rmax": 1.3, "rmin": 1 / 1.3, "dmax": 0.2}
    theirs = _keras_layer(keras, renorm_momentum=0.95, momentum=0.9, renorm_clipping=clipping)
    ours = BatchRenorm1d(C, eps=1e-3, momentum=0.05, limits=fixed(1.3, 0.2))
    state = checkpoints.keras(_weights(theirs), statistics="renorm", step=50)
    ours.load_state_dict(state, strict=True)
    clipped = 0
    for x in _batches(30, 8, C):
        d = (x.mean(0) - ours.running_mean) / (ours.running_var + 1e-3).sqrt()  # type: ignore[operator]
        clipped += int((d.abs() > 0.2).sum())
        exact = theirs(x, training=True).detach().double()
        assert_close("training output", ours(x), exact, torch.float32)
    assert 20 < clipped < 160
    now = checkpoints.keras(_weights(theirs), statistics="renorm")
    for name in ("running_mean", "running_var"):
        assert_close(name, getattr(ours, name), now[name].double(), torch.float32)


def test_keras_variables_are_taken_as_they_are(keras: Any) -> None:
    theirs = _keras_layer(keras)
    by_arrays = checkpoints.keras(_weights(theirs))
    by_tensors = checkpoints.keras({w.name: w.value for w in theirs.weights})
    assert all(torch.equal(by_arrays[name], by_tensors[name]) for name in by_arrays)
    assert not any(value.requires_grad for value in by_tensors.values())
