"""Second moments position by position: what zero padding and strides take from a map's edges.

A window that hangs over the edge sums fewer products. Behind a convolution of stride s

    q'(p) = C Var(w) sum_k q(s p + k),    g(r) = C' Var(w) sum of g'(p) over k and p with s p + k = r,

k over the window's T taps, with zeros beyond the edges. Other layers keep or mix positions by rules of their own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Shape
from varprop.simulator.report import Profile
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]


def profile(kernel: PairKernel, amplitude: Array | None, shape: Shape) -> Profile | None:
    """Return the second moment at each position over its average on the map.

    Parameters
    ----------
    kernel, amplitude
        Of a signal or a gradient.
    shape
        Of the node; None is returned for flat ones, for maps that are exactly zero, and for the gradient at data whose
        positions theory does not tell apart.
    """
    if amplitude is not None:
        return relative(amplitude)
    if len(shape) != 3 or kernel.size != shape[1:]:
        return None
    return relative(kernel.diagonal.mean(axis=0).reshape(kernel.size))


def relative(field: Array) -> Profile | None:
    """Return a map over its mean, row by row; None if it is zero."""
    mean = float(field.mean())
    return tuple(tuple(map(float, row)) for row in field / mean) if mean > 0 else None
