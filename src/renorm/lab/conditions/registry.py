"""The conditions a comparison chooses from."""

from renorm.errors import ArgumentError
from renorm.lab.conditions.base import Condition, check_sizes
from renorm.lab.conditions.clustered import Clustered, Halved
from renorm.lab.conditions.pairs import PK
from renorm.lab.conditions.shuffled import Frames, Shuffled, Sorted
from renorm.lab.conditions.views import filmed, shifted


def _pk(batch: int, group: int) -> PK:
    check_sizes(batch, group)
    return PK(batch // group, group)


def _twins(batch: int, group: int) -> Clustered:
    if group % 2:
        raise ArgumentError(
            f"Groups hold two examples of each class, so their size is even, got {group}. Change "
            "the group size."
        )
    return Clustered(batch, group, group // 2)


CONDITIONS = {
    entry.name: entry
    for entry in (
        Condition(
            "iid",
            "batches of {batch} at random, one group",
            lambda batch, group: Shuffled(batch, batch),
        ),
        Condition(
            "microbatch",
            "batches of {batch} at random, statistics per {group} examples",
            Shuffled,
        ),
        Condition(
            "clustered",
            "statistics per {group} examples of ONE class; groups take classes in turn",
            lambda batch, group: Clustered(batch, group, 1),
            needs_classes=True,
        ),
        Condition(
            "two_classes",
            "as clustered, each group from two classes (not in the default)",
            lambda batch, group: Clustered(batch, group, 2),
            needs_classes=True,
        ),
        Condition(
            "four_classes",
            "as clustered, each group from four classes (not in the default)",
            lambda batch, group: Clustered(batch, group, 4),
            needs_classes=True,
        ),
        Condition(
            "twins",
            "statistics per {group} examples, two of each class in them",
            _twins,
            needs_classes=True,
        ),
        Condition(
            "halved_twins",
            "the batches of twins, statistics per half a group: twins are parted",
            lambda batch, group: Halved(_twins(batch, group)),
            needs_classes=True,
        ),
        Condition(
            "accumulation",
            "batches of {batch} at random, in {group} examples a forward, one step for all",
            Shuffled,
            accumulate=True,
        ),
        Condition(
            "devices",
            "batches of {batch} at random, each {group} examples on a device of their own",
            Shuffled,
            devices=True,
        ),
        Condition(
            "pk",
            "batches of {batch}, {group} examples of each class in them, one group",
            _pk,
            needs_classes=True,
        ),
        Condition(
            "sorted",
            "batches of {batch} through the data class by class, statistics per {group} examples",
            Sorted,
            needs_classes=True,
        ),
        Condition(
            "frames",
            "statistics per clip: {group} frames of ONE image that moves a little",
            Frames,
            train_view=filmed,
            test_view=filmed,
        ),
        Condition(
            "shift",
            "as iid, tested on images with half the contrast, more brightness and noise",
            lambda batch, group: Shuffled(batch, batch),
            test_view=shifted,
        ),
    )
}
