"""The few images that stand for a batch.

What the first layers make of images depends on how large they are and how rough, and where: a depthwise layer tells the
border of a map from its middle. A normalisation divides every channel by what it varies, so that one that looks for
edges counts as much as one that sees little but how bright an image is. So each image is described by what channels of
a first 3x3 convolution are on it once they are divided: by their squares, the squares of these and the squared
differences of neighbours, averaged over the cells of grids of several sizes; and by the mean square and the mean in
each of their directions. Those images are chosen whose mean description comes closest to the batch's. Exchanging one
image at a time for the one that helps most leads there, from several starts. Described by their pixels alone, ten
images of 64 left up to 10% of the gradient accumulated over MobileNetV2 of SELU, where these leave 5%.

Of larger images pieces stand for the batch, at most one of each. They may lie anywhere, so that a piece is described by
averages over it: its mean, also with every pixel weighted by its size, what its quarters have more, how much it varies,
and how rough it is in either direction and at several distances; and by squares of these, as a large and a small piece
are not two in the middle.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Size, Window
from varprop.simulator.theory.patches import divided_parts, statistics

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
Number = TypeVar("Number", bound=np.generic)

_GRIDS = 4, 8, 16  # rows and columns: from parts of an image to positions of the maps that are carried
_PATCHES = Window((3, 3), (1, 1), (1, 1, 1, 1))  # that channels see
_EPS = 1e-6  # share of all that patches vary by that is added to what channels are divided by
_STARTS = 64
_PIECES = 2048  # of all images, that some are chosen of
_LAGS = 1, 2, 4  # pixels apart
_LESS = 1e-9  # share of a distance by which an exchange must make it smaller


def representative(data: Array, keep: int) -> Ints:
    """Return which of some images, shape (samples, channels, height, width), together come closest to all."""
    samples = len(data)
    if keep >= samples:
        return np.arange(samples)
    traits = described(data)
    traits -= traits.mean(axis=0)
    return _closest(traits, samples, keep)


def representative_pieces(data: Array, keep: int, side: Size) -> tuple[Ints, Array]:
    """Return which of some images, of the same shape, and which piece of `side` of each, together come closest to all.

    Returns
    -------
    chosen
        Numbers of the images, `keep` or all of them.
    places
        Where the pieces lie in these: rows and columns before them, as shares of those that are not theirs, shape
        (images, 2).
    """
    samples = len(data)
    if keep >= samples and tuple(data.shape[2:]) == side:
        return np.arange(samples), np.zeros((samples, 2))
    count = max(math.isqrt(_PIECES // samples), 3)
    steps = [
        np.linspace(0.0, 1.0, min(whole - part + 1, count)) for whole, part in zip(data.shape[2:], side, strict=True)
    ]
    places = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 2)
    apart = data - data.mean(axis=(0, 2, 3), keepdims=True)
    traits = np.stack([_described_piece(piece_of(apart, side, place)) for place in places], axis=1)
    traits = traits.reshape(samples * len(places), -1)
    traits -= traits.mean(axis=0)
    spread = traits.std(axis=0)
    traits /= np.where(spread > 0, spread, 1.0)
    image, place = np.divmod(_closest(traits, samples, keep), len(places))
    return image, places[place]


def piece_of(maps: NDArray[Number], size: Size, place: Array) -> NDArray[Number]:
    """Cut the piece of a size that lies at a place, as `representative_pieces` says, out of maps, shape (..., h, w)."""
    row, col = (round(share * (whole - part)) for share, whole, part in zip(place, maps.shape[-2:], size, strict=True))
    return maps[..., row : row + size[0], col : col + size[1]]


def described(data: Array) -> Array:
    """Return the traits of images, shape (samples, traits), as channels see them that are divided by what they vary."""
    known = statistics(data, _PATCHES.index((data.shape[2], data.shape[3])), _PATCHES)
    squares, rough, each, means = [], [], [], []
    for parts in divided_parts(data, _PATCHES, known, 1.0, _EPS * float(np.trace(known[1]))):
        squares.append(np.sum(parts**2, axis=0))
        rough.append(_roughness(parts[None])[0])
        each.append(np.mean(parts**2, axis=(1, 2)))
        means.append(parts.mean(axis=(1, 2)))
    unit = float(np.mean(squares)) or 1.0
    square, root = np.stack(squares) / unit, math.sqrt(len(known[0]))
    fields = square, np.stack(rough) / (float(np.mean(rough)) or 1.0), square**2 / (float(np.mean(square**2)) or 1.0)
    # Grids count alike, however many cells they have.
    grids = [_averaged(field, cells) / cells for field in fields for cells in _GRIDS]
    level = np.stack(means) / math.sqrt(unit)
    whole = np.stack([np.sum(level**2, axis=1), square.mean(axis=(1, 2)) ** 2], axis=1)
    return np.concatenate([*grids, np.stack(each) / unit * root, level * root, whole], axis=1)


def _described_piece(apart: Array) -> Array:
    """Return the traits of pieces of images, shape (samples, traits), given their deviations from the mean."""
    mean, square = apart.mean(axis=(2, 3)), np.mean(apart**2, axis=(1, 2, 3))
    quarters = _averaged(apart.mean(axis=1), 2) - mean.mean(axis=1)[:, None]
    rough = [
        np.mean((apart.take(range(lag, side), axis) - apart.take(range(side - lag), axis)) ** 2, axis=(1, 2, 3))
        for axis, side in ((2, apart.shape[2]), (3, apart.shape[3]))
        for lag in _LAGS
        if lag < side
    ]
    level = mean.mean(axis=1)
    weighted = np.mean(apart * np.sqrt(np.mean(apart**2, axis=1, keepdims=True)), axis=(2, 3))
    sizes = np.stack([level, level**2, square, *rough], axis=1)
    return np.concatenate([mean, quarters, weighted, sizes, sizes**2], axis=1)


def _roughness(data: Array) -> Array:
    """Sum of a pixel's squared differences from the next one in either direction, averaged over channels."""
    found = np.zeros((len(data), *data.shape[2:]))
    found[:, :-1] += np.mean(np.diff(data, axis=2) ** 2, axis=1)
    found[:, :, :-1] += np.mean(np.diff(data, axis=3) ** 2, axis=1)
    return found


