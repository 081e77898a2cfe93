"""What lies beyond the border of a piece that is carried of a larger image.

A convolution looks further than the piece. Were its border copied, neighbours there would be the same pixel, and after
every convolution more of them: the piece would become too smooth, and the maximum of a window too small. So it is
continued by an autoregression: of what a pixel has more than its image, its three neighbours of the row behind it
predict a part, by least squares over the image. What they do not predict is drawn anew, with the covariance that it has
at the border. The continuation is linear in the image and in an independent copy of it. So the kernel remains one of
real variables, which pairs that are moved to where they are known do not make, and a constant passes unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
Size = tuple[int, int]

_LEAST = 1e-3  # of a pixel's second moment: differences of neighbours that vary less predict nothing


def beyond(values: Array, left: Ints, right: Ints, around: tuple[Size, Size]) -> Array:
    """Continue a kernel on pieces of images, row by row and then column by column.

    Parameters
    ----------
    values
        Products E[x x'] at every pair of positions, shape (pairs of images, height, width, height, width); the first
        pairs are those of every image with itself.
    left, right
        Image on either side of each pair.
    around
        Rows before and behind, and columns.

    Returns
    -------
    Array
        The same on the larger maps, with every new position of the second moment of the nearest old one.
    """
    images = int(left.max()) + 1
    root = np.sqrt(np.maximum(_diagonal(values, images), 0.0))
    for axis, sides in enumerate(around):
        for count, behind in zip(sides, (False, True), strict=True):
            rows = np.moveaxis(values, (1 + axis, 3 + axis), (1, 3))
            for _ in range(count):
                rows = rows[:, ::-1, :, ::-1] if behind else rows
                rows = _with_row(rows, left, right)
                rows = rows[:, ::-1, :, ::-1] if behind else rows
            values = np.moveaxis(rows, (1, 3), (1 + axis, 3 + axis))
    root = np.pad(root, ((0, 0), *around), mode="edge")
    own = np.sqrt(np.maximum(_diagonal(values, images), 0.0))
    size = np.divide(root, own, out=np.zeros_like(own), where=own > 0)
    return values * size[left][:, :, :, None, None] * size[right][:, None, None]


def _diagonal(values: Array, images: int) -> Array:
    return np.asarray(np.einsum("nyxyx->nyx", values[:images]))


def _with_row(values: Array, left: Ints, right: Ints) -> Array:
    """Add a row before the first, in the units of its own prediction."""
    pairs, height, width = values.shape[:3]
    flat = values.reshape(pairs, height * width, height * width)
    predicted, missed = _autoregression(flat[: int(left.max()) + 1], height, width)
    ahead, back = predicted[left] @ flat, flat @ predicted[right].transpose(0, 2, 1)
    own = ahead @ predicted[right].transpose(0, 2, 1) + missed[left] @ flat @ missed[right].transpose(0, 2, 1)
    whole = np.concatenate([np.concatenate([own, ahead], axis=2), np.concatenate([back, flat], axis=2)], axis=1)
    return whole.reshape(pairs, height + 1, width, height + 1, width)


def _autoregression(kernel: Array, height: int, width: int) -> tuple[Array, Array]:
    """Return what predicts a row before the first of each image, and what the same misses of the first.

    Parameters
    ----------
    kernel
        Of each image, shape (images, positions, positions).

    Returns
    -------
    predicted, missed
        Linear maps of an image, shape (images, width, positions).
    """
    places, cols = np.arange(height * width).reshape(height, width), np.arange(width)
    near = np.stack([places[:, np.clip(cols + step, 0, width - 1)] for step in (-1, 0, 1)])
    level = kernel.mean(axis=2)
    varied = kernel - level[:, :, None] - level[:, None, :] + level.mean(axis=1)[:, None, None]
    count = len(kernel)
    if height == 1:
        shares = np.zeros((count, 3))
    else:
        behind, here = near[:, 1:].reshape(3, -1), places[:-1].ravel()
        products = varied[:, behind[:, None], behind].mean(axis=-1)
        aims = varied[:, behind, here].mean(axis=-1)
        sizes, axes = np.linalg.eigh(products)
        least = _LEAST * np.trace(kernel, axis1=1, axis2=2)[:, None] / (height * width)
        along = np.divide(np.einsum("iab,ia->ib", axes, aims), sizes, out=np.zeros_like(sizes), where=sizes > least)
        shares = np.einsum("iab,ib->ia", axes, along)
    predicted, missed = np.zeros((2, count, width, height * width))
    predicted += ((1.0 - shares.sum(axis=1)) / (height * width))[:, None, None]
    missed[:, cols, places[0]] = 1.0
    missed -= predicted
    for share, place in zip(shares.T, near, strict=True):
        predicted[:, cols, place[0]] += share[:, None]
        missed[:, cols, place[min(1, height - 1)]] -= share[:, None]
    return predicted, missed
