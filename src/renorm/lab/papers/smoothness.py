"""Santurkar et al. 2018: what batch norm does to the loss landscape, and to covariate shift."""

import math
from dataclasses import replace

from renorm.lab.papers.study import Study
from renorm.report.claims import (
    Claim,
    Evidence,
    alone,
    between,
    contrast,
    figure,
    last_loss,
    more_than,
    orders,
    percent,
    weighted,
)
from renorm.report.records import Specification

_IMAGES = {
    "smoke": Specification("smooth_digits", "convnet", "batch_norm", "iid", 0, 40, 0.03, 32, 4),
    "laptop": Specification("smooth_cifar10", "vgg_a", "batch_norm", "iid", 0, 800, 0.03, 64, 4),
    "gpu": Specification("smooth_cifar10", "vgg", "batch_norm", "iid", 0, 5000, 0.03, 128, 4),
}
_LINEAR = Specification("smooth_linear", "linear", "batch_norm", "iid", 0, 400, 0.01, 256, 4)
_PAPERS_RATE = 0.1
_NORMALIZERS = {
    "none": "none",
    "noisy": "noisy_batch_norm",
    "l1": "lp_batch_norm(p=1)",
    "l inf": "lp_batch_norm(p=inf)",
}
_BN, _NONE = "batch norm", "none"
_ORDERS = "orders of magnitude"
_LOSS = "of the loss"
_loss = last_loss(math.log(10))  # that of guessing one of ten classes
_RATES = (
    "In first trials (one seed) beta was near 2 / rate without norms, 65 and 18, and about 15 with "
    "batch norm at both rates: the gap narrows as the rate grows, along the same steps."
)


def arms(scale: str) -> dict[str, Specification]:
    """What is run at a scale: a plain net on images, at two rates, and a deep linear one."""
    plain, linear = _IMAGES[scale], _LINEAR
    if scale == "smoke":
        linear = replace(linear, steps=20)
    found = {_BN: plain, f"linear, {_BN}": linear}
    for name, normalizer in _NORMALIZERS.items():
        found[name] = replace(plain, normalizer=normalizer)
    for name in (_NONE, "l1"):
        found[f"linear, {name}"] = replace(linear, normalizer=_NORMALIZERS[name])
    for name in (_BN, _NONE):
        found[f"{name}, rate {_PAPERS_RATE}"] = replace(found[name], lr=_PAPERS_RATE)
    return found


def claims(scale: str) -> tuple[Claim, ...]:
    """What the paper says of these arms; the same at every scale."""
    return (*_of_the_landscape(), *_of_training(), *_of_the_shift(), *_of_the_linear_net())


def _of_the_landscape() -> tuple[Claim, ...]:
    what = {
        "loss range": "The losses along the gradient range over ten times as much without batch "
        "norm",
        "predictiveness": "The gradient changes ten times as much along itself without batch norm",
    }
    nearly_two = {"predictiveness": "nearly two orders of magnitude (unchecked)"}
    steps = "Steps along the gradient are up to 0.4, at either rate."
    found = [
        Claim(
            text,
            orders(_NONE, _BN, figure(name)),
            more_than(1),
            unit=_ORDERS,
            paper=nearly_two.get(name, ""),
            note=steps,
            decimals=2,
        )
        for name, text in what.items()
    ]
    rate = f"rate {_PAPERS_RATE}"
    found += [
        Claim(
            f"{text}, trained at a rate of {_PAPERS_RATE}",
            orders(f"{_NONE}, {rate}", f"{_BN}, {rate}", figure(name)),
            more_than(1),
            unit=_ORDERS,
            note=_RATES,
            decimals=2,
        )
        for name, text in what.items()
    ]
    smoother = (
        ("The effective beta-smoothness is larger without batch norm", _BN, "beta"),
        ("The gradient is less predictive than with the l_1 norm, too", "l1", "predictiveness"),
        ("The gradient is less predictive than with l_inf, too", "l inf", "predictiveness"),
    )
    found += [
        Claim(text, orders(_NONE, arm, figure(name)), more_than(), unit=_ORDERS, decimals=2)
        for text, arm, name in smoother
    ]
    return tuple(found)


