"""Poolings, padding and flattening of the signal."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import AveragePool, MaxPool, Node, ZeroPad
from varprop.simulator.theory.convolution import framed, regrown
from varprop.simulator.theory.corrections import controlled, levelled, matched, paired, sized
from varprop.simulator.theory.maps import Window, size_of, window_sum
from varprop.simulator.theory.pairs import PairKernel, merged, whole_map_mean
from varprop.simulator.theory.patchwork import arranged, continued, image_mean, laid_out
from varprop.simulator.theory.sample import Sample, mapped, squares_apart
from varprop.simulator.theory.signal import Gaussian, Signal, fixed

Array = NDArray[np.float64]


def average_pooled(operation: AveragePool, node: Node, signal: Signal) -> Signal:
    """Return the signal after average pooling."""
    window = Window(operation.kernel, operation.stride)
    pooled = _linear_map(signal, window.averaging(signal.kernel.size), window)
    pooled = _levels_pooled(node, pooled, signal, window)
    edges = None
    if signal.near is not None and signal.amplitude is not None:
        edges = signal.near.averaged(window, signal.amplitude)
    return _after_pooling(pooled, signal, window, node, edges)


def _levels_pooled(node: Node, pooled: Signal, signal: Signal, window: Window) -> Signal:
    """Return a pooling's output with the levels that sampled channels have there."""
    if not signal.strays.levels:
        return pooled
    before, after = (squares_apart(part.draw().values) / part.width for part in (signal, pooled))
    strays = pooled.strays.gathered(node.name, window, signal.kernel, pooled.kernel, (before, after))
    return replace(pooled, strays=strays)


def _after_pooling(pooled: Signal, signal: Signal, window: Window, node: Node, edges: Array | None) -> Signal:
    """Bring what a pooling made of a cut-out of a large map back to its size.

    `edges` are the second moments that it makes of neighbours, in any unit.
    """
    if signal.amplitude is None:
        return pooled
    field, near = window_sum(signal.amplitude, window) / window.taps, None
    if signal.near is not None and edges is not None:
        inside, expected = (signal.near.inside(part, window) for part in (edges, field))
        # Inside, neighbours are as like one another as the kernel says.
        field = edges * (expected / inside) if inside > 0 else field
        near = signal.near.pooled(window, signal.amplitude, field)
    amplitude: Array | None = field
    maps: int | None = None
    kernel, wanted, far = pooled.kernel, signal.kernel.layout.carried(node.shape), None
    if signal.far is not None:
        varied = signal.kernel.variance * float(np.exp(signal.kernel.log_scale - kernel.log_scale))
        far = signal.far.pooled(window).times(varied / kernel.variance if kernel.variance > 0 else 1.0)
    root = np.sqrt(np.maximum(kernel.diagonal, 0.0))
    share = np.divide(pooled.mean, root, out=np.zeros_like(root), where=root > 0)  # of a point's root mean square
    sample, size = pooled.draw(), kernel.size
    if far is not None and kernel.layout.profiles > 1:
        count = kernel.layout.profiles
        kernel = laid_out(kernel, far, wanted)
        maps = kernel.layout.profiles
        pieces, places = arranged(count, maps, size, wanted)
        share = share[pieces, places]
    else:
        kernel, share = continued(merged(kernel), far, wanted), share.mean(keepdims=True)
    if kernel.size == field.shape:
        kernel, amplitude = framed(kernel, field), None
        near = far = None
    return replace(
        pooled,
        kernel=kernel,
        mean=share * np.sqrt(np.maximum(kernel.diagonal, 0.0)),
        origin=None,
        sample=lambda: regrown(sample, size, kernel.size, maps),
        amplitude=amplitude,
        near=near,
        far=far,
    )


def globally_averaged(node: Node, signal: Signal) -> Signal:
    """Return the signal after averaging over all positions."""
    window = Window(signal.kernel.size, (1, 1))
    if signal.amplitude is None:
        pooled = _linear_map(signal, window.averaging(signal.kernel.size), window)
        return _levels_pooled(node, pooled, signal, window)
    # The inside of a map says what two positions share; each position counts with its amplitude.
    root = float(np.sqrt(signal.amplitude).mean())
    # Behind anything but an activation, which has a mean, near positions are most of what is in common.
    common = root if signal.duals is None else float(signal.common_root.mean())
    positions = signal.kernel.values.shape[1]
    pooled = _linear_map(signal, np.full((1, positions), common / positions), window)
    shared = signal.kernel.pair_mean
    if signal.far is None:
        varied = (whole_map_mean(signal.kernel, size_of(signal.amplitude)) - shared) * root**2
    else:
        varied = image_mean(signal.kernel, signal.far) - shared
    values = varied + shared * common**2
    kernel = replace(signal.kernel, size=(1, 1), values=values[:, None, None]).scaled(1.0)
    return replace(pooled, kernel=kernel, mean=pooled.mean * kernel.unit(pooled.kernel.log_scale), amplitude=None)


