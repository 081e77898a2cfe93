"""The gradient's way back through weights, which know its slopes, the signal and the normalisation behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.generated.layers import linear_gradient
from varprop.simulator.network import Conv2d, Linear
from varprop.simulator.theory.coherence import learnt
from varprop.simulator.theory.gradient import Gradient, cut_inside, of_field
from varprop.simulator.theory.maps import Size, Window, by_offset, size_of, walked_by_offset, window_scatter
from varprop.simulator.theory.opposition import (
    added,
    handed_here,
    handed_on,
    kept_of_smooth,
    returned,
    together,
    unmoved,
)
from varprop.simulator.theory.pairs import PairKernel, unmerged, windows_transposed
from varprop.simulator.theory.patches import damped_taps
from varprop.simulator.theory.signal import Signal
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

_LEAST = 1e-4  # opposition, as small ones are handed on linearly


def through_convolution(
    op: Conv2d, gradient: Gradient, source: Signal, output: Signal, law: VarianceLaw | None
) -> Gradient:
    """Return the gradient before a convolution; `law` is as in `pull_back`."""
    assert output.weighted is not None
    assert output.weighted.window is not None
    window = output.weighted.window
    per_group = op.out_channels // op.groups
    related = gradient.relations
    size, loads = _loads(window, source)
    if law is not None and law.taps is not None:
        moments = law.taps / law.inverse
    else:
        kept, gradient = _returned(output, gradient, source, law, loads, op.stride, op.groups)
        # A weight that only ever sees zero padding has nothing to do with its channel's variance.
        by_tap = 1.0 - (1.0 - kept) * window.live * loads.ravel()
        moments = np.diag(window.shares * by_tap) * output.weighted.law.second_moment
    if op.depthwise:
        # Two channels have kernels of their own: only equal taps meet.
        loads = loads * np.diag(moments).reshape(window.kernel)
        loads /= max(float(loads.sum()), 1e-300)
    moments = moments * (per_group * related.reweigh)
    tilt = related.before * (1.0 if law is None else law.tilt)
    if source.data is not None:
        back = _at_data(gradient, moments, window, source.data.shape[2:])
        if law is None or law.modes is None or output.weighted.law.matrix is not None or not law.ratio > 0:
            return back
        assert source.known is not None
        damped = damped_taps(source.known, window, output.weighted.law.second_moment, law)
        more = _through_different(gradient.kernel, damped, window, window.out_size(size))
        return replace(back, kernel=back.kernel.scaled(more))
    back, more = _handed_on(gradient, source, output, loads, op.stride, size, 0 if op.depthwise else op.groups)
    amplitude = None
    if source.amplitude is None:
        arriving = unmerged(gradient.kernel, source.kernel.layout)
    else:
        arriving, edges = cut_inside(gradient, window.out_size(source.kernel.size), source)
        reach = window_scatter(edges, replace(window, inside=False), size_of(source.amplitude))
        amplitude = reach / (window.taps / (op.stride[0] * op.stride[1]))
    return replace(
        back,
        kernel=windows_transposed(arriving, moments, window, source.kernel.size).scaled(more),
        tilt=tilt,
        lost=related.lost,
        selection=related.gates,
        amplitude=amplitude,
        leaning=walked_by_offset(gradient.leaning, window, size),
    )


def through_linear(op: Linear, gradient: Gradient, source: Signal, output: Signal, law: VarianceLaw | None) -> Gradient:
    """Return the gradient before a linear layer; `law` is as in `pull_back`."""
    assert output.weighted is not None
    alone = np.ones((1, 1))
    kept, gradient = _returned(output, gradient, source, law, alone, (1, 1), 1)
    back, more = _handed_on(gradient, source, output, alone, (1, 1), (1, 1), 1)
    factor = float(linear_gradient(op.out_features, output.weighted.law.second_moment * kept * more, 1.0))
    return replace(back, kernel=gradient.kernel.scaled(factor))


def _loads(window: Window, source: Signal) -> tuple[Size, Array]:
    """Return the size of a convolution's input, and each tap's share in the signal under its window."""
    if source.data is not None:
        square = np.mean(source.data**2, axis=(0, 1))
        return size_of(square), window.loads(square.ravel(), size_of(square))
    return source.kernel.size, window.loads(source.kernel.diagonal.mean(axis=0), source.kernel.size)


def _returned(
    output: Signal,
    gradient: Gradient,
    source: Signal,
    law: VarianceLaw | None,
    loads: Array,
    stride: Size,
    groups: int,
) -> tuple[float, Gradient]:
    """Return E[|w^T g|^2] / E[|g|^2] over that of unrelated weights w, and the gradient as opposed behind these.

    A normalisation that follows ties the gradient of an output to its own weights; opposed gradients tie those of two
    outputs to both, if they are of one group. Those of other groups hand on what they have.
    """
    assert output.weighted is not None
    # At the data `bending` counts what slopes know.
    field = gradient.opposition if source.known is None else added(gradient.opposition, gradient.held)
    within = together(field, loads, stride) / groups
    more = 1.0 + 2.0 * max(-within, 0.0) / output.weighted.fan_in
    if law is None or law.modes is None:
        return more / (1.0 + 2.0 * max(within, 0.0) / output.weighted.fan_in), gradient
    channels = int(output.width) // groups
    window = output.weighted.window
    outside = None if window is None or source.known is not None else unmoved(source.kernel, output.kernel, window)
    alone, fresh = returned(law.modes, 0.0, channels, outside)
    within = max(within, _LEAST)
    left, found = returned(law.modes, within, channels, outside)
    # At the data all pairs of taps are counted one by one.
    if window is not None and window.taps > 1 and source.known is None:
        more *= kept_of_smooth(law.modes, gradient.kernel, window)
    handed = 1.0 + ((found - fresh) / within - 1.0) / groups
    opposition, held = gradient.opposition * handed, gradient.held * handed
    opposition[len(opposition) // 2, len(opposition[0]) // 2] += fresh
    kept = more * law.weighted_inverse / law.inverse * left / alone
    # Orthogonal rows keep every gradient's length.
    isometric = output.weighted.law.matrix is not None and output.width <= output.weighted.fan_in
    return 1.0 if isometric else kept, replace(gradient, opposition=opposition, held=held)


def _handed_on(
    gradient: Gradient, source: Signal, output: Signal, loads: Array, stride: Size, size: Size, groups: int
) -> tuple[Gradient, float]:
    """Return a gradient as it is to the channels of a layer's input, and how much more comes back of it for that.

    Slopes know the weights of one of several groups so much better, but of two channels only those of one group; of no
    `groups`, as in a depthwise layer, `relations` say what they know.
    """
    own = gradient.own if groups else 0.0 * gradient.own
    new, lasts = learnt(own, source.kernel, output.kernel, stride)
    coherence, opposition, held = (
        handed_on(added(field, more), loads, stride, size)
        for field, more in ((gradient.coherence, new), (gradient.opposition, -lasts), (gradient.held, lasts))
    )
    alone = max(groups - 1, 0) * handed_here(new, loads, stride)
    left = 2.0 * groups * handed_here(lasts, loads, stride) / source.width if source.known is None else 0.0
    back = Gradient(
        gradient.kernel,
        opposition=opposition,
        leaning=gradient.leaning,
        coherence=coherence,
        alone=alone,
        held=held,
        # What strides skip has no offset from what they read.
        crossings=tuple(part.under(loads, size) for part in gradient.crossings) if stride == (1, 1) else (),
    )
    return back, 1.0 + left


def _at_data(gradient: Gradient, moments: Array, window: Window, size: tuple[int, ...]) -> Gradient:
    """Gradient at data of which only second moments are asked for: their mean, and each position's over that."""
    kernel = gradient.kernel
    field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
    if gradient.amplitude is not None:
        field = gradient.amplitude * float(field.mean())
    seen = window_scatter(field, window, (size[0], size[1]), np.diag(moments))
    return of_field(replace(kernel, size=(1, 1), values=np.ones((len(kernel.values), 1, 1))), seen)


def _through_different(kernel: PairKernel, taps: Array, window: Window, size: Size) -> float:
    """Return what comes back through all pairs of taps over what does through equal ones, on a map of `size`."""
    known = by_offset(kernel.values[: kernel.layout.profiles].mean(axis=0), kernel.size)
    rows, cols = np.divmod(np.arange(window.taps), window.kernel[1])
    down, across = rows[:, None] - rows, cols[:, None] - cols
    meet = (down % window.stride[0] == 0) & (across % window.stride[1] == 0)
    down, across = down // window.stride[0], across // window.stride[1]
    h, w = kernel.size
    products = known[np.clip(down, 1 - h, h - 1) + h - 1, np.clip(across, 1 - w, w - 1) + w - 1]
    # Near an edge there is no place so far apart.
    pairs = np.maximum(1 - np.abs(down) / size[0], 0.0) * np.maximum(1 - np.abs(across) / size[1], 0.0)
    alone = float(np.trace(taps)) * float(known[h - 1, w - 1])
    return float(np.sum(taps * products * pairs * meet)) / alone if alone > 0 else 1.0
