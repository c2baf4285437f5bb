"""What the checkpoints of other libraries become, and what is refused."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, calibrate, checkpoints, limits
from renorm.errors import ArgumentError
from support.tolerance import assert_close

C = 5
NAMES = {
    "torchrl": ("running_mean", "running_var", "num_batches_tracked", "weight", "bias"),
    "sb3_contrib": ("ra_mean", "ra_var", "steps", "scale", "bias"),
}
MAPPINGS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "torchrl": checkpoints.torchrl,
    "sb3_contrib": checkpoints.sb3_contrib,
}
KERAS = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean",
         "renorm_stddev")  # fmt: skip
of_models = pytest.mark.parametrize("library", NAMES)


def _layer(library: str, prefix: str = "", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """What a trained layer leaves, all of it random and none of it at its initial value."""
    mean, var, count, scale, bias = NAMES[library]
    return {
        prefix + scale: torch.randn(C, dtype=dtype),
        prefix + bias: torch.randn(C, dtype=dtype),
        prefix + mean: torch.randn(C, dtype=dtype),
        prefix + var: torch.rand(C, dtype=dtype) + 0.1,
        prefix + count: torch.tensor(1_234),
    }


def _policy(library: str) -> OrderedDict[str, Any]:
    """The state of nn.Sequential(Linear, norm, ReLU, norm), as torch.save writes it."""
    linear = {"0.weight": torch.randn(C, 3).double(), "0.bias": torch.randn(C).double()}
    return OrderedDict(linear | _layer(library, "1.") | _layer(library, "3."))


def _keras(*left_out: str, eps: float = 1e-3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    stddev = {name: np.sqrt(rng.random(C) + eps) for name in ("moving_stddev", "renorm_stddev")}
    weights = {name: rng.standard_normal(C) for name in KERAS} | stddev
    weights["moving_variance"] = weights["moving_stddev"] ** 2 - eps
    return {name: value for name, value in weights.items() if name not in left_out}


def _eval(x: Any, mean: Any, var: Any, eps: float, weight: Any, bias: Any) -> Tensor:
    mean, var, weight, bias = (np.asarray(v) for v in (mean, var, weight, bias))
    return torch.tensor((np.asarray(x) - mean) / np.sqrt(var + eps) * weight + bias)


@of_models
@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_a_model_loads_strictly_and_evaluates_as_theirs(library: str, eps: float) -> None:
    theirs = _policy(library)
    model = nn.Sequential(
        nn.Linear(3, C), BatchRenorm1d(C, eps=eps), nn.ReLU(), BatchRenorm1d(C, eps=eps)
    ).double()
    model.load_state_dict(MAPPINGS[library](theirs), strict=True)
    x = torch.randn(7, 3).double()
    mean, var, count, scale, bias = NAMES[library]
    z = x @ theirs["0.weight"].T + theirs["0.bias"]
    for i in (1, 3):
        of = {name: theirs[f"{i}.{name}"] for name in NAMES[library]}
        z = _eval(z.clamp(min=0) if i == 3 else z, of[mean], of[var], eps, of[scale], of[bias])
        layer = model[i]
        assert isinstance(layer, BatchRenorm1d)
        assert int(of[count]) == int(layer.num_batches_tracked) == 1_234  # type: ignore[arg-type]
    assert_close("output", model.eval()(x), z, torch.float64)


@of_models
def test_the_model_itself_may_be_the_layer(library: str) -> None:
    theirs = _layer(library)
    mapped = MAPPINGS[library](theirs)
    assert {name: mapped[name] for name in mapped} == dict(
        zip(NAMES["torchrl"], (theirs[name] for name in NAMES[library]), strict=True)
    )
    BatchRenorm1d(C).double().load_state_dict(mapped, strict=True)


@of_models
def test_nothing_is_changed_and_nothing_copied(library: str) -> None:
    theirs = _policy(library)
    theirs["extra"] = object()
    before = {key: v.clone() if isinstance(v, Tensor) else v for key, v in theirs.items()}
    mapped = MAPPINGS[library](theirs)
    assert mapped is not theirs
    assert list(theirs) == list(before)
    for (key, now), new in zip(theirs.items(), mapped.values(), strict=True):
        assert new is now
        assert torch.equal(now, before[key]) if isinstance(now, Tensor) else now is before[key]


@of_models
def test_dtype_and_device_are_kept(library: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        mapped = MAPPINGS[library](_layer(library, dtype=dtype))
        kinds = {name: value.dtype for name, value in mapped.items()}
        assert kinds == dict.fromkeys(kinds, dtype) | {"num_batches_tracked": torch.int64}
    on_meta = {name: value.to("meta") for name, value in _layer(library).items()}
    assert all(value.is_meta for value in MAPPINGS[library](on_meta).values())


@of_models
def test_versions_of_other_modules_go_along(library: str) -> None:
    theirs = _policy(library)
    vars(theirs)["_metadata"] = {"0": {"version": 7}}
    assert vars(MAPPINGS[library](theirs))["_metadata"] == {"0": {"version": 7}}
    assert "_metadata" not in vars(MAPPINGS[library](_policy(library)))


def test_only_layers_are_renamed() -> None:
    """Entries that bear one of their names, in modules that are none of their layers."""
    theirs = _policy("sb3_contrib")
    others = {
        "steps": torch.tensor(3),
        "2.scale": torch.ones(2),
        "extra_mean": torch.ones(3),
        "4.extra_mean": torch.ones(3),
    }
    mapped = checkpoints.sb3_contrib(theirs | others)
    assert all(mapped[name] is value for name, value in others.items())
    assert set(mapped) - set(others) == set(checkpoints.sb3_contrib(theirs))


@pytest.mark.parametrize("statistics", ["moving", "renorm"])
@pytest.mark.parametrize("left_out", [(), ("beta",), ("gamma",), ("gamma", "beta")], ids=str)
def test_keras_loads_strictly_and_evaluates_by_the_chosen_statistics(
    left_out: tuple[str, ...], statistics: Any
) -> None:
    eps = 2e-3
    theirs = _keras(*left_out, eps=eps)
    affine = left_out != ("gamma", "beta")
    layer = BatchRenorm1d(C, eps=eps, affine=affine, bias="beta" not in left_out).double()
    state = checkpoints.keras(theirs, step=9, statistics=statistics, eps=eps)
    layer.load_state_dict(state, strict=True)
    assert int(layer.num_batches_tracked) == 9  # type: ignore[arg-type]
    x = torch.randn(7, C).double()
    sigma = theirs[f"{statistics}_stddev"]  # eps is within
    gamma, beta = theirs.get("gamma", 1.0), theirs.get("beta", 0.0)
    exact = (x.numpy() - theirs[f"{statistics}_mean"]) / sigma * gamma + beta
    assert_close("output", layer.eval()(x), torch.tensor(exact), torch.float64)


def test_keras_floor_of_the_standard_deviation() -> None:
    """Keras divides by sqrt(eps) where renorm_stddev is below it, as after a float's rounding."""
    eps = 1e-3
    theirs = _keras(eps=eps)
    theirs["renorm_stddev"][:2] = 0.0, 0.9 * eps**0.5
    layer = BatchRenorm1d(C, eps=eps, limits=limits.fixed(float("inf"), float("inf"))).double()
    layer.load_state_dict(checkpoints.keras(theirs, statistics="renorm", eps=eps))
    x = torch.randn(7, C).double()
    sigma = np.maximum(theirs["renorm_stddev"], eps**0.5)
    exact = (x.numpy() - theirs["renorm_mean"]) / sigma * theirs["gamma"] + theirs["beta"]
    assert_close("training output", layer(x), torch.tensor(exact), torch.float64)


