"""Ioffe 2017: batch renorm where groups are small or of few classes, and where they are not."""

from dataclasses import replace

from renorm.report.records import Specification

# batch norm on the whole batch, at each scale
_IID = {
    "smoke": Specification("digits", "convnet", "batch_norm", "iid", 0, 60, 0.1, 32, 8),
    "laptop": Specification(
        "mirrored_cifar10", "resnet14", "batch_norm", "iid", 0, 4000, 0.1, 64, 8
    ),
    "gpu": Specification(
        "mirrored_cifar10", "resnet20", "batch_norm", "iid", 0, 20_000, 0.1, 128, 8
    ),
}
_TWINS = {
    "smoke": Specification("digits", "convnet", "batch_norm", "iid", 0, 60, 0.1, 32, 16),
    "laptop": Specification("characters", "convnet", "batch_norm", "iid", 0, 1500, 0.1, 128, 32),
    "gpu": Specification("characters", "resnet20", "batch_norm", "iid", 0, 6000, 0.1, 256, 32),
}
# short name of what shares statistics -> condition, group size
_GROUPS = {
    "groups of 4": ("microbatch", 4),
    "groups of 2": ("microbatch", 2),
    "16 of 4 classes": ("four_classes", 16),
    "8 of 2 classes": ("two_classes", 8),
    "8 of 1 class": ("clustered", 8),
}
# batch renorm's settings where two classes share statistics
_SETTINGS = {
    "open at once": "batch_renorm(ramp=False)",
    "small limits": "batch_renorm(d_max=0.5, r_max=1.25)",
    "update rate 0.1": "batch_renorm(momentum=0.1)",
}
_BATCH_NORM, _BATCH_RENORM = "batch norm", "batch renorm"


def arms(scale: str) -> dict[str, Specification]:
    """What is run at a scale; the name of an arm says what shares statistics, and the layer."""
    plain, twins = _IID[scale], _TWINS[scale]
    groups = {"whole batch": plain}
    for name, (condition, size) in _GROUPS.items():
        groups[name] = replace(plain, condition=condition, group_size=size)
    groups["characters, whole batch"] = twins
    for name, condition in (("twins", "twins"), ("halves", "halved_twins")):
        groups[f"characters, {name}"] = replace(twins, condition=condition)
    found = {}
    for name, run in groups.items():
        found[f"{name}, {_BATCH_NORM}"] = run
        found[f"{name}, {_BATCH_RENORM}"] = replace(run, normalizer="batch_renorm")
    two = groups["8 of 2 classes"]
    for name, normalizer in _SETTINGS.items():
        found[f"8 of 2 classes, {_BATCH_RENORM}, {name}"] = replace(two, normalizer=normalizer)
    return found