def _linear_map(signal: Signal, matrix: Array, window: Window) -> Signal:
    """Signal after averages under a window, the same for every channel; `matrix` is (outputs, inputs)."""
    size = window.out_size(signal.kernel.size)
    layout = signal.kernel.layout.strided(window.stride)
    kernel = PairKernel(layout, size, matrix @ signal.kernel.values @ matrix.T, signal.kernel.log_scale).scaled(1.0)
    origin = signal.gaussian
    gaussian = origin is not None and origin.eps is None and origin.function is None
    return Signal(
        kernel,
        signal.mean @ matrix.T * kernel.unit(signal.kernel.log_scale),
        signal.width,
        signal.strays.pooled(window, signal.kernel),
        origin=Gaussian(kernel, origin.key + 1) if gaussian and origin is not None else None,
        sample=None if gaussian else cache(lambda: Sample(mapped(matrix, signal.draw().values))),
    )


def max_pooled(operation: MaxPool, node: Node, signal: Signal) -> Signal:
    """Return the signal after maximum pooling."""
    size = signal.kernel.size
    window = Window(operation.kernel, operation.stride)
    index = window.index(size)
    # The largest value grows as all do: what draws miss of their size is none of its spread's.
    drawn = sized(signal.draw(), signal.kernel)
    average = window.averaging(size)
    averages = Sample(mapped(average, drawn.values))
    layout, values = signal.kernel.layout.strided(window.stride), average @ signal.kernel.values @ average.T
    kernel = PairKernel(layout, window.out_size(size), values, signal.kernel.log_scale)
    sample = controlled(Sample(drawn.values[index].max(axis=0)), averages, kernel)
    if kernel.layout.profiles > 1:
        kernel = paired(kernel, signal.mean @ average.T, averages.values, sample.values)
        mean = sample.values.mean(axis=2).T[: len(signal.mean)] * kernel.unit(0.0)
    else:
        kernel = levelled(matched(kernel, sample), sample)
        mean = np.full((1, len(average)), float(sample.values.mean()) * kernel.unit(0.0))
    pooled = Signal(kernel, mean, signal.width, signal.strays, sample=fixed(sample))
    pooled, edges = _levels_pooled(node, pooled, signal, window), None
    if signal.near is not None and signal.amplitude is not None:
        edges, slopes = signal.near.largest(window, signal.amplitude)
        inside = signal.near.inside(slopes, window)
        pooled = replace(pooled, slopes=slopes / inside if inside > 0 else None)
    return _after_pooling(pooled, signal, window, node, edges)


def flattened(node: Node, signal: Signal) -> Signal:
    """Return the signal after flattening."""
    kernel = signal.kernel
    positions = kernel.values.shape[1]
    values = np.einsum("bpp->b", kernel.values)[:, None, None] * (signal.edges / positions)
    flat = replace(kernel, size=(1, 1), values=values)

    def features() -> Sample:
        drawn = signal.draw().values
        channels = np.arange(drawn.shape[2])
        return Sample(drawn[channels % positions, :, channels].T[None])

    return Signal(
        flat,
        signal.mean.mean(axis=1, keepdims=True),
        float(np.prod(node.shape)),
        signal.strays.averaged(node.name, Window(kernel.size, (1, 1)), kernel, flat),
        sample=cache(features),
    )


def zero_padded(operation: ZeroPad, signal: Signal) -> Signal:
    """Return the signal after zero padding."""
    top, bottom, left, right = operation.padding
    before = signal.padding
    rows = ((top, bottom), (left, right))
    if signal.amplitude is not None:
        root = np.pad(signal.common_root, rows)
        common = None if signal.common is None else root * float(root.mean())
        return replace(
            signal,
            amplitude=np.pad(signal.amplitude, rows),
            common=common,
            near=None if signal.near is None else signal.near.padded(rows),
            far=None if signal.far is None else signal.far.padded(rows),
            duals=None,
            law=None,
            weighted=None,
        )
    kernel = signal.kernel
    (h, w), n = kernel.size, len(kernel.values)
    size = h + top + bottom, w + left + right
    values = np.pad(kernel.mapped(), ((0, 0), *rows, *rows)).reshape(n, size[0] * size[1], size[0] * size[1])
    mean = np.pad(signal.mean.reshape(-1, h, w), ((0, 0), *rows)).reshape(len(signal.mean), -1)
    return Signal(
        replace(kernel, size=size, values=values),
        mean,
        signal.width,
        signal.strays.padded(operation.padding, kernel),
        origin=signal.origin,
        sample=signal.sample,
        padding=(before[0] + top, before[1] + bottom, before[2] + left, before[3] + right),
    )