def test_keras_without_renorm_has_the_moving_pair_alone() -> None:
    theirs = _keras("moving_stddev", "renorm_mean", "renorm_stddev")
    mapped = checkpoints.keras(theirs)
    assert set(mapped) == set(NAMES["torchrl"])
    assert mapped["running_var"].tolist() == theirs["moving_variance"].tolist()
    assert int(mapped["num_batches_tracked"]) == 0


def test_keras_arrays_stay_as_they_are_and_share_memory() -> None:
    theirs = _keras()
    before = {name: value.copy() for name, value in theirs.items()}
    for statistics in ("moving", "renorm"):
        mapped = checkpoints.keras(theirs, statistics=statistics)
        assert list(theirs) == list(before)
        assert all((theirs[name] == value).all() for name, value in before.items())
        assert np.shares_memory(mapped["weight"].numpy(), theirs["gamma"])
        assert np.shares_memory(mapped["running_mean"].numpy(), theirs[f"{statistics}_mean"])


def test_keras_arrays_may_be_read_only_and_tensors_may_train() -> None:
    theirs: dict[str, Any] = _keras()
    theirs["gamma"].flags.writeable = False
    theirs["beta"] = nn.Parameter(torch.ones(C).double())
    mapped = checkpoints.keras(theirs)
    assert mapped["weight"].tolist() == theirs["gamma"].tolist()
    mapped["weight"].zero_()
    assert theirs["gamma"].all()
    assert not mapped["bias"].requires_grad
    assert mapped["bias"].data_ptr() == theirs["beta"].data_ptr()


