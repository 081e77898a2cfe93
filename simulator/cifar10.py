"""CIFAR-10 in its binary distribution: where its files are, and how they are read.

References
----------
.. [1] A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the format is described at
   https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.errors import UserError

Split = Literal["train", "test"]

FOLDER = "cifar-10-batches-bin"
SUM_FILE = "archive.md5"
"""In the folder of an archive that was fetched and checked: its MD5 sum."""

SIDE = 32
CLASSES = 10
_RECORD = 1 + 3 * SIDE**2  # label, then the red, green and blue planes
_RECORDS = 10_000
_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_ADVICE = "remove the folder; varprop data cifar10 fetches it anew"


def available(split: Split) -> int:
    """Return the number of images of a split."""
    return len(_FILES[split]) * _RECORDS


def read(data_dir: Path | None, split: Split, picked: NDArray[np.intp]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images of the given numbers, and their labels.

    Parameters
    ----------
    data_dir
        The folder of the binary distribution (``data_batch_1.bin`` ...), or the one above it.
    split
        ``train`` has 50,000 images, ``test`` 10,000.
    picked
        Numbers from 0 to `available` - 1, in any order.

    Returns
    -------
    images, labels
        Shapes (n, 3, 32, 32) and (n,).

    Raises
    ------
    UserError
        Files that are missing, truncated or not CIFAR-10.
    """
    files = [np.memmap(path, np.uint8, "r", shape=(_RECORDS, _RECORD)) for path in _paths(data_dir, split)]
    for file in files:
        if file[:, 0].max() >= CLASSES:
            raise UserError(str(file.filename), "labels above 9", "CIFAR-10's binary records", _ADVICE)
    records = np.empty((len(picked), _RECORD), np.uint8)
    for number, file in enumerate(files):
        here = picked // _RECORDS == number
        records[here] = file[picked[here] % _RECORDS]
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0]


def origin(data_dir: Path) -> str:
    """Return in words where the files come from, as far as that is known: `SUM_FILE` tells of the official archive."""
    known = (_folder(data_dir) / SUM_FILE).is_file()
    return "the official archive" if known else "a copy of unknown origin"


def _folder(data_dir: Path) -> Path:
    return data_dir / FOLDER if (data_dir / FOLDER).is_dir() else data_dir


def _paths(data_dir: Path | None, split: Split) -> list[Path]:
    if data_dir is None:
        raise UserError("--data-dir", "nothing", f"the folder that holds {FOLDER}", "needed wherever CIFAR-10 is")
    folder = _folder(data_dir)
    if not folder.is_dir():
        raise UserError("--data-dir", data_dir, f"a folder that holds {FOLDER}")
    paths = [folder / name for name in _FILES[split]]
    advice = _ADVICE if any(path.exists() for path in paths) else "get it with varprop data cifar10"
    for path in paths:
        if not path.is_file():
            raise UserError(str(path), "no such file", "CIFAR-10's binary version", advice)
        size, expected = path.stat().st_size, _RECORDS * _RECORD
        if size != expected:
            raise UserError(str(path), f"{size:,} bytes", f"{expected:,} bytes", _ADVICE)
    return paths
