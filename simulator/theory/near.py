"""Neighbours on a large map: what two near positions have in common where an edge takes from one of them or both.

Of a large map the kernel is that of the inside. Zeros around it take taps of a convolution away, at an edge row from
what it has in common with the next row as much as from itself: weights of different taps are independent, so that

    E z(p) z(p + d) = sum_t E x(s p + t) x(s p + t + s d) sigma_w^2,    s the stride,

as for one position, where d = 0 (`derivations.zero_padding`; Xiao et al., "Dynamical isometry and a mean field theory
of CNNs", ICML 2018, section 2, have all d, but on a ring, which has no edges). An edge row is thus less like the next
one than rows inside are, where all is one mean by a factor of sqrt(2 / 3) behind one layer. A mean of the two is
smaller for it, and the larger of the two is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.theory.depthwise import unit_nodes
from varprop.simulator.theory.duals import hermite_expansion, polynomial
from varprop.simulator.theory.maps import Size, Window, size_of, stepped, window_sum

Array = NDArray[np.float64]
Products = Callable[[Size], Array]
"""Mean product of every position of a map and the one at an offset, (height, width); zero where that is beyond."""

_NODES = (
    512  # of the values under a window, and as many of the opposite sign: what edges are over the inside is .2% off
)
_STEP = 4  # positions of the data from a row to the next, up to which neighbours are told: each costs its square


@dataclass(frozen=True)
class Near:
    """What near positions of a map have in common.

    Attributes
    ----------
    products
        In any unit.
    step
        Positions of the data from a row to the next, or from a column.
    reach
        Rows and columns of the map that have met zeros around it.
    function, under
        Of an activation's output, the activation, and the covariances of what it acts on.
    """

    products: Products
    step: int = 1
    reach: int = 0
    function: ActivationFunction | None = None
    under: Products | None = None

    def sized(self, amplitude: Array) -> Products:
        """Return the products that positions of these second moments have."""
        return _told(lambda offset: _correlation(self.products, offset) * _sizes(amplitude, offset))

    def weighed(self, window: Window) -> Near | None:
        """Return the same behind a convolution, whose weights are another at every tap."""
        step = self.step * max(window.stride)
        if step > _STEP:
            return None

        def products(offset: Size) -> Array:
            rows, cols = (stride * shift for stride, shift in zip(window.stride, offset, strict=True))
            found = window_sum(self.products((rows, cols)), window) / window.taps
            return found * _reached(found, offset)

        return Near(_told(products), step, -(-(self.reach + max(window.padding)) // min(window.stride)))

    def centred(self, amplitude: Array, second_moment: float, pair_mean: float, common: Array | None) -> Near:
        """Return the same once each channel's mean over data and positions is gone.

        Parameters
        ----------
        amplitude, common
            As in `Signal`.
        second_moment, pair_mean
            Of the kernel inside.
        """
        whole = self.sized(amplitude)

        def products(offset: Size) -> Array:
            if common is None:
                return second_moment * whole(offset) - pair_mean * _sizes(amplitude, offset)
            both = (common + moved(common, offset) - float(common.mean())) * _reached(common, offset)
            return np.asarray(second_moment * whole(offset) - pair_mean * both)

        return Near(_told(products), self.step, self.reach)

    def activated(self, function: ActivationFunction, before: Array, after: Array, second_moment: float) -> Near:
        """Return the same behind an activation.

        Parameters
        ----------
        before, after
            `Signal.amplitude` on both sides.
        second_moment
            Inside, before the activation.
        """
        whole = self.sized(before)

        def products(offset: Size) -> Array:
            (coefficients, _, _), _ = hermite_expansion(function, np.sqrt([second_moment]))
            powers = coefficients[0] ** 2
            powers = powers / (float(powers.sum()) or 1.0)
            return np.asarray(polynomial(_correlation(self.products, offset), powers) * _sizes(after, offset))

        return Near(_told(products), self.step, self.reach, function, lambda offset: second_moment * whole(offset))

    def padded(self, rows: tuple[tuple[int, int], tuple[int, int]]) -> Near | None:
        """Return the same with zeros around the map; None where the activation makes no zeros of zeros."""
        if self.function is not None and float(self.function.value(0.0)) != 0.0:
            return None
        under = self.under

        def widened(products: Products) -> Products:
            return lambda offset: np.pad(products(offset), rows)

        reach = self.reach + max(*rows[0], *rows[1])
        return Near(widened(self.products), self.step, reach, self.function, None if under is None else widened(under))

    def averaged(self, window: Window, amplitude: Array) -> Array:
        """Return the second moments of means under a window, relative to the map's inside."""
        return _of_means(self.sized(amplitude), window, size_of(amplitude))

    def largest(self, window: Window, amplitude: Array) -> tuple[Array, Array]:
        """Return the second moments of the largest values under a window and of their slopes, in any unit.

        Values are those of Gaussian channels, or of what the activation makes of these.
        """
        under = self.sized(amplitude) if self.under is None else self.under
        function = activation("linear") if self.function is None else self.function
        squares, slopes = [], []
        for row in _covariances(under, window, size_of(amplitude)):
            # The symmetric root is a smooth function: errors of the nodes are the same at all windows.
            values, vectors = np.linalg.eigh(row)
            root = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ vectors.swapaxes(1, 2)
            drawn = root @ _nodes(window.taps)
            first = function.value(drawn).argmax(axis=1)[:, None]
            largest = np.take_along_axis(drawn, first, axis=1)[:, 0]
            squares.append(np.mean(function.value(largest) ** 2, axis=1))
            slopes.append(np.mean(function.derivative(largest) ** 2, axis=1))
        return np.array(squares), np.array(slopes)

    def inside(self, field: Array, window: Window) -> float:
        """Return the mean of a field behind a window where no zeros were met, or over the middle half of such a map."""
        rows, cols = (
            slice(edge, size - edge)
            for size in field.shape
            for edge in [min(-(-self.reach // min(window.stride)), size // 4)]
        )
        return float(field[rows, cols].mean())

    def pooled(self, window: Window, before: Array, after: Array) -> Near | None:
        """Return the same behind a pooling: maxima go together as means do.

        Parameters
        ----------
        before, after
            `Signal.amplitude` on both sides.
        """
        step = self.step * max(window.stride)
        if step > _STEP:
            return None
        whole = self.sized(before)

        def together(offset: Size) -> Array:
            return _of_means(whole, window, size_of(before), offset) * _reached(after, offset)

        return Near(Near(_told(together)).sized(after), step, -(-self.reach // min(window.stride)))


def of_data(values: Array) -> Near:
    """Return what near positions of known maps, shape (batch, channels, height, width), have in common."""

    def products(offset: Size) -> Array:
        return np.asarray(np.einsum("bcyx,bcyx->yx", values, moved(values, offset)) / (len(values) * values.shape[1]))

    return Near(_told(products))


def of_sum(terms: Sequence[Near], amplitudes: Sequence[Array], sizes: Sequence[float]) -> Near:
    """Return the same of a sum whose terms have these second moments inside; what they share falls off as they do."""
    whole = [term.sized(amplitude) for term, amplitude in zip(terms, amplitudes, strict=True)]

    def products(offset: Size) -> Array:
        return np.average([part(offset) for part in whole], axis=0, weights=sizes)

    return Near(_told(products), max(term.step for term in terms), max(term.reach for term in terms))


def moved(field: Array, offset: Size) -> Array:
    """Return maps' values, shape (..., height, width), at the positions an offset further; zero beyond the map."""
    (rows, near_rows), (cols, near_cols) = map(stepped, offset, field.shape[-2:])
    found = np.zeros_like(field)
    found[..., rows, cols] = field[..., near_rows, near_cols]
    return found


def _told(products: Products) -> Products:
    """Return products that are worked out once for an offset and its opposite."""

    @cache
    def told(offset: Size) -> Array:
        if offset < (0, 0):
            return moved(told((-offset[0], -offset[1])), offset)
        return products(offset)

    return told


def _reached(field: Array, offset: Size) -> Array:
    """Return one at the positions of a map that an offset leads to another position from, and zero at the others."""
    return moved(np.ones_like(field), offset)


def _sizes(amplitude: Array, offset: Size) -> Array:
    """Return the root of both positions' second moments."""
    return np.sqrt(np.maximum(amplitude * moved(amplitude, offset), 0.0))


def _correlation(products: Products, offset: Size) -> Array:
    sizes = _sizes(products((0, 0)), offset)
    found = np.divide(products(offset), sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return np.clip(found, -1.0, 1.0)


def _covariances(products: Products, window: Window, size: Size, offset: Size = (0, 0)) -> Array:
    """Return the mean products of all values under each window and under that at an offset, (*outputs, taps, taps)."""
    index, out = window.index(size), window.out_size(size)
    rows, cols = np.divmod(np.arange(window.taps), window.kernel[1])
    down, across = (stride * shift for stride, shift in zip(window.stride, offset, strict=True))
    found = np.empty((index.shape[1], window.taps, window.taps))
    for one in range(window.taps):
        for other in range(window.taps):
            apart = int(down + rows[other] - rows[one]), int(across + cols[other] - cols[one])
            found[:, one, other] = products(apart).ravel()[index[one]]
    return found.reshape(*out, window.taps, window.taps)


def _of_means(products: Products, window: Window, size: Size, offset: Size = (0, 0)) -> Array:
    """Return the mean products of means under each window and under that at an offset."""
    return np.asarray(_covariances(products, window, size, offset).mean(axis=(-1, -2)))


@cache
def _nodes(taps: int) -> Array:
    """Return independent normal values under a window, shape (taps, nodes), and those of the opposite sign."""
    half = unit_nodes(taps, "normal")[:_NODES].T
    # With the covariance of their law they are ten times as good.
    half = np.linalg.solve(np.linalg.cholesky(half @ half.T / _NODES), half)
    return np.concatenate([half, -half], axis=1)