def test_keras_dtype_and_device_are_kept() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        theirs = {name: torch.tensor(value).to(dtype) for name, value in _keras("gamma").items()}
        for statistics in ("moving", "renorm"):
            mapped = checkpoints.keras(theirs, statistics=statistics)
            kinds = {name: value.dtype for name, value in mapped.items()}
            assert kinds == dict.fromkeys(kinds, dtype) | {"num_batches_tracked": torch.int64}
    on_meta = {name: value.to("meta") for name, value in theirs.items()}
    assert all(v.is_meta for v in checkpoints.keras(on_meta, statistics="renorm").values())


def _with(change: Callable[[dict[str, Any]], Any], library: str) -> dict[str, Any]:
    state = _keras() if library == "keras" else dict(_policy(library))
    change(state)
    return state


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(name, value)


def _drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def drop(state: dict[str, Any]) -> None:
        for name in names:
            del state[name]

    return drop


NAN = torch.tensor([1.0, 2.0, float("nan"), 3.0, float("inf")])
REFUSED: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("sb3_contrib", _drop("3.scale", "3.steps"), "BatchRenorm1d '3' lacks 3.steps, 3.scale: it "),
    ("sb3_contrib", _drop("1.ra_mean"), "'1' lacks 1.ra_mean"),
    ("sb3_contrib", _drop("1.ra_var"), "'1' lacks 1.ra_var"),
    ("sb3_contrib", _set("1.scale", torch.ones(4)), r"scale torch.float32 \(4,\)"),
    ("sb3_contrib", _set("1.ra_mean", torch.ones(1, C)), r"ra_mean torch.float32 \(1, 5\)"),
    ("sb3_contrib", _set("1.bias", torch.ones(C).long()), r"bias torch.int64 \(5,\)"),
    ("sb3_contrib", _set("1.ra_var", NAN), r"ra_var .* got nan in channel 2 \(2 of 5 channels\)"),
    ("sb3_contrib", _set("1.ra_mean", NAN), "ra_mean is finite, got nan in channel 2"),
    ("sb3_contrib", _set("1.ra_var", -torch.ones(C)), "ra_var is finite and at least 0, got -1.0"),
    ("sb3_contrib", _set("1.steps", torch.tensor(-1)), r"steps counts .* got tensor\(-1\)"),
    ("sb3_contrib", _set("1.steps", torch.ones(1).long()), r"got tensor\(\[1\]\)"),
    ("sb3_contrib", _set("1.steps", torch.tensor(2.0)), r"got tensor\(2\.\)"),
    ("sb3_contrib", _set("1.scale", "ones"), "scale is no array that torch can hold, got str"),
    ("sb3_contrib", _set("1.weight", torch.ones(C)), "would overwrite 1.weight, which"),
    ("sb3_contrib", _set(7, torch.ones(C)), "maps names to tensors, got dict"),  # type: ignore[arg-type]
    ("torchrl", _drop("1.num_batches_tracked"), "'1' lacks 1.num_batches_tracked"),
    ("torchrl", _drop("1.weight", "1.bias"), "'1' lacks 1.weight, 1.bias"),
    ("torchrl", _set("1.running_var", NAN), "running_var .* got nan in channel 2"),
    ("torchrl", _set("1.weight", torch.ones(4)), r"weight torch.float32 \(4,\)"),
    ("keras", _drop("moving_mean"), "BatchNormalization lacks moving_mean: it has"),
    ("keras", _drop("moving_stddev"), "lacks moving_stddev"),
    ("keras", _drop("renorm_stddev", "renorm_mean"), "lacks renorm_mean, renorm_stddev"),
    ("keras", _set("kernel", np.ones(C)), "has no kernel; it has gamma, beta, moving_mean"),
    ("keras", _set("gamma", np.ones(4)), r"gamma torch.float64 \(4,\)"),
    ("keras", _set("gamma", np.ones(C, int)), r"gamma torch.int64 \(5,\)"),
    ("keras", _set("moving_mean", np.ones((1, C))), r"moving_mean torch.float64 \(1, 5\)"),
    ("keras", _set("moving_mean", NAN), "moving_mean is finite, got nan"),
    ("keras", _set("moving_variance", -np.ones(C)), "moving_variance is finite and at least 0"),
    ("keras", _set("beta", [[1.0], []]), "beta is no array that torch can hold, got list"),
    ("keras", _set("beta", np.array([None] * C)), "beta is no array that torch can hold"),
]