def _of_training() -> tuple[Claim, ...]:
    return (
        Claim(
            "The net trains better with batch norm",
            contrast({_BN: 1, _NONE: -1}),
            more_than(3),
            paper="about 83 % against 80 % (unchecked), after far longer training",
        ),
        Claim(
            "The training loss falls faster with batch norm",
            _fall(_BN),
            more_than(),
            unit=_LOSS,
            decimals=2,
        ),
        Claim(
            "It does so with noisy batch norm, too",
            _fall("noisy"),
            more_than(),
            unit=_LOSS,
            decimals=2,
        ),
        Claim(
            "Noisy batch norm gains more than half of what batch norm gains: how far it is above "
            "that mark",
            contrast({_NONE: 1 / 2, _BN: 1 / 2, "noisy": -1}, _loss),
            more_than(),
            unit=_LOSS,
            note="The noise is in the training loss itself; its constants are ours.",
            decimals=2,
        ),
        Claim(
            "The training loss falls faster with the l_1 norm",
            _fall("l1"),
            more_than(),
            unit=_LOSS,
            decimals=2,
        ),
        Claim("It does so with l_inf, too", _fall("l inf"), more_than(), unit=_LOSS, decimals=2),
    )


def _fall(arm: str) -> Evidence:
    """How far the training loss at the end is below that without a norm."""
    return contrast({_NONE: 1, arm: -1}, _loss)


def _of_the_shift() -> tuple[Claim, ...]:
    cosine = figure("shift cosine")
    rate = f"rate {_PAPERS_RATE}"
    return (
        Claim(
            "Batch norm does not halve the internal covariate shift: the l_2 distance of "
            "gradients with it over that without",
            orders(_BN, _NONE, figure("shift")),
            between(-math.log10(2), math.inf),
            unit=_ORDERS,
            decimals=2,
        ),
        Claim(
            "Nor does it bring the cosine of gradients nearer to 1 by 0.05: without less with it",
            weighted([(1, _NONE, cosine), (-1, _BN, cosine)]),
            between(-0.05, math.inf),
            unit="",
            decimals=2,
        ),
        Claim(
            f"Nor at a rate of {_PAPERS_RATE}: without less with it",
            weighted([(1, f"{_NONE}, {rate}", cosine), (-1, f"{_BN}, {rate}", cosine)]),
            between(-0.05, math.inf),
            unit="",
            decimals=2,
        ),
        Claim(
            "Noisy batch norm shifts more than batch norm: cosine of gradients, with batch norm "
            "less with noisy batch norm",
            weighted([(1, _BN, cosine), (-1, "noisy", cosine)]),
            more_than(),
            unit="",
            decimals=3,
        ),
    )


def _of_the_linear_net() -> tuple[Claim, ...]:
    cosine = figure("shift cosine")
    none, batch_norm = f"linear, {_NONE}", f"linear, {_BN}"
    return (
        Claim(
            "In the deep linear net there is hardly a shift without batch norm: the cosine",
            alone(none, cosine),
            between(0.95, math.inf),
            unit="",
            paper="near the ideal 1",
            decimals=3,
        ),
        Claim(
            "There batch norm makes the shift larger: cosine without less with it",
            weighted([(1, none, cosine), (-1, batch_norm, cosine)]),
            more_than(0.05),
            unit="",
            decimals=2,
        ),
        Claim(
            "The deep linear net fits better with batch norm",
            contrast({batch_norm: 1, none: -1}, percent),
            more_than(),
        ),
        Claim(
            "The deep linear net fits better with the l_1 norm than without a norm",
            contrast({"linear, l1": 1, none: -1}, percent),
            more_than(),
        ),
    )


STUDY = Study(
    "smoothness",
    "How Does Batch Normalization Help Optimization?",
    "Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604",
    "A thin plain net of eight convolutions on CIFAR-10, trained by SGD without momentum, decay "
    "or augmentation, and 25 linear layers on Gaussian data, by full gradient descent. Twenty "
    "times along a run the landscape is looked at in steps along the gradient, and ten times the "
    "covariate shift by a plain step; the figures are medians over these looks.",
    arms,
    claims,
    {"smoke": 2, "laptop": 3, "gpu": 5},
)
