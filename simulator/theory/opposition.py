"""Gradients that oppose the signal: behind a normalisation, what comes back along the data's leading modes is smaller.

A channel's normalised output does not change with the length of its weights, and its gradient is small where these
weights made it large. Let S be the covariance of a layer's channels over the data and T the mean product of their
gradients, both (channels, channels). Over the weights of later layers T is a function of S, and theory keeps it in the
form T ~ (1 + w S)^-1, with w tr S = 2 o: an `opposition` o, of which T = 1 - 2 o S / tr S for small o.

One more normalised layer back, z = W h / sqrt(v), that form stays. Let lambda_i be the modes of the input's covariance
and M the matrix (modes, channels) of sqrt(lambda_i) w_i / sqrt(v), so that the output has S = M' M and, with F(S) =
(1 + w S)^-1, the input gets

    T = Lambda^-1/2 M F(M' M) M' Lambda^-1/2 = Lambda^-1/2 [1 - (1 + w M M')^-1] / w Lambda^-1/2.

The columns of M are independent, with covariance A = diag(alpha_i), alpha_i = E[lambda_i xi_i^2 / (v + eps)]. So the
bracket's expectation is that of a sample covariance's resolvent, whose deterministic equivalent is (1 + w d A)^-1 with
d = 1 - tr[1 - (1 + w d A)^-1] / channels = tr F / channels (Couillet & Debbah, "Random Matrix Methods for Wireless
Communications", 2011, theorem 6.1), and

    T_i = d damping_i / (1 + w d alpha_i),    damping_i = alpha_i / lambda_i.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.variance_law import Modes

Array = NDArray[np.float64]

_ROUNDS = 30  # of Newton's method, which needs about five
_AGREED = 1e-10


def returned(modes: Modes, opposition: float, channels: int) -> tuple[float, float]:
    """Return what is left of a gradient behind a layer's weights, and its opposition there.

    Parameters
    ----------
    modes
        Of the normalisation that the layer's outputs go through.
    opposition
        Of the gradient behind that normalisation.
    channels
        Number of outputs.

    Returns
    -------
    left
        E[|w^T g|^2] over that of weights that the gradient knows nothing of.
    opposition
        Of the gradient at the layer's input.
    """
    whole = 1.0
    for _ in range(_ROUNDS):
        taken, slope = _taken(modes.counts, modes.damped, opposition * whole)
        step = (whole - 1 + taken / channels) / (1 + opposition * slope / channels)
        whole -= step
        if abs(step) < _AGREED:
            break
    kept = modes.passed / (1 + 2 * opposition * whole * modes.damped)
    lost = float(modes.counts @ (1 - kept))
    return 1 - lost / modes.dimensions, _opposition(modes.counts, modes.shares, lost)


def projected(modes: Modes, opposition: float, along: float) -> float:
    """Return the opposition of a gradient once what goes along each channel's own output is taken out of it.

    Gradients of two channels lose two projections and get back their product: of a share `along` of the one,
    1 - 2 along + along E[c^4] / E[c^2] of the product is left over 1 - along of the squares, c being the channels'
    correlation over the data.
    """
    if not opposition:
        return 0.0
    alike = float(modes.counts @ modes.damped**2)
    left = (1 - 2 * along + 3 * along * alike / (1 + 2 * alike)) / (1 - along)
    return _opposition(modes.counts, modes.damped, left * _taken(modes.counts, modes.damped, opposition)[0])


def _taken(counts: Array, shares: Array, opposition: float) -> tuple[float, float]:
    """Return tr[1 - (1 + w S)^-1] for w tr S = 2 opposition, and its derivative."""
    scaled = 1 + 2 * opposition * shares
    return float(counts @ (1 - 1 / scaled)), float(counts @ (2 * shares / scaled**2))


def _opposition(counts: Array, shares: Array, taken: float) -> float:
    """Return the opposition that takes so much, by Newton's method from below on a concave function."""
    found = 0.0
    for _ in range(_ROUNDS):
        now, slope = _taken(counts, shares, found)
        if taken - now <= _AGREED * taken:
            break
        found += (taken - now) / slope
    return found
