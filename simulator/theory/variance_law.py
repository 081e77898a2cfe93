"""The law of a channel's variance over the data, and what dividing by it does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class VarianceLaw:
    """Expectations over channels of functions of a channel's variance v over batch and positions.

    Attributes
    ----------
    mean
        E[v].
    ratio
        E[v / (v + eps)]: second moment after normalisation.
    inverse
        E[1 / (v + eps)]: factor of the gradient.
    weighted_inverse
        E[|w|^2 / (v + eps)] / E[|w|^2]: the same seen through the channel's own weights w, which made v what it is.
    damping
        Of each leading mode of the kernel, E[xi^2 / (v + eps)] for its share xi of the weights; the last entry is that
        of all other modes.
    taps
        Of a depthwise kernel E[w_k w_l / (v + eps)], shape (taps, taps); else None.
    tilt
        Of a depthwise layer the mean product of this factor and the inputs' own 1 / (v + eps), over that of the means.
    """

    mean: float
    ratio: float
    inverse: float
    weighted_inverse: float
    damping: Array | None = None
    taps: Array | None = None
    tilt: float = 1.0

    def scaled(self, scale: float, eps: float) -> VarianceLaw:
        """Law of `scale` times v, where this one is for eps / scale."""
        if scale == 0.0:
            return _nothing(eps, 0 if self.damping is None else len(self.damping))
        return replace(
            self,
            mean=self.mean * scale,
            inverse=self.inverse / scale,
            weighted_inverse=self.weighted_inverse / scale,
            damping=None if self.damping is None else self.damping / scale,
        )


def _nothing(eps: float, modes: int) -> VarianceLaw:
    """Law of a variance that is zero."""
    inverse = 1.0 / eps if eps > 0 else np.inf
    return VarianceLaw(0.0, 0.0, inverse, inverse, np.full(modes, inverse))


def quadratic_form_law(leading: Array, rest: float, rest_square: float, dimensions: float, eps: float) -> VarianceLaw:
    """Law of v = sum_i lambda_i xi_i^2 over independent standard normal xi.

    The leading eigenvalues are kept; the rest, of sum `rest` and sum of squares `rest_square`, count as
    equal ones, a gamma variable with the same mean and variance. By E[1/(v + eps)] = int_0^inf exp(-eps t)
    prod_i (1 + 2 lambda_i t)^(-1/2) dt, and a further factor 1/(1 + 2 lambda_i t) for E[xi_i^2/(v + eps)].

    Parameters
    ----------
    dimensions
        Number of weights that a channel sums over; directions beyond those with an eigenvalue do not enter v.
    """
    total = float(leading.sum()) + rest
    if total <= 0.0 or np.isinf(eps):
        return _nothing(eps, len(leading) + 1)
    relative = max(rest_square / rest**2, 1e-9) if rest > 0 else 1.0
    count, equal = 1.0 / relative, rest * relative
    # t in units of 1 / total on a logarithmic grid: the integrand bends at 1 / lambda_i and at 1 / eps.
    # Beyond 40 / eps nothing is left.
    bend = float(np.log(total / eps)) if eps > 0 else 75.0
    edges = np.linspace(min(bend, 0.0) - 25.0, bend + np.log(40.0), 60)
    centre, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    t = np.exp((centre[:, None] + half[:, None] * _NODES).ravel()) / total
    mass = (half[:, None] * _WEIGHTS).ravel() * t
    with np.errstate(under="ignore"):
        log = -eps * t - 0.5 * np.log1p(2 * np.outer(leading, t)).sum(axis=0) - 0.5 * count * np.log1p(2 * equal * t)
        mass = mass * np.exp(log)
    inverse = float(mass.sum())
    damping = np.array(
        [*(mass / (1 + 2 * np.outer(leading, t))).sum(axis=1), float(np.sum(mass / (1 + 2 * equal * t)))]
    )
    # A gamma variable that is narrower than the number of weights allows spreads over all of them.
    live = min(count, max(dimensions - len(leading), 0.0))
    idle = max(dimensions - len(leading) - live, 0.0)
    weighted = (float(damping[:-1].sum()) + live * float(damping[-1]) + idle * inverse) / max(dimensions, len(leading))
    ratio = 1.0 - eps * inverse
    if ratio < 0.5:
        # v / (v + eps) as the sum of its directions' shares, which does not cancel.
        ratio = float(leading @ damping[:-1]) + rest * float(damping[-1])
    return VarianceLaw(total, ratio, inverse, weighted, damping)
