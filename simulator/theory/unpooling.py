"""The gradient's way back through poolings, flattening and padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import AveragePool, MaxPool, ZeroPad
from varprop.simulator.theory.drawn import chosen, corrected
from varprop.simulator.theory.gradient import Gradient, cut_inside, stepped_back
from varprop.simulator.theory.maps import Window, here, overlaps, size_of, walked_by_offset, window_scatter
from varprop.simulator.theory.opposition import handed_on, in_common
from varprop.simulator.theory.pairs import PairKernel, merged, regridded, unmerged
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]


def average_unpooled(operation: AveragePool, gradient: Gradient, source: Signal) -> Gradient:
    """Return the gradient before average pooling."""
    window = Window(operation.kernel, operation.stride)
    arriving, field = cut_inside(gradient, window.out_size(source.kernel.size), source)
    back = _through(gradient, arriving, window.averaging(source.kernel.size), source)
    back = _knowing(back, gradient, window, source, False)
    return back if source.amplitude is None else _unpooled(back, field, window, source.amplitude)


def globally_unpooled(gradient: Gradient, source: Signal) -> Gradient:
    """Return the gradient before averaging over all positions."""
    positions = source.kernel.values.shape[1]
    whole = positions if source.amplitude is None else source.amplitude.size
    back = _through(gradient, gradient.kernel, np.full((1, positions), 1 / whole), source)
    back = _knowing(back, gradient, Window(source.kernel.size, (1, 1)), source, False)
    return back if source.amplitude is None else replace(back, amplitude=np.ones_like(source.amplitude))


def _through(gradient: Gradient, arriving: PairKernel, matrix: Array, source: Signal) -> Gradient:
    """Gradient before a fixed linear map of the positions; `arriving` is its kernel on the map's own outputs."""
    values = matrix.T @ arriving.values @ matrix
    draws = stepped_back(
        gradient, lambda found: found.on(arriving, gradient.kernel.size).mapped(matrix.T, arriving.layout)
    )
    kernel = replace(arriving, size=source.kernel.size, values=values).scaled(1.0)
    return Gradient(kernel, drawn=draws, tied=gradient.tied)


def max_unpooled(operation: MaxPool, gradient: Gradient, source: Signal, output: Signal) -> Gradient:
    """Return the gradient before maximum pooling."""
    window = Window(operation.kernel, operation.stride)
    kernel, field = cut_inside(gradient, window.out_size(source.kernel.size), source)
    # Each tap of a window is the largest equally often; two windows choose almost independently, one chooses once.
    # What sampled channels choose corrects that.
    average = window.averaging(source.kernel.size)
    values = average.T @ kernel.values @ average
    count = kernel.layout.profiles
    own = np.arange(values.shape[1])
    for outputs in average:
        inside = np.flatnonzero(outputs)
        values[:count, inside[:, None], inside[None, :]] = 0.0
    values[:count, own, own] = kernel.diagonal @ average
    back = replace(kernel, size=source.kernel.size, values=values).scaled(1.0)
    draws = stepped_back(
        gradient,
        lambda found: chosen(source.draw().values, found.on(kernel, gradient.kernel.size), window, source.kernel.size),
    )
    if draws is not None:
        back = corrected(back, draws())
    found = _knowing(Gradient(back, drawn=draws, tied=1.0), gradient, window, source, True)
    if source.amplitude is None:
        return found
    gates = None
    if output.slopes is not None:
        size = size_of(source.amplitude)
        met, all_of_it = (window_scatter(part, window, size) for part in (field * output.slopes, field))
        gates = np.divide(met, all_of_it, out=np.ones_like(met), where=all_of_it > 0)
    return replace(_unpooled(found, field, window, source.amplitude), gates=gates)


