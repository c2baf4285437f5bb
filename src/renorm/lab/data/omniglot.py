"""Eight alphabets of Omniglot, from one .npz file."""

from pathlib import Path

import torch

from renorm.lab.data import archive, files
from renorm.lab.data.images import Images

TITLE, FOLDER, FILE = "Omniglot", "omniglot", "omniglot_small_28.npz"
MD5 = "acb0a1d28862ef95622f2139e7a4d1a9"
CHARACTERS = 242
SHAPES = {"x": (4840, 28, 28), "y": (4840,), "alphabet": (4840,)}
# Balinese, Early Aramaic, Greek, Japanese (katakana), Korean | Latin, Sanskrit, Tagalog
TEST_ALPHABETS = (5, 6, 7)


def omniglot(folder: Path | None = None) -> Images:
    """Omniglot in small: 242 characters of 8 alphabets, each drawn by 20 people, 28 x 28.

    157 characters of five alphabets are for training and 85 of the other three for testing, so a
    net is tested on characters that it has never seen; the labels are 0 to 241.

    Args:
        folder: has ``omniglot/omniglot_small_28.npz``; None for the default of ``files.root``.

    Raises:
        DataError: the file is not there or damaged.

    Source: Lake, Salakhutdinov and Tenenbaum 2015, Human-level concept learning through
    probabilistic program induction.
    """
    found = archive.arrays(TITLE, files.root(folder), FOLDER, FILE, MD5, SHAPES)
    images, labels, alphabets = (torch.from_numpy(found[key]) for key in SHAPES)
    images, labels = images[:, None], labels.long()
    test = torch.isin(alphabets, torch.tensor(TEST_ALPHABETS, dtype=alphabets.dtype))
    return Images(images[~test], labels[~test], images[test], labels[test], CHARACTERS)
