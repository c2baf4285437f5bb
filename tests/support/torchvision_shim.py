"""Importing torchvision and timm where their compiled operators do not match torch.

torchvision from PyPI is linked to a CUDA build of torch. On a CPU build its operators are missing,
and the import fails because it registers properties of two of them. Declaring these two is enough
for models; where torchvision works nothing is done.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
from torch import library

_declared: list[library.Library] = []  # operators live as long as the object that declares them


def torchvision_models() -> ModuleType:
    """``torchvision.models``; skips the test where it cannot be imported."""
    _require("torchvision")
    _import_torchvision()
    return importlib.import_module("torchvision.models")


def timm() -> ModuleType:
    """``timm``, which imports torchvision; skips the test where it cannot be imported."""
    _require("timm")
    _require("torchvision")
    _import_torchvision()
    return importlib.import_module("timm")


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(declared)
        importlib.import_module("torchvision")
