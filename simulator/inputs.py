"""The fixed batch that is sent through a network: Gaussian noise, crops of a photograph, or CIFAR-10."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varprop.simulator import cifar10
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.images import resize
from varprop.simulator.network import Shape
from varprop.simulator.report import Batch

NAMES: dict[str, str] = {
    "gaussian": "independent N(0, 1) values",
    "photo": "crops of the photograph that matplotlib ships, pixels in [0, 1]",
    "cifar10": "CIFAR-10 training images from --data-dir, resized, pixels in [0, 1]",
}
"""Every source of input and one line on it."""

_LARGEST_BATCH = 2**28  # elements: 2 GiB


def load_batch(source: str, shape: Shape, batch: int, seed: int, data_dir: Path | None = None) -> Batch:
    """Draw one batch; the same arguments give the same batch.

    Parameters
    ----------
    source
        One of `NAMES`.
    shape
        Of one sample; (3, height, width) for images.
    batch
        Number of samples.
    seed
        At least 0. It alone decides which CIFAR-10 images are picked: a smaller batch is the beginning of a larger
        one, at any image size.
    data_dir
        For cifar10: the folder of the binary distribution (``data_batch_1.bin`` ...), or the one above it.

    Returns
    -------
    Batch
        Gaussian batches are exchangeable, images are not.

    Raises
    ------
    UserError
        Unknown source, a number out of range, images asked for in a shape that is none, or files that are missing,
        truncated or not CIFAR-10.
    """
    if source not in NAMES:
        raise did_you_mean("--input", source, list(NAMES))
    if batch < 1 or batch * math.prod(shape) > _LARGEST_BATCH:
        raise UserError("--batch", batch, f"at least 1, and at most {_LARGEST_BATCH:,} values in all")
    if seed < 0:
        raise UserError("--seed", seed, "a whole number of at least 0")
    # A key of its own, hashed from the seed: the weights' streams, keyed by the same seed, stay independent of it.
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(0,))))
    if source == "gaussian":
        return Batch(rng.standard_normal((batch, *shape)), source, exchangeable=True)
    if len(shape) != 3 or shape[0] != 3:
        raise UserError(
            "--input",
            source,
            f"a network that takes images (3, height, width), not {shape}",
            "use gaussian, or give an mlp a --size",
        )
    height, width = shape[1:]
    if source == "photo":
        return Batch(_photo_crops(batch, height, width, rng), source, exchangeable=False)
    return Batch(resize(_cifar10(batch, rng, data_dir), height, width), source, exchangeable=False)


def _photo_crops(batch: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return random crops in the target's aspect ratio, between a quarter of the photograph and all of it."""
    from matplotlib import image
    from matplotlib.cbook import get_sample_data

    pixels = image.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    photo = np.moveaxis(np.asarray(pixels, dtype=np.float64) / 255, -1, 0)
    rows, columns = photo.shape[1:]
    largest = min(rows / height, columns / width)
    crops = np.empty((batch, 3, height, width))
    for index in range(batch):
        # Log-uniform scale: as many close-ups as wide views.
        scale = largest * 2 ** rng.uniform(-2, 0)
        crop_rows, crop_columns = max(1, round(scale * height)), max(1, round(scale * width))
        top, left = rng.integers(rows - crop_rows + 1), rng.integers(columns - crop_columns + 1)
        crops[index] = resize(photo[:, top : top + crop_rows, left : left + crop_columns], height, width)
    return crops


def _cifar10(batch: int, rng: np.random.Generator, data_dir: Path | None) -> NDArray[np.float64]:
    """Return training images of shape (batch, 3, 32, 32), without repetition."""
    available = cifar10.available("train")
    if batch > available:
        raise UserError("--batch", batch, f"at most CIFAR-10's {available:,} training images")
    images, _ = cifar10.read(data_dir, "train", rng.permutation(available)[:batch])
    return images / 255
