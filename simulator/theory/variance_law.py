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
    degree
        E[v / (v + eps)^2] / E[1 / (v + eps)]: minus half the logarithmic derivative of `inverse` by the data's scale.
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
    degree: float = 1.0
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
    return VarianceLaw(0.0, 0.0, inverse, inverse, 0.0, np.full(modes, inverse))


def quadratic_form_law(
    leading: Array,
    rest: float,
    rest_square: float,
    dimensions: float,
    eps: float,
    strayed: float = 0.0,
    excess_kurtosis: float = 0.0,
) -> VarianceLaw:
    """Law of v = sum_i lambda_i xi_i^2 over independent standard normal xi.

    The leading eigenvalues are kept. The rest, of sum `rest` and sum of squares `rest_square`, would be equal ones if
    the kernel were what it is expected to be. A finite number of channels spreads them as those of a random covariance,
    by Marchenko and Pastur's law with mean one and variance c, of which two nodes are kept: those of its Gauss
    quadrature, with the same first four moments. By E[1/(v + eps)] = int_0^inf exp(-eps t)
    prod_i (1 + 2 lambda_i t)^(-1/2) dt, and a further factor 1/(1 + 2 lambda_i t) for E[xi_i^2/(v + eps)].

    Parameters
    ----------
    dimensions
        Number of weights that a channel sums over; directions beyond those with an eigenvalue do not enter v.
    strayed
        What the sum of squares gains in a single draw of the layers before.
    excess_kurtosis
        Of the weights.
    """
    total = float(leading.sum()) + rest
    if total <= 0.0 or np.isinf(eps):
        return _nothing(eps, len(leading) + 1)
    counts, levels = _levels(rest, rest_square, max(dimensions - len(leading), 1.0), strayed)
    live = float(counts.sum())
    # Weights that are not Gaussian spread v more or less, as if there were fewer or more of them.
    plain = float(counts @ levels**2)
    narrower = plain / max(plain + total**2 * excess_kurtosis / (2 * dimensions), 1e-9 * rest**2) if rest > 0 else 1.0
    powers, equal = counts * narrower, levels / narrower
    # t in units of 1 / total on a logarithmic grid: the integrand bends at 1 / lambda_i and at 1 / eps.
    # Beyond 40 / eps nothing is left.
    bend = float(np.log(total / eps)) if eps > 0 else 75.0
    edges = np.linspace(min(bend, 0.0) - 25.0, bend + np.log(40.0), 60)
    centre, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    t = np.exp((centre[:, None] + half[:, None] * _NODES).ravel()) / total
    mass = (half[:, None] * _WEIGHTS).ravel() * t
    with np.errstate(under="ignore"):
        log = -eps * t - 0.5 * np.log1p(2 * np.outer(leading, t)).sum(axis=0)
        mass = mass * np.exp(log - 0.5 * powers @ np.log1p(2 * np.outer(equal, t)))
    inverse = float(mass.sum())
    own, others = ((mass / (1 + 2 * np.outer(values, t))).sum(axis=1) for values in (leading, equal))
    # The mean damping of the rest, each of its directions counted with what it adds to v.
    damping = np.append(own, others @ (counts * levels) / rest if rest > 0 else inverse)
    idle = max(dimensions - len(leading) - live, 0.0)
    weighted = (float(own.sum()) + float(counts @ others) + idle * inverse) / max(dimensions, len(leading))
    ratio = 1.0 - eps * inverse
    if ratio < 0.5:
        # v / (v + eps) as the sum of its directions' shares, which does not cancel.
        ratio = float(leading @ damping[:-1]) + rest * float(damping[-1])
    degree = 1.0 - eps * float(mass @ t) / inverse
    return VarianceLaw(total, ratio, inverse, weighted, degree, damping)


def _levels(rest: float, rest_square: float, dimensions: float, strayed: float) -> tuple[Array, Array]:
    """Return how many eigenvalues there are of two sizes, and these sizes."""
    if rest <= 0:
        return np.zeros(2), np.zeros(2)
    live = min(rest**2 / max(rest_square, 1e-9 * rest**2), dimensions)
    c = max(live * (rest_square + strayed) / rest**2 - 1.0, 1e-9)
    root = float(np.sqrt(c + c * c / 4))
    share = 0.5 - c / (4 * root)
    high = 1 + c / 2 + root
    return live * np.array([share, 1 - share]), rest / live * np.array([high, 1 / high])
