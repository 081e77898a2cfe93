"""The law of a channel's variance over the data, and what dividing by it does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class Modes:
    """The modes of the data that a channel's variance v = sum_i lambda_i xi_i^2 consists of, several alike as one.

    Attributes
    ----------
    counts
        How many there are of each kind; all others of `dimensions` are idle.
    dimensions
        Number of weights.
    shares
        lambda_i / E v of each.
    damped
        E[lambda_i xi_i^2 / (v + eps)] / E[v / (v + eps)]: its share of the normalised channels' kernel.
    passed
        E[xi_i^2 / (v + eps)] / E[1 / (v + eps)]: of the gradient's second moment, what comes back along it through a
        channel's own weights.
    """

    counts: Array
    dimensions: float
    shares: Array
    damped: Array
    passed: Array


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
    squares
        Of a depthwise kernel E[w_k^2 / (v + eps)] at each sampled input channel, shape (taps, channels); else None.
    tilt
        Of a depthwise layer the mean product of this factor and the inputs' own 1 / (v + eps), over that of the means.
    sphere
        Dimensions of the sphere that a normalised channel's points lie on; infinite where they count as Gaussian.
    modes
        Of a layer that sums over many channels.
    strayed
        By how much the kernel of a single draw strays after the division: see `Strays`, variance and third moment.
    """

    mean: float
    ratio: float
    inverse: float
    weighted_inverse: float
    damping: Array | None = None
    taps: Array | None = None
    squares: Array | None = None
    tilt: float = 1.0
    sphere: float = np.inf
    modes: Modes | None = None
    strayed: tuple[float, float] = (0.0, 0.0)

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


def quadratic_form_law(
    leading: Array,
    rest: float,
    rest_square: float,
    dimensions: float,
    eps: float,
    strayed: tuple[float, float] = (0.0, 0.0),
    excess_kurtosis: float = 0.0,
) -> VarianceLaw:
    """Law of v = sum_i lambda_i xi_i^2 over independent standard normal xi.

    The leading eigenvalues are kept. The rest, of sum `rest` and sum of squares `rest_square`, would be equal ones if
    the kernel were what it is expected to be. A finite number of channels spreads them as those of a random covariance
    (`_spread`). By E[1/(v + eps)] = int_0^inf exp(-eps t) prod_i (1 + 2 lambda_i t)^(-1/2) dt, and a further factor
    1/(1 + 2 lambda_i t) for E[xi_i^2/(v + eps)].

    Parameters
    ----------
    dimensions
        Number of weights that a channel sums over; directions beyond those with an eigenvalue do not enter v.
    strayed
        Variance and third moment of the entries' relative deviations in a single draw of the layers before.
    excess_kurtosis
        Of the weights.
    """
    total = float(leading.sum()) + rest
    if total <= 0.0 or np.isinf(eps):
        return _nothing(eps, len(leading) + 1)
    if len(leading) and strayed[0] > 0.0:
        # A leading mode, of a much larger eigenvalue, takes its part of what the layers before mix into it of the rest.
        mixed = min(strayed[0], 0.5 / len(leading)) * rest
        kept = 1.0 - mixed * len(leading) / rest if rest > 0 else 1.0
        leading, rest, rest_square = leading + mixed, rest * kept, rest_square * kept**2
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
    left = float(others @ (counts * levels))
    damping = np.append(own, left / rest if rest > 0 else inverse)
    idle = max(dimensions - len(leading) - live, 0.0)
    weighted = (float(own.sum()) + float(counts @ others) + idle * inverse) / max(dimensions, len(leading))
    ratio = 1.0 - eps * inverse
    if ratio < 0.5:
        # v / (v + eps) as the sum of its directions' shares, which does not cancel.
        ratio = float(leading @ damping[:-1]) + rest * float(damping[-1])
    every, seen = np.concatenate([leading, levels]), np.concatenate([own, others])
    modes = Modes(
        np.concatenate([np.ones(len(leading)), counts]), dimensions, every / total, every * seen / ratio, seen / inverse
    )
    after = _moments(counts, levels * others / left) if left > 0 else (0.0, 0.0)
    found = _strayed(after, rest_square / rest**2 if rest > 0 else 0.0)
    # Entries that leading modes have a part in stray as before.
    shares = (left / ratio) ** 2, (left / ratio) ** 3
    variance, third = (share * new + (1 - share) * old for share, new, old in zip(shares, found, strayed, strict=True))
    return VarianceLaw(total, ratio, inverse, weighted, damping, modes=modes, strayed=(variance, third))


def _levels(rest: float, rest_square: float, dimensions: float, strayed: tuple[float, float]) -> tuple[Array, Array]:
    """Return how many eigenvalues there are of a few sizes, and these sizes.

    A deviation of entries by s adds s to the mean square of all pairs, and by its third moment t 3 s p + t to that of
    the triple products, p being the one without.
    """
    if rest <= 0:
        return np.zeros(3), np.zeros(3)
    plain = max(rest_square / rest**2, 1e-9)
    live = min(1 / plain, dimensions)
    variance, third = strayed
    c = max(live * (plain + variance) - 1.0, 1e-9)
    skew = (live**2 * (plain**2 + 3 * variance * plain + third) - 1.0 - 3.0 * c) / c**2
    shares, sizes = _spread(c, skew)
    return live * shares, rest / live * sizes


def _spread(c: float, skew: float) -> tuple[Array, Array]:
    """Return weights and nodes of a Gauss rule for the spectrum of a random covariance, of mean one.

    Layers multiply such spectra freely. The product of k like those of Marchenko and Pastur, of variance c in all, has
    the S-transform (1 + c z / k)^-k and thus free cumulants binom(k n, n - 1) (c / k)^(n - 1) / n, of which the third
    is skew c^2 with skew = (3 - 1/k) / 2: that decides k (Mingo & Speicher, "Free Probability and Random Matrices",
    2017, chapters 2 and 4). The rule with the first six moments has the Jacobi matrix below.
    """
    skew = min(max(skew, 1.0), 1.5)
    u = 3.0 - 2.0 * skew
    fourth, fifth = (4 - u) * (2 - u) / 3, (5 - u) * (5 - 2 * u) * (5 - 3 * u) / 24
    wider = 1 + c * (1 - u) * (5 - u) / 12
    last = c * (skew + c * (fifth - 2 * skew * fourth + skew**3)) / wider
    first, second = np.sqrt(c), np.sqrt(c * wider)
    jacobi = np.array([[1.0, first, 0.0], [first, 1 + skew * c, second], [0.0, second, 1 + last]])
    sizes, vectors = np.linalg.eigh(jacobi)
    return vectors[0] ** 2, np.maximum(sizes, 0.0)


def _moments(counts: Array, shares: Array) -> tuple[float, float]:
    """Return the sums of squares and of cubes of shares that sum to one."""
    return float(counts @ shares**2), float(counts @ shares**3)


def _strayed(moments: tuple[float, float], plain: float) -> tuple[float, float]:
    """Return what such sums say of the entries' deviations: the reverse of `_levels`."""
    variance = max(moments[0] - plain, 0.0)
    third = max(moments[1] - 3 * variance * plain - plain**2, 0.0)
    return variance, third
