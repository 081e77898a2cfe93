"""Gains: the factor on the weights that keeps an activation's second moment, or its variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.errors import UserError
from varprop.simulator.generated.moments import CLOSED_FORMS
from varprop.simulator.quadrature import gaussian_mean

_GRID = np.logspace(-12, 12, 481)  # fixed points closer than 12% in q are not told apart
_TOUCHING = 1e-12  # a logarithm of the map's ratio that only rounding keeps from 0


@dataclass(frozen=True)
class FixedPoint:
    """A variance that a layer gives back.

    Attributes
    ----------
    q
        The variance q* = gain^2 E[phi(z)^2], z ~ N(0, q*).
    chi
        gain^2 E[phi'(z)^2] there: the factor of the gradient's second moment.
    slope
        Slope of the variance map there; the fixed point is stable if it is below 1.
    """

    q: float
    chi: float
    slope: float


@dataclass(frozen=True)
class Gain:
    """Moments of an activation at z ~ N(0, q), and the gains that follow.

    Attributes
    ----------
    activation, q
        Canonical name, and variance of the input.
    mean, second_moment, variance, derivative_second_moment
        E[phi], E[phi^2], Var[phi] and E[phi'^2].
    gain_second_moment, gain_variance
        1 / sqrt(E[phi^2]) and 1 / sd(phi): weights of variance gain^2 / fan_in give second moment 1, and variance 1,
        after the activation's linear layer.
    closed_form
        The formulas in q (and a, the activation's parameter); None where the second moments are integrals.
    method
        "closed form" or "quadrature".
    fixed_points
        Fixed points of the variance map under `gain_second_moment`; empty for positively homogeneous activations,
        where every variance is kept.
    """

    activation: str
    q: float
    mean: float
    second_moment: float
    variance: float
    derivative_second_moment: float
    gain_second_moment: float
    gain_variance: float
    closed_form: dict[str, str] | None
    method: str
    fixed_points: tuple[FixedPoint, ...]


def gain(activation: ActivationFunction, q: float = 1.0) -> Gain:
    """Return the moments and gains of an activation.

    Parameters
    ----------
    activation
        The function phi.
    q
        Variance of its input, from 1e-150 to 1e150.

    Raises
    ------
    UserError
        If `q` is out of range, or so small that the activation is constant to the last digit.

    References
    ----------
    He et al. 2015, Eq. (10): ReLU's gain is sqrt(2).

    Examples
    --------
    >>> from varprop.simulator.activations import activation
    >>> round(gain(activation("relu")).gain_second_moment, 12)
    1.414213562373
    """
    if not 1e-150 <= q <= 1e150:
        raise UserError("q", q, "a variance above 0, from 1e-150 to 1e150")
    mean, second_moment = float(activation.mean(q)), float(activation.second_moment(q))
    # Not second_moment - mean^2: for a sigmoid at small q nothing would be left of it.
    variance = float(gaussian_mean(lambda z: (activation.value(z) - mean) ** 2, q, activation.kinks))
    if not variance > 0:
        raise UserError("activation", activation.name, f"an activation that varies under N(0, {q:g})")
    forms = CLOSED_FORMS[activation.family]
    closed = dict(forms) if "second_moment" in forms else None
    factor = 1 / math.sqrt(second_moment)
    return Gain(
        activation=activation.name,
        q=q,
        mean=mean,
        second_moment=second_moment,
        variance=variance,
        derivative_second_moment=float(activation.derivative_second_moment(q)),
        gain_second_moment=factor,
        gain_variance=1 / math.sqrt(variance),
        closed_form=closed,
        method="closed form" if closed else "quadrature",
        fixed_points=fixed_points(activation, factor),
    )


def fixed_points(activation: ActivationFunction, factor: float) -> tuple[FixedPoint, ...]:
    """Return the fixed points q = factor^2 E[phi(z)^2], z ~ N(0, q), with q between 1e-12 and 1e12, in order.

    A positively homogeneous activation multiplies every variance alike: it has none, or all, and gets none here.

    References
    ----------
    Poole et al. 2016, section 2 (without bias).

    Examples
    --------
    >>> from varprop.simulator.activations import activation
    >>> [point] = fixed_points(activation("tanh"), 5 / 3)
    >>> round(point.q, 6)
    1.17848
    """
    if activation.homogeneous or factor == 0:
        return ()

    log_factor = 2 * math.log(abs(factor))

    def growth(log_q: float) -> float:
        q = math.exp(log_q)
        return log_factor + math.log(float(activation.second_moment(q)) / q)

    grid = np.log(_GRID)
    values = log_factor + np.log(activation.second_moment(_GRID)) - grid
    roots = []
    for left, right, below, above in zip(grid, grid[1:], values, values[1:], strict=False):
        if abs(below) < _TOUCHING and abs(above) < _TOUCHING:
            continue  # the map touches the diagonal along a stretch, as erf does near 0 at its critical gain
        if below * above < 0 or below == 0:
            roots.append(float(brentq(growth, left, right, xtol=1e-14)) if below else float(left))
    return tuple(_fixed_point(activation, factor, root) for root in roots)


def _fixed_point(activation: ActivationFunction, factor: float, log_q: float) -> FixedPoint:
    q, step = math.exp(log_q), 1e-4
    above, below = (float(activation.second_moment(math.exp(log_q + sign * step))) for sign in (1, -1))
    slope = factor**2 * (above - below) / (q * 2 * math.sinh(step))
    return FixedPoint(q, factor**2 * float(activation.derivative_second_moment(q)), slope)
