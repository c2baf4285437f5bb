"""NumPy's .npz files, checked."""

import io
from pathlib import Path

import numpy as np

from renorm.errors import DataError
from renorm.lab.data import files


def arrays(
    title: str, folder: Path, place: str, name: str, md5: str, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays of the file ``folder/place/name``.

    Args:
        title: of the data set, for messages.
        folder: of all data sets.
        place: its folder.
        name: of the file.
        md5: of the file.
        shapes: of the arrays that are wanted, by name.

    Raises:
        DataError: the file is not there, damaged, or lacks an array or its shape.
    """
    path = files.located(title, folder, (place,), (name,))
    with np.load(io.BytesIO(files.checked(path, md5))) as archive:
        found = {key: archive[key] for key in archive.files if key in shapes}
    for key, shape in shapes.items():
        got = found[key].shape if key in found else "none"
        if got != shape:
            raise DataError(
                f"{path} must have an array {key!r} of the shape {shape}, got {got}. "
                "Fetch it again."
            )
    return found
