"""Resizing of images by linear interpolation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resize(images: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Resize images with half-pixel centres, without aliasing.

    Upwards this is bilinear interpolation (torch's `interpolate` with ``align_corners=False``, TensorFlow's
    `image.resize`); downwards the triangle is widened by the ratio, as Pillow does and torch with ``antialias=True``.

    Parameters
    ----------
    images
        Shape (..., rows, columns).
    height, width
        New number of rows and columns.

    Returns
    -------
    ndarray
        Shape (..., height, width), within the range of the input.
    """
    rows, columns = images.shape[-2:]
    if (rows, columns) == (height, width):
        return images
    resized = _interpolation(rows, height) @ images @ _interpolation(columns, width).T
    # The rows of both matrices sum to 1 only up to rounding.
    return np.clip(resized, images.min(), images.max())


def _interpolation(before: int, after: int) -> NDArray[np.float64]:
    """Return the (after, before) matrix of triangle weights along one axis; rows sum to 1."""
    ratio = before / after
    centres = (np.arange(after) + 0.5) * ratio - 0.5
    distance = np.abs(np.arange(before) - centres[:, None])
    weights = np.maximum(0.0, 1 - distance / max(ratio, 1.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