def _averaged(fields: Array, cells: int) -> Array:
    """Average maps, shape (samples, height, width), over the cells of a grid; shape (samples, cells in all)."""
    for axis in (1, 2):
        side = fields.shape[axis]
        first = np.arange(min(cells, side)) * side // min(cells, side)
        count = np.diff(np.append(first, side)).reshape([-1 if at == axis else 1 for at in range(3)])
        fields = np.add.reduceat(fields, first, axis=axis) / count
    return fields.reshape(len(fields), -1)


def _closest(traits: Array, samples: int, keep: int) -> Ints:
    """Return which of the pieces of some images, all of an image one after the other, together come closest to zero."""
    pieces, rng = len(traits) // samples, np.random.default_rng(0)
    image = np.repeat(np.arange(samples), pieces)
    found = []
    for _ in range(_STARTS):
        first = rng.permutation(samples)[:keep]
        found.append(_exchanged(traits, first * pieces + rng.integers(pieces, size=len(first)), image))
    return np.sort(min(found, key=lambda chosen: _distance(traits, chosen)))


def _distance(traits: Array, chosen: Ints) -> float:
    """Squared distance of the mean of some from that of all, which is zero."""
    return float(np.sum(traits[chosen].mean(axis=0) ** 2))


def _exchanged(traits: Array, chosen: Ints, image: Ints) -> Ints:
    """Exchange one for another as long as that brings the mean of the chosen closer to zero.

    No two of them are of one `image`.
    """
    chosen, size = chosen.copy(), np.einsum("st,st->s", traits, traits)
    while True:
        total = traits[chosen].sum(axis=0)
        along, between = traits @ total, traits[chosen] @ traits.T
        change = 2 * (along - between - along[chosen][:, None]) + size[chosen][:, None] + size
        change[np.isin(image, image[chosen]) & (image != image[chosen][:, None])] = np.inf
        leaves, comes = np.unravel_index(int(np.argmin(change)), change.shape)
        if not change[leaves, comes] < -_LESS * float(total @ total):
            return chosen
        chosen[leaves] = comes
