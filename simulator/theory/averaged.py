"""What straying levels and correlations make of the mean kernel behind an activation.

Of two points of levels q_a, q_b and correlation c, all three different in every draw, E phi_a phi_b is to second order
what it is at their means and

    Cov(m_a, m_b) + the like of the rest + d^2 E phi_a phi_b / dc^2 Var c / 2,

m being E phi at a level. Where the levels are not the same E z_a z_b = E[sqrt(q_a q_b)] c is less than E[q] c, so that
c is more than what the kernel says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.duals import FAR
from varprop.simulator.theory.level_law import Law
from varprop.simulator.theory.maps import Size, apart_by, at_offsets, offsets
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.place import Place, between, levels_of
from varprop.simulator.theory.response import Bends
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_ROUNDING = 1e-9  # of one less a squared correlation


def as_seen(kernel: PairKernel, place: Place) -> PairKernel:
    """Return the kernel of an activation's input with the correlations that its points have in a draw."""
    levels = levels_of(kernel)
    equal = place.law.spread(levels, np.ones_like(levels))
    return replace(kernel, values=kernel.values / _together(place, np.sqrt(place.law.levels), kernel, equal))


def averaged(
    function: ActivationFunction, signal: Signal, before: PairKernel, place: Place, bent: Bends
) -> tuple[Signal, Place]:
    """Return an activation's output, averaged over draws, and its place.

    Parameters
    ----------
    function
        The activation.
    signal
        What comes of the levels' means.
    before
        Kernel of its input.
    place
        That of its input, with the passage through the activation.
    bent
        Of its input as it is seen.
    """
    passage, known, law = place.made, place.unfixed, place.law
    assert known is not None
    kernel, layout, levels = signal.kernel, signal.kernel.layout, levels_of(before)
    equal = law.spread(levels, np.ones_like(levels))
    rest, rest_known = (np.maximum(p.square - p.mean**2, 0.0) for p in (passage, known))
    varied = float(equal @ rest_known)
    if not varied > 0.0:
        return signal, place
    # Half-lines are followed beyond what can be written as a number.
    beyond = np.log(before.second_moment) + before.log_scale - np.log(size_in_range(before))
    unit = float(np.exp((beyond - kernel.log_scale) / 2))
    mean, mean_known = law.mean(passage.mean), float(equal @ known.mean)
    strayed = _beyond(law, passage.mean, known.mean, equal)
    # Points of another size, near an edge, stray by as much of it; zeros around a map do not.
    sizes = np.sqrt(np.maximum(before.diagonal / before.second_moment, 0.0))
    means = signal.mean + (mean - mean_known) * unit * sizes
    values = kernel.values - _products(signal.mean, kernel)
    values *= law.mean(rest) / varied * _together(place, np.sqrt(rest), before, equal)
    values += _products(means, kernel)
    more = strayed * unit**2 * _alike(place, kernel)
    q, apart = bent.q * np.exp(before.log_scale - kernel.log_scale), 1.0 - bent.correlation**2
    curved = (q * bent.bent * apart**2).mean(axis=0) / 2
    more[: layout.profiles] += (_unfolded(curved[:-1], kernel.size) * place.spread).ravel()[offsets(kernel.size)]
    more[layout.profiles :] += curved[-1] * place.spread_others
    most = _products(np.sqrt(np.maximum(kernel.diagonal, 0.0)), kernel)
    values = np.clip(values + _products(sizes, kernel) * more, -most, most)
    # One point is known best: of Gaussian ones half-lines leave the second moment as it is.
    gain = 1.0
    if not function.homogeneous or place.fixed > 0.0:
        gain = law.mean(passage.square) / float(equal @ known.square)
    positions = np.arange(values.shape[1])
    values[: layout.profiles, positions, positions] = kernel.diagonal * gain
    scaled = replace(kernel, values=values).scaled(1.0)
    slope = (q * bent.slopes).mean(axis=0) / kernel.second_moment
    left = (slope * apart.mean(axis=0) / _apart(kernel)) ** 2
    spread, others = _unfolded(left[:-1], kernel.size) * place.spread, float(left[-1]) * place.spread_others
    found = replace(place, spread=spread, spread_others=others)
    return replace(signal, kernel=scaled, mean=means * scaled.unit(kernel.log_scale)), found


def size_in_range(kernel: PairKernel) -> float:
    """Return a kernel's second moment, or the nearest at which activations are evaluated."""
    return float(np.exp(np.clip(np.log(kernel.second_moment) + kernel.log_scale, -FAR, FAR)))


def _products(field: Array, kernel: PairKernel) -> Array:
    return np.asarray(field[kernel.layout.left][:, :, None] * field[kernel.layout.right][:, None, :])


def _together(place: Place, field: Array, kernel: PairKernel, equal: Array) -> Array:
    """Mean product of a function of the level at two points over that at one, by block and pair of positions."""
    mean, strayed = place.law.mean(field), _beyond(place.law, field, field, equal)
    if not mean > 0.0:
        return np.ones((len(kernel.values), 1, 1))
    return np.asarray((mean**2 + strayed * _alike(place, kernel)) / (mean**2 + strayed))


def _beyond(law: Law, field: Array, known: Array, equal: Array) -> float:
    """Variance of a function of the level over draws, less that of the `known` one over a kernel's own levels.

    `equal` are the weights of the law's nodes for these; see `Law.spread`.
    """
    inside = float(equal @ known**2) - float(equal @ known) ** 2
    return max(law.mean(field**2) - law.mean(field) ** 2 - inside, 0.0)


def _alike(place: Place, kernel: PairKernel) -> Array:
    """Correlation of the levels of two points, by block and pair of positions."""
    count = kernel.values.shape[1]
    found = np.full((len(kernel.values), count, count), place.others)
    by_offset = at_offsets(place.places, *apart_by(kernel.size))
    found[: kernel.layout.profiles] = by_offset.ravel()[offsets(kernel.size)]
    return found


def _apart(kernel: PairKernel) -> Array:
    """One less the squared correlation of two positions, by half of their offsets, and of two samples."""
    known = kernel.correlation().ravel()
    return np.maximum(1.0 - np.append(known[: len(known) // 2 + 1] ** 2, between(kernel)), _ROUNDING)


def _unfolded(half: Array, size: Size) -> Array:
    """Return a field by offset from the half of its values that symmetry leaves, with zero at none."""
    rows, cols = 2 * size[0] - 1, 2 * size[1] - 1
    count = rows * cols // 2
    return np.concatenate([half[:count], [0.0], half[:count][::-1]]).reshape(rows, cols)
