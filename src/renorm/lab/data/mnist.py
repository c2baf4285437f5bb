"""MNIST and Fashion-MNIST, from the four files that their authors publish."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from renorm.errors import DataError
from renorm.lab.data import files, idx
from renorm.lab.data.images import Images

CLASSES, SIDE = 10, 28


@dataclass(frozen=True)
class Published:
    """A set of four files.

    Args:
        title: as its authors write it; also, without the hyphen, torchvision's class and folder.
        flat: folder of the .gz files where torchvision's is not there.
        md5: name of a file -> md5 of the .gz file, and of the file unpacked.
    """

    title: str
    flat: str
    md5: dict[str, tuple[str, str]]

    @property
    def name(self) -> str:
        """Of torchvision's class and folder."""
        return self.title.replace("-", "")


MNIST = Published(
    "MNIST",
    "mnist",
    {
        "train-images-idx3-ubyte": (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "6bbc9ace898e44ae57da46a324031adb",
        ),
        "train-labels-idx1-ubyte": (
            "d53e105ee54ea40749a09fcbcd1e9432",
            "a25bea736e30d166cdddb491f175f624",
        ),
        "t10k-images-idx3-ubyte": (
            "9fb629c4189551a2d022fa330f9573f3",
            "2646ac647ad5339dbf082846283269ea",
        ),
        "t10k-labels-idx1-ubyte": (
            "ec29112dd5afa0611ce80d1b7f02629c",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    },
)
FASHION_MNIST = Published(
    "Fashion-MNIST",
    "fashion_mnist",
    {
        "train-images-idx3-ubyte": (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ),
        "train-labels-idx1-ubyte": (
            "25c81989df183df01b3e8a0aad5dffbe",
            "9018921c3c673c538a1fc5bad174d6f9",
        ),
        "t10k-images-idx3-ubyte": (
            "bef4ecab320f06d8554ea6380940ec79",
            "8181f5470baa50b63fa0f6fddb340f0a",
        ),
        "t10k-labels-idx1-ubyte": (
            "bb300cfdad3c16e7a12a480ee83cd310",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    },
)


def mnist(folder: Path | None = None, *, download: bool = False) -> Images:
    """MNIST: 60,000 + 10,000 handwritten digits, grey, 28 x 28.

    Args:
        folder: has ``MNIST/raw`` or ``mnist``, with the files gzipped or unpacked; None for the
            default of ``files.root``.
        download: whether torchvision may fetch what is not there.

    Raises:
        DataError: a file is not there or damaged, or could not be fetched.
        MissingExtraError: it is to be fetched, and torchvision is not installed.

    Source: LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document
    recognition.
    """
    return _read(MNIST, files.root(folder), download)


def fashion_mnist(folder: Path | None = None, *, download: bool = False) -> Images:
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing in ten classes, grey, 28 x 28.

    Args, raises: as ``mnist``; the folder has ``FashionMNIST/raw`` or ``fashion_mnist``.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
    """
    return _read(FASHION_MNIST, files.root(folder), download)


def paired(images: Tensor, labels: Tensor, where: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) uint8 and labels (N,) int64, of arrays that belong together.

    Raises:
        DataError: they do not.
    """
    if images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where} must have (N, {SIDE}, {SIDE}) images and N labels, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}. Fetch the files again."
        )
    return images[:, None], labels.long()


def _read(published: Published, folder: Path, download: bool) -> Images:
    try:
        paths = _paths(published, folder)
    except DataError:
        if not download:
            raise
        files.torchvision_download(published.title, published.name, folder)
        paths = _paths(published, folder)
    arrays = []
    for path, sums in zip(paths, published.md5.values(), strict=True):
        held = files.checked(path, sums[0] if path.suffix == ".gz" else sums[1])
        arrays.append(idx.parsed(path, held))
    train = paired(arrays[0], arrays[1], paths[0].parent)
    test = paired(arrays[2], arrays[3], paths[2].parent)
    return Images(*train, *test, CLASSES)


def _paths(published: Published, folder: Path) -> list[Path]:
    places = (f"{published.name}/raw", published.flat)
    return [
        files.located(published.title, folder, places, (f"{name}.gz", name))
        for name in published.md5
    ]
