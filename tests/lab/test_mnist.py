import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.datafiles import NAMES, md5, write_mnist
from renorm.errors import DataError, MissingExtraError
from renorm.lab.data import fashion_mnist, mnist

module: Any = importlib.import_module("renorm.lab.data.mnist")
READERS = {"mnist": mnist, "fashion_mnist": fashion_mnist}
PLACES = {
    "mnist": ("MNIST/raw", "mnist"),
    "fashion_mnist": ("FashionMNIST/raw", "fashion_mnist"),
}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take the files of a folder for the published ones."""

    def as_published(name: str, folder: Path) -> None:
        sums = {}
        for file in module.MNIST.md5:
            path = next(folder.glob(f"{file}*"))
            sums[file] = (md5(path), "") if path.suffix == ".gz" else ("", md5(path))
        held = module.Published(TITLES[name], name, sums)
        monkeypatch.setattr(module, name.upper(), held)

    return as_published


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_images_and_labels_are_those_of_the_files(
    tmp_path: Path, publish: Any, name: str, place: int, zipped: bool
) -> None:
    folder = tmp_path / PLACES[name][place]
    arrays = write_mnist(folder, zipped=zipped)
    publish(name, folder)
    images = READERS[name](tmp_path)
    parts = [images.train_images, images.train_labels, images.test_images, images.test_labels]
    for part, file in zip(parts, NAMES, strict=True):
        expected = torch.from_numpy(arrays[file]).to(part.dtype)
        assert torch.equal(part.squeeze(1) if part.dim() == 4 else part, expected)
    assert images.train_images.dtype == torch.uint8
    assert images.train_images.shape == (40, 1, 28, 28)
    assert (images.classes, images.note) == (10, "")


def test_batches_are_scaled_and_memory_stays_uint8(tmp_path: Path, publish: Any) -> None:
    write_mnist(tmp_path / "mnist", zipped=True)
    publish("mnist", tmp_path / "mnist")
    train, test = mnist(tmp_path).examples()
    inputs, _ = train.batch(torch.arange(len(train)))
    assert train.inputs.dtype == test.inputs.dtype == torch.uint8
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named_with_where_it_was_looked_for(
    tmp_path: Path, publish: Any, name: str
) -> None:
    first, second = PLACES[name]
    write_mnist(tmp_path / first, zipped=True)
    publish(name, tmp_path / first)
    (tmp_path / first / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        READERS[name](tmp_path)
    for part in (
        f"{TITLES[name]} is not complete",
        "no t10k-labels-idx1-ubyte.gz in",
        str(tmp_path / first),
        str(tmp_path / second),
        "--data-dir",
        "RENORM_DATA",
    ):
        assert part in str(caught.value)


def test_the_folder_is_that_of_the_environment_and_else_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENORM_DATA", str(tmp_path / "there"))
    with pytest.raises(DataError, match=f"in {tmp_path / 'there'}"):
        mnist()
    monkeypatch.delenv("RENORM_DATA")
    with pytest.raises(DataError, match="in data/MNIST/raw or data/mnist"):
        mnist()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_named_with_both_md5(tmp_path: Path, publish: Any, zipped: bool) -> None:
    write_mnist(tmp_path / "mnist", zipped=zipped)
    publish("mnist", tmp_path / "mnist")
    path = next((tmp_path / "mnist").glob("t10k-images*"))
    expected = md5(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    for part in (str(path), f"md5 is {md5(path)}", f"expected {expected}"):
        assert part in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    images, labels = torch.zeros(3, 28, 28), torch.zeros(2)
    with pytest.raises(DataError, match=r"N labels, got \(3, 28, 28\) and \(2,\)"):
        module.paired(images, labels, tmp_path)
    with pytest.raises(DataError, match=r"got \(2, 28, 27\)"):
        module.paired(images[:2, :, 1:], labels, tmp_path)


class Fake:
    """Stands for torchvision.datasets; its download is ``fetch``."""

    def __init__(self, fetch: Any) -> None:
        self.fetch = fetch
        self.asked: list[tuple[str, Path]] = []

    def __getattr__(self, name: str) -> Any:
        def dataset(root: Path, download: bool) -> None:
            assert download
            self.asked.append((name, root))
            self.fetch()

        return dataset


def test_torchvision_is_asked_for_what_is_missing_and_for_nothing_else(
    tmp_path: Path, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "source", zipped=True)
    publish("fashion_mnist", tmp_path / "source")
    theirs = tmp_path / "root" / "FashionMNIST" / "raw"
    fake = Fake(lambda: write_mnist(theirs, zipped=True))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=fake))
    with pytest.raises(DataError, match="is not complete"):
        fashion_mnist(tmp_path / "root")
    assert fake.asked == []
    for _ in range(2):
        assert len(fashion_mnist(tmp_path / "root", download=True).train_images) == 40
    assert fake.asked == [("FashionMNIST", tmp_path / "root")]


def test_a_download_that_fails_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("Error downloading it:\nno route\n")

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=Fake(fail)))
    with pytest.raises(DataError, match=r"(?s)download MNIST .*no route\. Fetch") as caught:
        mnist(tmp_path, download=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_without_torchvision_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[data\]"'):
        mnist(tmp_path, download=True)