@pytest.mark.parametrize(
    ("library", "change", "text"), REFUSED, ids=[f"{x[0]}-{x[2]}" for x in REFUSED]
)
def test_refused(library: str, change: Callable[[dict[str, Any]], Any], text: str) -> None:
    mapping: Callable[[Mapping[str, Any]], Any] = getattr(checkpoints, library)
    mapping(_with(lambda state: None, library))
    with pytest.raises(ArgumentError, match=text):
        mapping(_with(change, library))


def test_refused_without_a_layer() -> None:
    batch_norm = nn.BatchNorm1d(C).state_dict()
    with pytest.raises(ArgumentError, match=r"No layer of sb3-contrib.*5 entries, such as weight"):
        checkpoints.sb3_contrib(batch_norm)
    with pytest.raises(ArgumentError, match=r"No layer of TorchRL.*0 entries"):
        checkpoints.torchrl({})
    with pytest.raises(ArgumentError, match="not what a file has around it"):
        checkpoints.torchrl({"model": batch_norm, "epoch": 3})
    with pytest.raises(ArgumentError, match="got list with no entries"):
        checkpoints.torchrl([])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="got 2 entries, such as bn/gamma, bn/moving_mean"):
        checkpoints.keras({"bn/gamma": np.ones(C), "bn/moving_mean": np.ones(C)})


def test_refused_where_all_entries_are_of_one_shape_but_no_vectors() -> None:
    """As older versions of Keras keep statistics of channels that are not last."""
    theirs = {name: value.reshape(1, C, 1, 1) for name, value in _keras().items()}
    with pytest.raises(ArgumentError, match=r"one length.* gamma torch\.float64 \(1, 5, 1, 1\)"):
        checkpoints.keras(theirs)


def test_refused_settings_of_keras() -> None:
    plain = _keras("moving_stddev", "renorm_mean", "renorm_stddev")
    with pytest.raises(ArgumentError, match="lacks moving_stddev, renorm_mean, renorm_stddev"):
        checkpoints.keras(plain, statistics="renorm")
    with pytest.raises(ArgumentError, match="'moving' or 'renorm', got 'inference'"):
        checkpoints.keras(plain, statistics="inference")  # type: ignore[arg-type]
    for step in (-1, 1.5):
        with pytest.raises(ArgumentError, match=f"step counts .* got {step}"):
            checkpoints.keras(plain, step=step)  # type: ignore[arg-type]
    for eps in (0.0, -1e-3, float("nan"), float("inf"), "1e-3"):
        with pytest.raises(ArgumentError, match=f"eps is .* got {eps!r}"):
            checkpoints.keras(plain, eps=eps)  # type: ignore[arg-type]


def test_refused_statistics_of_keras_are_those_that_are_taken() -> None:
    theirs = _keras()
    theirs["renorm_stddev"] = -np.ones(C)
    checkpoints.keras(theirs)
    with pytest.raises(ArgumentError, match=r"renorm_stddev is finite and at least 0, got -1\.0"):
        checkpoints.keras(theirs, statistics="renorm")
    wide = {name: value.astype(np.float16) for name, value in _keras().items()}
    wide["renorm_stddev"][1] = 300  # its square is beyond float16
    with pytest.raises(ArgumentError, match=r"renorm_stddev\^2 .* got inf in channel 1"):
        checkpoints.keras(wide, statistics="renorm")


def test_batch_norm_needs_no_mapping() -> None:
    theirs = nn.BatchNorm1d(C)
    x = torch.randn(9, C)
    theirs(x)
    ours = BatchRenorm1d(C)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert int(ours.num_batches_tracked) == 1  # type: ignore[arg-type]
    ours.restart_limits()
    assert int(ours.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_refused_statistics_can_be_mended_as_the_message_says() -> None:
    theirs = _layer("sb3_contrib", dtype=torch.float32)
    theirs["ra_var"] = torch.full((C,), float("inf"))
    with pytest.raises(ArgumentError, match=r"recompute them with renorm\.calibrate"):
        checkpoints.sb3_contrib(theirs)
    theirs |= {"ra_mean": torch.zeros(C), "ra_var": torch.ones(C)}
    layer = BatchRenorm1d(C, eps=1e-3)
    layer.load_state_dict(checkpoints.sb3_contrib(theirs))
    x = 3 + 2 * torch.randn(50, C)
    calibrate(layer, [x])
    assert_close("mean", layer.running_mean, x.double().mean(0), torch.float32)
