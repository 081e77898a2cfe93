"""What the first convolution sees of the data: patches of a few pieces that stand for all of the batch.

Every channel of that convolution is a linear function of a patch. So the mean and the covariance of all patches say all
that there is to know of its mean and variance over the data, and the pieces whose pairs are carried are given both; the
covariance of their own mean patches says how much of that is left of a mean over positions, and they are given it, too.
Images that are carried whole are given the mean and the spread at each position before that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Size, Window
from varprop.simulator.theory.transport import transport
from varprop.simulator.theory.variance_law import VarianceLaw, quadratic_form_law

Array = NDArray[np.float64]


def gathered(maps: Array, index: Ints, window: Window) -> Array:
    """Return patches, shape (samples, channels * taps, outputs), each tap times the root of its weight's share.

    `index` is `Window.index` of the maps, or a part of it for every sample, shape (samples, taps, outputs).
    """
    flat = np.pad(maps.reshape(*maps.shape[:2], -1), ((0, 0), (0, 0), (0, 1)))
    index = np.broadcast_to(index, (len(maps), *index.shape[-2:]))
    patches = np.stack([sample[:, where] for sample, where in zip(flat, index, strict=True)])
    return np.asarray(patches * np.sqrt(window.shares)[:, None]).reshape(len(maps), -1, index.shape[-1])


def statistics(maps: Array, index: Ints, window: Window) -> tuple[Array, Array]:
    """Return the mean and the covariance of all patches of all samples."""
    return _mean_and_covariance(gathered(sample[None], index, window)[0] for sample in maps)


def between(maps: Array, index: Ints, window: Window, size: Size, piece: Size) -> Array:
    """Return the covariance of the mean patches of all pieces of a size; outputs are a map of `size`.

    Averages over images and positions say nothing of how much of all variance is one of whole images, which alone is
    left when a channel is averaged over its map.
    """

    def means(sample: Array) -> Array:
        (patches,) = gathered(sample[None], index, window)
        sums = np.pad(patches.reshape(-1, *size), ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
        rows = sums[:, piece[0] :] - sums[:, : -piece[0]]
        whole = rows[:, :, piece[1] :] - rows[:, :, : -piece[1]]
        return np.asarray(whole.reshape(len(patches), -1) / (piece[0] * piece[1]))

    return _mean_and_covariance(means(sample) for sample in maps)[1]


def _mean_and_covariance(fields: Iterable[Array]) -> tuple[Array, Array]:
    """Return those of all columns of some arrays, which are looked at one after the other."""
    total: Array = np.zeros(())
    square: Array = np.zeros(())
    count = 0
    for field in fields:
        total, square, count = total + field.sum(axis=1), square + field @ field.T, count + field.shape[1]
    mean = total / count
    return mean, square / count - np.outer(mean, mean)


def damped_taps(maps: Array, window: Window, variance: float, law: VarianceLaw) -> Array:
    """Return E[w_k w_l / (v + eps)] / (E[w^2] E[1 / (v + eps)]), averaged over input channels, shape (taps, taps).

    Patches of images vary along few directions, and dividing by v damps the weights along these: taps that read much
    the same then have opposite signs more often than not.

    Parameters
    ----------
    maps
        The data, shape (samples, channels, height, width).
    window, variance
        Of the convolution that reads them and of its weights.
    law
        Of the variance of its channels, for v and eps.
    """
    _, covariance = statistics(maps, window.index((maps.shape[2], maps.shape[3])), window)
    # E[v / (v + eps)] = 1 - eps E[1 / (v + eps)]
    values, vectors = _divided(covariance, variance, (1.0 - law.ratio) / law.inverse)
    products = (vectors * values) @ vectors.T
    channels = maps.shape[1]
    return np.asarray(np.einsum("ckcl->kl", products.reshape(channels, window.taps, channels, -1)) / channels)


def edges_behind(maps: Array, window: Window, known: tuple[Array, Array], variance: float, eps: float) -> Array:
    """Return E[(z - m)^2 / (v + eps)] at every position of the output, up to a factor, shape (height, width).

    z is a channel of the convolution, m its mean and v its variance over all samples and positions. At edges a window
    lacks taps. Where patches vary most in what all taps have in common, as those of images do, a channel that sees
    little of that inside has a small v, and sees it at the edges.

    Parameters
    ----------
    maps, window, variance
        As of `damped_taps`.
    known
        The mean and the covariance of all patches: see `statistics`.
    eps
        Of the normalisation.
    """
    index, (mean, covariance) = window.index((maps.shape[2], maps.shape[3])), known
    values, vectors = _divided(covariance, variance, eps)
    roots = (vectors * np.sqrt(values)).T
    found = np.zeros(index.shape[-1])
    for sample in maps:
        (patches,) = gathered(sample[None], index, window)
        found += np.sum((roots @ (patches - mean[:, None])) ** 2, axis=0)
    return found.reshape(window.out_size((maps.shape[2], maps.shape[3])))


def _divided(covariance: Array, variance: float, eps: float) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of E[w w' / (v + eps)] for v = w' C w, up to a factor."""
    values, vectors = np.linalg.eigh(covariance)
    modes = quadratic_form_law(np.maximum(values, 0.0) * variance, 0.0, 0.0, float(len(values)), eps).modes
    return np.ones_like(values) if modes is None else modes.passed[: len(values)], vectors


def matched(patches: Array, mean: Array, covariance: Array, pieces: Array) -> Array:
    """Give patches, shape (samples, entries, outputs), a mean and a covariance by the smallest linear changes.

    The samples' means are given the covariance of those of all `pieces`, as far as so few can have it, and what patches
    differ by from them the rest. Means of a few samples lack directions, not more: C - A C_x A' is still a covariance.
    """
    means = patches.mean(axis=2, keepdims=True)
    apart, within = means - means.mean(axis=0), patches - means
    moved = _moved(apart, pieces)
    return np.asarray(mean[:, None] + moved + _moved(within, covariance - _spread(moved)))


def _moved(centred: Array, covariance: Array) -> Array:
    """Give points of mean zero, shape (samples, entries, outputs), a covariance."""
    return np.asarray(transport(_spread(centred), covariance) @ centred)


def _spread(centred: Array) -> Array:
    """Covariance of points of mean zero, shape (samples, entries, outputs)."""
    count = centred.shape[0] * centred.shape[2]
    return np.asarray(np.einsum("sip,sjp->ij", centred, centred, optimize=True) / count)


def levelled(patches: Array, wanted: Array) -> Array:
    """Give patches, shape (samples, entries, outputs), the mean that others have at each output, and their spread.

    What a few images have more of at the border or in the middle a depthwise layer takes for a difference of places.
    """
    own, mean = patches.mean(axis=0), wanted.mean(axis=0)
    level, aim = (np.mean((field - middle) ** 2, axis=(0, 1)) for field, middle in ((patches, own), (wanted, mean)))
    return np.asarray(
        mean + (patches - own) * np.sqrt(np.divide(aim, level, out=np.zeros_like(level), where=level > 0))
    )
