"""What the first convolution sees of the data: patches of a few pieces that stand for all of the batch.

Every channel of that convolution is a linear function of a patch. So the mean and the covariance of all patches say all
that there is to know of its mean and variance over the data. Images that are carried whole are given both, and the mean
and the spread at each position before that. Pieces are of the inside of the map, where windows lack no taps, and are
given the mean and the covariance of the patches there: near edges, patches vary in directions that the inside, where
neighbours are alike, does not. What a channel's own variance over the whole map makes of the inside and of the edges,
when it is divided by it, follows from the covariance of all patches. The covariance of the mean patches of pieces says
how much is left of a mean over positions, and they are given it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Size, Window, pairs_apart, products_by_offset
from varprop.simulator.theory.patchwork import Far
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


@dataclass(frozen=True)
class Divided:
    """What a division by each channel's own variance leaves of the first convolution, of images carried as pieces.

    Attributes
    ----------
    amplitude
        Second moment at every position of the output over that inside, shape (height, width).
    far
        What positions of one image have in common. A position keeps as much of that inside as the root of its mean
        squared product with it: a channel that sees edges sees them with either sign.
    """

    amplitude: Array
    far: Far


def divided(
    maps: Array, window: Window, inner: tuple[slice, slice], known: tuple[Array, Array], variance: float, eps: float
) -> Divided:
    """Return E[(z - m)^2 / (v + eps)] and what else is to know of it.

    z is a channel of the convolution, m its mean and v its variance over all samples and positions. At edges a window
    lacks taps. Where patches vary most in what all taps have in common, as those of images do, a channel that sees
    little of that inside has a small v, and sees it at the edges.

    Parameters
    ----------
    maps, window, variance
        As of `damped_taps`.
    inner
        Where the output's inside lies: see `interior`.
    known
        The mean and the covariance of all patches: see `statistics`.
    eps
        Of the normalisation.
    """
    index = window.index((maps.shape[2], maps.shape[3]))
    size = window.out_size((maps.shape[2], maps.shape[3]))
    found, squares = np.zeros(size), np.zeros(size)
    products: Array = np.zeros(())
    total: Array = np.zeros(())
    gram: Array = np.zeros(())
    for parts in divided_parts(maps, window, known, variance, eps):
        found += np.sum(parts**2, axis=0)
        inside = parts[:, *inner]
        flat = inside.reshape(len(inside), -1)
        gram = gram + flat @ flat.T
        products, total = products + products_by_offset(inside), total + inside.mean(axis=(1, 2))
    inside = found[inner]
    level, common = float(inside.mean()) or 1.0, float(total @ total) / len(maps)
    varied = level - common
    apart = (products / pairs_apart(inside.shape) - common) / (varied if varied > 0 else 1.0)
    sides = [(whole - part, whole - part) for whole, part in zip(size, inside.shape, strict=True)]
    # The mean squared product of a position with the inside.
    for parts in divided_parts(maps, window, known, variance, eps):
        squares += np.sum(parts * np.tensordot(gram, parts, 1), axis=0)
    # Of positions that lack the same taps all are alike.
    _, kind = np.unique(index >= 0, axis=1, return_inverse=True)
    squares = (np.bincount(kind, squares.ravel()) / np.bincount(kind))[kind].reshape(size)
    kept = np.sqrt(squares / (float(squares[inner].mean()) or 1.0))
    return Divided(found / level, Far(np.pad(apart, sides, mode="edge"), kept * kept.mean()))


def divided_parts(
    maps: Array, window: Window, known: tuple[Array, Array], variance: float, eps: float
) -> Iterator[Array]:
    """Yield of every sample the parts that a channel has in its directions once it is divided, up to a factor.

    Their shape is (directions, height, width), and the sum of their products that of E[(z - m)(z' - m) / (v + eps)].
    Parameters are those of `divided`.
    """
    mean, covariance = known
    values, vectors = _divided(covariance, variance, eps)
    roots = (vectors * np.sqrt(values)).T
    size = maps.shape[2], maps.shape[3]
    index = window.index(size)
    for sample in maps:
        (patches,) = gathered(sample[None], index, window)
        yield (roots @ (patches - mean[:, None])).reshape(-1, *window.out_size(size))


def interior(index: Ints, size: Size, least: Size = (1, 1)) -> tuple[slice, slice]:
    """Return rows and columns of a map whose windows, as `Window.index` has them, lack no taps.

    All of them, if those are fewer than at least are wanted.
    """
    under = (index >= 0).sum(axis=0).reshape(size)
    whole = under == under.max()
    rows, cols = (
        np.flatnonzero(whole.any(axis=axis)) if whole.any(axis=axis).sum() >= few else np.arange(side)
        for axis, side, few in zip((1, 0), size, least, strict=True)
    )
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def directions(patches: Array, covariance: Array) -> tuple[Array, Array]:
    """Return the directions in which all patches of a covariance vary, and some patches' parts in them.

    Returns
    -------
    shares
        Of each direction in the covariance, the largest first.
    parts
        Shape (directions, samples, outputs); their mean squares sum to one.
    """
    values, vectors = (part[..., ::-1] for part in np.linalg.eigh(covariance))
    apart = patches - patches.mean(axis=(0, 2))[:, None]
    parts = np.einsum("ek,sep->ksp", vectors, apart, optimize=True)
    values, size = np.maximum(values, 0.0), float(np.mean(np.sum(parts**2, axis=0)))
    return values / (float(values.sum()) or 1.0), parts / np.sqrt(size if size > 0 else 1.0)


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