def _knowing(back: Gradient, gradient: Gradient, window: Window, source: Signal, one: bool) -> Gradient:
    """Return a gradient before a pooling that goes with levels and channels as it does behind it.

    Behind a pooling under T taps gradients of two channels have 2 R / n x_c x_c' in common, the pooled values. A mean
    of values whose correlations are rho on the mean hands all pairs of its taps what is left of R along the single
    ones, rho R; where the gradient goes to `one` of the taps, two channels choose the same once in T, and its own
    square keeps all. What opposes channels starts anew.
    """
    size, loads = source.kernel.size, np.full(window.kernel, 1 / window.taps)
    coherence, alone = handed_on(gradient.coherence, loads, window.stride, size), gradient.alone
    if one:
        alone += here(gradient.coherence) - here(coherence)
    else:
        alike = in_common(overlaps(loads), source.kernel.correlation(source.kernel.pair_mean))
        coherence, alone = coherence * (window.taps * alike), alone * alike
    leaning = walked_by_offset(gradient.leaning, window, size)
    return replace(back, coherence=coherence, alone=alone, leaning=leaning)


def _unpooled(gradient: Gradient, field: Array, window: Window, amplitude: Array) -> Gradient:
    """Gradient before a pooling of a large map, given that on a cut-out, at whose edges windows are missing.

    Its kernel is that of positions under all their windows; `field` is the second moment after the pooling.
    """
    size = gradient.kernel.size
    share = window.taps / (window.stride[0] * window.stride[1])
    covered = window_scatter(np.ones(window.out_size(size)), window, size) / share
    rows, cols = (_all_phases(k, s, n) for k, s, n in zip(window.kernel, window.stride, size, strict=True))
    inner = gradient.kernel.mapped()[:, rows, cols, rows, cols]
    height, width = inner.shape[1:3]
    points = height * width
    whole = replace(gradient.kernel, size=(height, width), values=inner.reshape(len(inner), points, points))
    kernel = unmerged(regridded(merged(whole), size), whole.layout)
    fill = np.divide(1.0, np.sqrt(covered.ravel()), out=np.zeros(covered.size), where=covered.ravel() > 0)
    draws = stepped_back(gradient, lambda found: replace(found, values=found.values * fill[:, None, None]).like(kernel))
    reach = window_scatter(field, window, size_of(amplitude)) / share
    return replace(gradient, kernel=kernel, amplitude=reach, drawn=draws)


def _all_phases(kernel: int, stride: int, size: int) -> slice:
    """Rows of a map that lie under all their windows, as often at every phase of the stride."""
    last = (size - kernel) // stride * stride  # where the last window starts
    first = min(max(kernel - stride, 0), last)
    return slice(first, first + max((min(last + stride, size) - first) // stride, 1) * stride)


def unflattened(gradient: Gradient, source: Signal) -> Gradient:
    """Return the gradient before flattening."""
    if source.data is not None:
        return gradient
    points = source.kernel.values.shape[1]
    # Weights at different positions are independent.
    values = gradient.kernel.values * np.eye(points)
    amplitude = None if source.amplitude is None else np.ones_like(source.amplitude)
    return Gradient(replace(gradient.kernel, size=source.kernel.size, values=values), amplitude=amplitude)


def unpadded(operation: ZeroPad, gradient: Gradient, source: Signal) -> Gradient:
    """Return the gradient before zero padding."""
    top, bottom, left, right = operation.padding
    field = gradient.amplitude
    if field is not None:  # of a piece, as of a map with zeros around it that is not carried whole
        h, w = field.shape
        gates = None if gradient.gates is None else gradient.gates[top : h - bottom, left : w - right]
        return replace(gradient, amplitude=field[top : h - bottom, left : w - right], gates=gates)
    if source.data is not None or source.amplitude is not None:
        return gradient  # alike at all positions
    h, w = gradient.kernel.size
    size = source.kernel.size
    inner = gradient.kernel.mapped()[:, top : h - bottom, left : w - right, top : h - bottom, left : w - right]
    points = size[0] * size[1]
    kernel = replace(gradient.kernel, size=size, values=inner.reshape(len(inner), points, points))
    grid = np.arange(h * w).reshape(h, w)[top : h - bottom, left : w - right].ravel()
    draws = stepped_back(gradient, lambda found: replace(found, values=found.values[grid]))
    return replace(gradient, kernel=kernel, drawn=draws)
