"""The public names, and that every one of them is documented with an example."""

import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest

import renorm

NAMES = {
    "ArgumentError", "BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d", "BatchRenormAct1d",
    "BatchRenormAct2d", "BatchRenormAct3d", "CollectiveError", "ConversionError",
    "CrossIterationBatchNorm1d", "CrossIterationBatchNorm2d", "CrossIterationBatchNorm3d",
    "CrossIterationBatchNormAct2d",
    "LazyBatchRenorm1d", "LazyBatchRenorm2d", "LazyBatchRenorm3d", "LazyBatchRenormAct1d",
    "LazyBatchRenormAct2d", "LazyBatchRenormAct3d", "RenormError", "accumulate", "calibrate",
    "checkpoints", "convert", "distributed", "doctor", "freeze", "functional", "fuse", "limits",
    "measure", "nn", "normalizer", "normalizers", "summary", "to_batchnorm", "unfreeze", "unfuse",
}  # fmt: skip
LATER = {"diagnose"}  # made by the module itself, each time that it is asked for
MODULES = {module.name for module in pkgutil.iter_modules(renorm.__path__)}


def test_public_names_are_these() -> None:
    assert renorm.doctor  # is imported where it is first asked for
    assert renorm.measure
    names = {name for name in vars(renorm) if not name.startswith("_")}
    assert names - (MODULES - NAMES) == NAMES  # a module appears once something imports it


@pytest.mark.parametrize("name", sorted(NAMES | LATER))
def test_public_name_has_an_example(name: str) -> None:
    thing = getattr(renorm, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception)):
        assert ">>>" in (inspect.getdoc(thing) or "")


def test_version_is_that_of_the_project_file() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == renorm.__version__
