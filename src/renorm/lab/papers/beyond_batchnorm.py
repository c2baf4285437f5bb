"""Lubana, Dick and Tanaka 2021: what normalizers do to a net at initialization, and in training."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from renorm.lab.papers.study import Study
from renorm.lab.tasks.propagating import prediction_of
from renorm.measure import closed_forms
from renorm.report.claims import (
    Claim,
    Evidence,
    Value,
    alone,
    between,
    combined,
    contrast,
    figure,
    last_loss,
    log,
    more_than,
    orders,
)
from renorm.report.records import Record, Specification

# width and examples of fully connected nets; depth, width and examples of convolutional ones
_SIZES = {"smoke": (256, 256, 12, 32, 16), "laptop": (1024, 512, 20, 64, 32)}
_SIZES["gpu"] = (1024, 512, 40, 128, 64)
_TRAINED = {
    "smoke": Specification(
        "digits", "plain(depth=6, stages=2, width=16)", "batch_norm", "iid", 0, 40, 0.05, 32, 4
    ),
    "laptop": Specification(
        "cifar10", "plain(depth=10, stages=3, width=16)", "batch_norm", "iid", 0, 200, 0.05, 32, 4
    ),
    "gpu": Specification(
        "cifar10", "plain(depth=20, stages=3, width=32)", "batch_norm", "iid", 0, 2000, 0.05, 64, 4
    ),
}
_slowness = last_loss(math.log(10))  # that of guessing one of ten classes
_LAYERS, _BLOCKS = 12, 8  # of the fully connected nets
_GROUP_SIZES = {
    "1": "instance_norm",
    **{str(size): f"group_norm(group_size={size})" for size in (2, 4, 8, 16)},
    "all": "layer_norm",
}
_NORMALIZERS = (
    "batch_norm",
    "instance_norm",
    "group_norm(group_size=2)",
    "group_norm(group_size=4)",
    "group_norm(group_size=8)",
    "layer_norm",
    "filter_response_norm",
    "variance_norm",
    "evonorm_s0",
    "weight_norm",
    "scaled_weight_standardization",
    "none",
)
_NAMES = ("batch_norm", "layer_norm", "none")


def arms(scale: str) -> dict[str, Specification]:
    """What is measured and what is trained at a scale."""
    width, examples, depth, channels, images = _SIZES[scale]
    vectors = Specification(
        "gaussian_vectors", "", "batch_norm", "iid", 0, 10, _TRAINED[scale].lr, examples, 4
    )
    fresh = replace(vectors, task="gaussian_images", batch_size=images)
    found = {}
    for name in _NAMES:
        plain, residual = f"plain(depth={_LAYERS}, width={width})", f"residual(depth={_BLOCKS}, "
        found[f"plain, {name}"] = replace(vectors, model=plain, normalizer=name)
        residual += f"width={width // 2})"
        found[f"residual, {name}"] = replace(vectors, model=residual, normalizer=name)
    for size, name in _GROUP_SIZES.items():
        model = f"plain(depth={depth}, width={channels})"
        found[f"group size {size}"] = replace(fresh, model=model, normalizer=name)
    deep = replace(fresh, model=f"plain(depth={depth}, width={channels})")
    found["batch norm, deep"] = deep
    found["batch norm, half as deep"] = replace(
        deep, model=f"plain(depth={depth // 2}, width={channels})"
    )
    found["batch norm, batch of 2"] = replace(deep, batch_size=2)
    for name in _NORMALIZERS:
        trained = replace(_TRAINED[scale], normalizer=name)
        found[f"predicted, {name}"] = replace(fresh, model=trained.model, normalizer=name)
        found[f"trained, {name}"] = trained
    return found


def claims(scale: str) -> tuple[Claim, ...]:
    """What the paper says, what is known in closed form, and how far the prediction carries."""
    return (*_of_closed_forms(), *_of_group_sizes(scale), *_of_depth(), *_of_training())


def _of_closed_forms() -> tuple[Claim, ...]:
    told = closed_forms.gradient_growth()
    near = {"unit": "times", "decimals": 3}
    return (
        Claim(
            "Without a normalizer the mean square of a residual stream doubles in every block",
            alone("residual, none", _per_block),
            between(1.9, 2.1),
            **near,
        ),
        *(
            Claim(
                f"With {_words(name)} on the branch it grows by 1 a block: at block {_BLOCKS - 1}, "
                f"over {_BLOCKS}",
                alone(f"residual, {name}", _over_linear),
                between(0.95, 1.05),
                **near,
            )
            for name in ("batch_norm", "layer_norm")
        ),
        Claim(
            f"With batch norm the squared gradient grows {told:.3f} times a layer, backward, "
            "within 5 %",
            alone("plain, batch_norm", figure("gradient_growth")),
            between(0.95 * told, 1.05 * told),
            **near,
        ),
        *(
            Claim(
                f"With {_words(name)} it stays level within 5 % a layer",
                alone(f"plain, {name}", figure("gradient_growth")),
                between(0.95, 1.05),
                **near,
            )
            for name in ("layer_norm", "none")
        ),
        Claim(
            "With layer norm the cosine of two examples follows the map of ReLU: the largest "
            "distance over depth",
            alone("plain, layer_norm", _off_the_map),
            between(-math.inf, 0.1),
            unit="",
            decimals=3,
        ),
    )


def _of_group_sizes(scale: str) -> tuple[Claim, ...]:
    names = [f"group size {size}" for size in _GROUP_SIZES]
    last = _SIZES[scale][2] - 1  # growths there are: of the layers 2 to depth - 1

    def told(size: int) -> float:
        by_depth = closed_forms.gradient_growth_by_depth(last - 1, size)
        return math.exp(sum(map(math.log, by_depth)) / len(by_depth))

    return (
        Claim(
            "Larger groups make the last activations of examples more alike: the least step of "
            "their cosine from 1 channel to all",
            _least_step(names, figure("cosine")),
            more_than(),
            unit="",
            decimals=3,
        ),
        Claim(
            "The stable rank falls at every step: the least fall",
            _least_step(names[::-1], figure("stable_rank")),
            more_than(),
            unit="",
            decimals=3,
        ),
        Claim(
            "Smaller groups give larger gradients in early layers: the least step of their ratio "
            "to those of late ones, in orders of magnitude, from all channels to 1",
            _least_step(names[::-1], log(figure("gradient_ratio"))),
            more_than(),
            unit="orders",
            decimals=3,
        ),
        *(
            Claim(
                f"Groups of {size}: the squared gradient grows {told(size):.3f} times a layer "
                "within 5 %",
                alone(f"group size {size}", figure("gradient_growth")),
                between(0.95 * told(size), 1.05 * told(size)),
                unit="times",
                decimals=3,
                note="The figure is of a derivation of this package, not the paper's; it takes "
                "positions of one example for as alike as those of two.",
            )
            for size in (1, 2, 4, 8)
        ),
    )


def _of_depth() -> tuple[Claim, ...]:
    return (
        Claim(
            "With batch norm gradients grow with depth: their ratio over that of half the depth",
            orders("batch norm, deep", "batch norm, half as deep", figure("gradient_ratio")),
            more_than(),
            unit="orders",
            decimals=2,
        ),
        Claim(
            "Batch norm keeps examples apart in a batch of 2 as in a large one: the difference of "
            "their cosines is within 0.05",
            contrast({"batch norm, batch of 2": 1, "batch norm, deep": -1}, figure("cosine")),
            between(-0.05, 0.05),
            unit="",
            decimals=3,
        ),
    )


def _of_training() -> tuple[Claim, ...]:
    grouped = [name for name in list(_GROUP_SIZES.values())[1:] if name in _NORMALIZERS]
    return (
        Claim(
            "Layer norm trains more slowly than groups of 4: by how much its last training loss is "
            "higher",
            contrast(
                {"trained, layer_norm": 1, "trained, group_norm(group_size=4)": -1}, _slowness
            ),
            more_than(),
            unit="",
            decimals=3,
        ),
        Claim(
            "The more alike examples are at first, the slower is training, over group sizes: pairs "
            "in that order, above chance",
            _agreement(grouped, figure("cosine")),
            more_than(25),
            unit="points above 50",
            note="Groups of 2, 4, 8 and all channels. Groups of 1 are left out: the mean over "
            "positions of what instance norm gives is nearly the same for all examples.",
        ),
        Claim(
            "The more alike examples are at first, the slower is training, over all normalizers",
            _agreement(_NORMALIZERS, figure("cosine")),
            more_than(25),
            unit="points above 50",
        ),
        Claim(
            "renorm predict ranks normalizers as training does: pairs in the same order, above "
            "chance (twice this is Kendall's tau in %)",
            _agreement(_NORMALIZERS, _predicted_place),
            more_than(25),
            unit="points above 50",
            note="Training is ranked by the mean loss over the last tenth of a short run, with one "
            "learning rate for all.",
        ),
        Claim(
            "The more pooling leaves of the differences between fresh examples (contrast), the "
            "faster is training: pairs in that order, above chance",
            _agreement(_NORMALIZERS, _lack_of_contrast),
            more_than(25),
            unit="points above 50",
            note="A measure of this package, not the paper's.",
        ),
        Claim(
            "The first three of renorm predict hold the fastest",
            _holds_the_fastest(3),
            more_than(75, nothing=100 * 3 / len(_NORMALIZERS)),
            unit="% of seeds",
            decimals=0,
        ),
    )


def _words(name: str) -> str:
    return "no normalizer" if name == "none" else name.replace("_", " ")


def _per_block(record: Record) -> float | None:
    """The factor of the mean square of the stream, between the first and the last block known."""
    first, last = (figure(f"stream {block}")(record) for block in (1, _BLOCKS - 1))
    return None if not first or last is None else (last / first) ** (1 / (_BLOCKS - 2))


def _over_linear(record: Record) -> float | None:
    """The mean square of the stream at the last block known, over the closed form."""
    last = figure(f"stream {_BLOCKS - 1}")(record)
    told = closed_forms.residual_mean_square(_BLOCKS - 1, normalized=True)[-1]
    return None if last is None else last / float(told)


def _off_the_map(record: Record) -> float | None:
    found = [figure(f"cosine {layer + 1}")(record) for layer in range(_LAYERS)]
    told = closed_forms.correlation_by_depth(0, _LAYERS)
    off = [abs(one - float(c)) for one, c in zip(found, told, strict=True) if one is not None]
    return max(off) if len(off) == _LAYERS else None


def _least_step(names: Sequence[str], of: Value) -> Evidence:
    """The least difference of neighbours, of arms in the order in which the value is to rise."""

    def least(values: list[float]) -> float:
        return min(after - before for before, after in pairwise(values))

    return combined([(name, of) for name in names], least)


def _predicted_place(record: Record) -> float | None:
    return None if record.error is not None else prediction_of(record).place


def _lack_of_contrast(record: Record) -> float | None:
    left = figure("contrast")(record)
    return None if left is None else -left


def _terms(names: Sequence[str], of: Value) -> list[tuple[str, Value]]:
    measured = [(f"predicted, {name}", of) for name in names]
    return measured + [(f"trained, {name}", _slowness) for name in names]


def _agreement(names: Sequence[str], of: Value) -> Evidence:
    """Pairs of normalizers that a value orders as the slowness of training, in % above 50.

    A pair that either has equal counts for a half.
    """

    def above_chance(values: list[float]) -> float:
        told, found = values[: len(names)], values[len(names) :]
        signs = [
            _sign(told[i], told[j]) * _sign(found[i], found[j])
            for i, j in combinations(range(len(names)), 2)
        ]
        return 50 * sum(signs) / len(signs)

    return combined(_terms(names, of), above_chance)


def _sign(one: float, other: float) -> int:
    return (one > other) - (one < other)


def _holds_the_fastest(count: int) -> Evidence:
    """100 for a seed whose fastest normalizer is among the first of the prediction, else 0."""

    def held(values: list[float]) -> float:
        told, found = values[: len(_NORMALIZERS)], values[len(_NORMALIZERS) :]
        fastest = min(range(len(found)), key=found.__getitem__)
        return 100.0 * (sorted(told).index(told[fastest]) < count)

    return combined(_terms(_NORMALIZERS, _predicted_place), held)


STUDY = Study(
    "beyond-batchnorm",
    "Beyond BatchNorm: Towards a Unified Understanding of Normalization in Deep Learning",
    "Lubana, Dick and Tanaka 2021, arXiv 2106.05956",
    "Fresh nets of equal layers with each normalizer take one batch of Gaussian numbers forward, "
    "and gradients of a random linear function backward: fully connected nets beside closed forms, "
    "convolutional ones over group sizes. Thin nets of the same architecture are then trained for "
    "a short while, to see how far what was measured at first tells how fast they learn.",
    arms,
    claims,
    {"smoke": 2, "laptop": 3, "gpu": 5},
)
