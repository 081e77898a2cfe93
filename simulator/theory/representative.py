"""The few images that stand for a batch.

What the first layers make of images depends on how large they are and how rough, and where: a depthwise layer tells the
border of a map from its middle, and a channel that looks for edges normalises by how rough the images are. So each
image is described by the squares of its deviations from the channels' means, by the squared differences of neighbours,
and by the deviations themselves, averaged over the cells of grids of several sizes, and by its own mean and contrast.
Those images are chosen whose mean description comes closest to the batch's. Exchanging one image at a time for the one
that helps most leads there, from several starts.

Of images that pieces are cut out of, anywhere, only what they are like as a whole counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_GRIDS = 4, 8, 16  # rows and columns: from parts of an image to positions of the maps that are carried
_STARTS = 64
_DRAWS = 4000  # subsets of a batch that pieces are cut out of
_LESS = 1e-9  # share of a distance by which an exchange must make it smaller


def representative(data: Array, keep: int) -> Ints:
    """Return which of some images, shape (samples, channels, height, width), together come closest to all."""
    samples = len(data)
    if keep >= samples:
        return np.arange(samples)
    traits = described(data)
    traits -= traits.mean(axis=0)
    rng = np.random.default_rng(0)
    found = [_exchanged(traits, rng.permutation(samples)[:keep]) for _ in range(_STARTS)]
    return np.sort(min(found, key=lambda chosen: _distance(traits, chosen)))


def representative_whole(data: Array, keep: int) -> Ints:
    """Return which of some images, of the same shape, come closest to all, wherever in them something is.

    Compared are second moment, mean, spread of the samples' means, contrast within a sample, and roughness.
    """
    samples = len(data)
    if keep >= samples:
        return np.arange(samples)
    flat = data.reshape(samples, -1)
    mean = flat.mean(axis=1)
    neighbours = sum(np.mean(np.diff(data, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (2, 3))
    traits = np.stack([mean - mean.mean(), (mean - mean.mean()) ** 2, flat.var(axis=1), neighbours], axis=1)
    whole = traits.mean(axis=0)
    unit = np.array([np.sqrt(whole[1]), *whole[1:]])
    rng = np.random.default_rng(0)
    draws = rng.permuted(np.tile(np.arange(samples), (_DRAWS, 1)), axis=1)[:, :keep]
    gaps = np.sum(((traits[draws].mean(axis=1) - whole) / unit) ** 2, axis=1)
    return np.asarray(draws[int(np.argmin(gaps))])


def described(data: Array) -> Array:
    """Return the traits of images, shape (samples, traits), in units of the batch's mean square and mean roughness."""
    apart = data - data.mean(axis=(0, 2, 3), keepdims=True)
    square, rough = np.mean(apart**2, axis=1), _roughness(apart)
    unit = float(square.mean()) or 1.0
    mean = apart.mean(axis=(1, 2, 3))
    contrast = (square.mean(axis=(1, 2)) - mean**2) / unit
    fields = square / unit, rough / (float(rough.mean()) or 1.0), apart.mean(axis=1) / np.sqrt(unit)
    # Grids count alike, however many cells they have.
    grids = [_averaged(field, cells) / cells for field in fields for cells in _GRIDS]
    return np.concatenate([*grids, (mean**2 / unit)[:, None], contrast[:, None]], axis=1)


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


def _distance(traits: Array, chosen: Ints) -> float:
    """Squared distance of the mean of some from that of all, which is zero."""
    return float(np.sum(traits[chosen].mean(axis=0) ** 2))


def _exchanged(traits: Array, chosen: Ints) -> Ints:
    """Exchange one for another as long as that brings the mean of the chosen closer to zero."""
    chosen, size = chosen.copy(), np.einsum("st,st->s", traits, traits)
    while True:
        total = traits[chosen].sum(axis=0)
        along, between = traits @ total, traits[chosen] @ traits.T
        change = 2 * (along - between - along[chosen][:, None]) + size[chosen][:, None] + size
        change[:, chosen] = np.inf
        leaves, comes = np.unravel_index(int(np.argmin(change)), change.shape)
        if not change[leaves, comes] < -_LESS * float(total @ total):
            return chosen
        chosen[leaves] = comes
