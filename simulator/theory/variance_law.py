"""The law of a channel's variance over the data, and what dividing by it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PANELS = 59  # that a unit is cut into
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES = ((np.arange(_PANELS)[:, None] + (_NODES + 1) / 2) / _PANELS).ravel()
_WEIGHTS = np.tile(_WEIGHTS / (2 * _PANELS), _PANELS)


@dataclass(frozen=True)
class Modes:
    """The modes of the data that a channel's variance v = sum_i lambda_i xi_i^2 consists of, several alike as one.

    Attributes
    ----------
    which
        The leading mode that each kind is of: its number, that of their count where it is of none.
    counts
        How many there are of each kind; all others of `dimensions` are idle.
    dimensions
        Number of weights.
    shares
        lambda_i / E v of each.
    damped
        E[lambda_i xi_i^2 / (v + eps)] / E[v / (v + eps)]: its share of the normalised channels' kernel.
    passed
        E[xi_i^2 / (v + eps)] over the same along a direction that has no part in v: of the gradient's second moment,
        what comes back along it through a channel's own weights.
    both
        E[lambda_i xi_i^2 lambda_j xi_j^2 / (v + eps)^2] of the leading ones, at their mean sizes.
    fields
        Autocorrelation of each over the map, by offset: shape (kinds, 2 height - 1, 2 width - 1); one where they have
        no places.
    """

    which: NDArray[np.intp]
    counts: Array
    dimensions: float
    shares: Array
    damped: Array
    passed: Array
    both: Array
    fields: Array = field(default_factory=lambda: np.ones((1, 1, 1)))


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
    products
        Of a depthwise kernel E[w_k w_l / (v + eps)] at each sampled input channel, shape (channels, taps, taps); else
        None.
    tilt
        Of a depthwise layer the mean product of this factor and the inputs' own 1 / (v + eps), over that of the means.
    sphere
        Dimensions of the sphere that a normalised channel's points lie on; infinite where they count as Gaussian.
    own_sphere
        The same in one draw, whose kernel strays.
    strays_sphere
        The same for the entries that stray: of the normalised kernel in one draw, of trace one, the inverse of the mean
        ratio of a straying entry to that of the kernel's square.
    levels, lead
        What `Strays` has under these names, after the division.
    spots
        Correlation of two positions' levels, before what a layer's own channels add to them: see `Strays`.
    parts
        E t and E t^2 for the part t that a point has of v + eps, at the nodes of the levels of single points: shape
        (2, nodes).
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
    products: Array | None = None
    tilt: float = 1.0
    sphere: float = np.inf
    own_sphere: float = np.inf
    strays_sphere: float = np.inf
    levels: float = 0.0
    lead: float = 0.0
    parts: Array = field(default_factory=lambda: np.zeros((2, 0)))
    spots: Array = field(default_factory=lambda: np.ones((1, 1)))
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
    points: Array | None = None,
    each: float = 0.0,
) -> VarianceLaw:
    """Law of v = sum_i lambda_i xi_i^2 over independent standard normal xi.

    The leading eigenvalues are kept, of two sizes where they differ from draw to draw (`_apart`). The rest,
    of sum `rest` and sum of squares `rest_square`, would be equal ones if
    the kernel were what it is expected to be. A finite number of channels spreads them as those of a random covariance
    (`_spread`). By E[1/(v + eps)] = int_0^inf exp(-eps t) prod_i (1 + 2 lambda_i t)^(-1/2) dt, and a further factor
    1/(1 + 2 lambda_i t) for E[xi_i^2/(v + eps)].

    Weights of excess kurtosis k that are not normal have as many directions as normal ones, but another spread of their
    squared length R: 2 + k over their number n, instead of 2 / n. So E f(R) has k / n E[R^2 f''(R)] / 2 more, to first
    order; for the rows of an orthogonal matrix, of no spread, that is exact without eps. Below three weights a normal
    law's E[1/R] is infinite, and k left out.

    Parameters
    ----------
    dimensions
        Number of weights that a channel sums over; directions beyond those with an eigenvalue do not enter v.
    strayed
        Variance and third moment of the entries' relative deviations in a single draw of the layers before.
    excess_kurtosis
        Of the weights.
    points, each
        Levels that a single point may have, and its share in v at level one: see `_parts`.
    """
    total = float(leading.sum()) + rest
    if total <= 0.0 or np.isinf(eps):
        return _nothing(eps, len(leading) + 1)
    alike = rest_square / rest**2 if rest > 0 else 0.0
    expected, remainder, scatter = leading, rest, np.ones(1)
    square, cube = _with_strays(_plain(leading / total, rest / total, alike), strayed)
    free = max(dimensions - len(leading), 1.0)
    if len(leading) and strayed[0] ** 2 > 0.0:
        # A leading mode, of a much larger eigenvalue, takes its part of what the layers before mix into it of the rest.
        mixed = min(strayed[0], 0.5 / len(leading)) * rest
        leading, rest = leading + mixed, rest - mixed * len(leading)
        apart = _apart(
            leading / total, rest / total, _number(alike, free), (square, cube), strayed[1] / strayed[0] ** 2
        )
        scatter = np.array([1.0 - apart, 1.0 + apart])
    leading, share = np.outer(scatter, leading).ravel(), 1.0 / len(scatter)
    square, cube = (m - share * float(np.sum((leading / total) ** n)) for n, m in ((2, square), (3, cube)))
    counts, levels = _levels(rest, _number(alike, free), (square * total**2, cube * total**3))
    live = float(counts.sum())
    # t in units of 1 / total on a logarithmic grid: the integrand bends at 1 / lambda_i and at 1 / eps.
    # Beyond 40 / eps nothing is left.
    bend = math.log(total / eps) if eps > 0 else 75.0
    first = min(bend, 0.0) - 25.0
    length = bend + math.log(40.0) - first
    t = np.exp(first + length * _NODES) / total
    every, numbers = np.concatenate([leading, levels]), np.concatenate([np.full(len(leading), share), counts])
    along = np.outer(2 * every, t)
    decay = -eps * t - 0.5 * numbers @ np.log1p(along)
    with np.errstate(under="ignore"):
        mass = length * _WEIGHTS * t * np.exp(decay)
    # R^2 (s R + eps)^-3 and R (s R + eps)^-3, with E[(v + eps)^-k] = int t^(k-1) / (k-1)! exp(-eps t) E exp(-v t) dt.
    radial, far = excess_kurtosis / dimensions if dimensions > 2 else 0.0, eps * t - (eps * t) ** 2 / 2
    inverse = float(mass @ (1 + radial * (1 - eps * t - far)))
    parts = np.zeros((2, 0))
    if points is not None:
        slope = 0.5 * numbers @ (along / (1 + along))
        parts = length * _parts(points, each, t * total, decay, slope) @ _WEIGHTS
    mass = mass * (1 - radial * far)
    seen = 1 / (1 + along) @ mass
    own, others = seen[: len(leading)], seen[len(leading) :]
    # The mean damping of the rest, each of its directions counted with what it adds to v.
    left = float(others @ (counts * levels))
    damping = np.append(share * scatter @ own.reshape(len(scatter), -1), left / rest if rest > 0 else inverse)
    alone = float(mass.sum())  # of a direction that has no part in v
    idle = max(dimensions - len(expected) - live, 0.0) * alone
    weighted = (share * float(own.sum()) + float(counts @ others) + idle) / max(dimensions, len(expected))
    ratio = 1.0 - eps * inverse
    if ratio < 0.5:
        # v / (v + eps) as the sum of its directions' shares, which does not cancel.
        ratio = share * float(leading @ own) + rest * float(damping[-1])
    damped = every * seen / ratio
    which = np.append(np.tile(np.arange(len(expected)), len(scatter)), np.full(len(levels), len(expected)))
    modes = Modes(which, numbers, dimensions, every / total, damped, seen / alone, _both(expected, t, mass * t))
    # What is left of the expected kernel has its own leading modes, damped as these are.
    kept = np.append(expected, remainder) * damping
    after = _plain(kept[:-1] / kept.sum(), kept[-1] / kept.sum(), alike)
    found = _strayed((float(numbers @ damped**2), float(numbers @ damped**3)), after)
    return VarianceLaw(total, ratio, inverse, weighted, damping, parts=parts, modes=modes, strayed=found)


def _both(sizes: Array, t: Array, mass: Array) -> Array:
    """Return E[lambda_i xi_i^2 lambda_j xi_j^2 / (v + eps)^2], `mass` being what E (v + eps)^-2 is the sum of."""
    part = sizes[:, None] / (1 + np.outer(2 * sizes, t))
    return np.asarray((part * mass) @ part.T * (1 + 2 * np.eye(len(sizes))))


def _parts(levels: Array, share: float, t: Array, decay: Array, slope: Array) -> Array:
    """Return what to integrate over log t for E [p xi^2 / (v + eps)]^k, p being `share` times the level of a point.

    That is E xi^(2k) t^k / (k - 1)! (p / (1 + 2 p t))^k times the integrand of `quadratic_form_law`, with p in place of
    the mean share. As all shares sum to one, the others are less by the factor (1 - p) / (1 - share): to first order in
    their logarithms.

    Parameters
    ----------
    t, decay
        In units of 1 / E v, and the integrand's logarithm there; shape (nodes,).
    slope
        Minus the derivative of the logarithm of the others' factors for that of their sizes: sum_i lambda_i t / (1 +
        2 lambda_i t).

    Returns
    -------
    Shape (2, levels, nodes), k = 1 and 2.
    """
    own = np.minimum(share * levels, 1.0)[:, None]
    left = own * t / (1 + 2 * own * t)
    less = (own - share) / max(1 - share, 1e-9)
    with np.errstate(under="ignore"):
        alone = np.sqrt((1 + 2 * share * t) / (1 + 2 * own * t)) * np.exp(decay + slope * less)
        return np.stack([left * alone, 3 * left**2 * alone])


def _plain(leading: Array, rest: float, alike: float) -> tuple[float, float]:
    """Return the mean square of all pairs and the mean product of all triples, given modes of sum one.

    The rest are equal ones: `alike` is the sum of their squares where they themselves sum to one.
    """
    return float(np.sum(leading**2)) + rest**2 * alike, float(np.sum(leading**3)) + rest**3 * alike**2


def _with_strays(plain: tuple[float, float], strayed: tuple[float, float]) -> tuple[float, float]:
    """Return the same of a single draw, whose entries stray.

    A deviation of entries by s adds s to the mean square of all pairs, and by its third moment t 3 s p + t to that of
    the triple products, p being the mean square without.
    """
    variance, third = strayed
    return plain[0] + variance, plain[1] + 3 * variance * plain[0] + third


def _strayed(moments: tuple[float, float], plain: tuple[float, float]) -> tuple[float, float]:
    """Return what such sums say of the entries' deviations: the reverse of `_with_strays`."""
    variance = max(moments[0] - plain[0], 0.0)
    return variance, max(moments[1] - 3 * variance * plain[0] - plain[1], 0.0)


def _apart(leading: Array, rest: float, live: float, moments: tuple[float, float], skew: float) -> float:
    """Return by how much the sizes of leading modes differ from draw to draw, relative to their mean.

    What the sums of squares and of cubes have more than the modes and the rest at its mean size is due to that, a
    relative variance x, and to the rest's own spread c = c_0 - b x with its `skew`; the two sums decide.
    """
    if rest <= 0.0:
        return 0.0
    square, cube = float(np.sum(leading**2)), float(np.sum(leading**3))
    skew, unit = min(max(skew, 1.0), 1.5), rest**3 / live**2
    c, b = live * (moments[0] - square) / rest**2 - 1.0, live * square / rest**2
    first = skew * unit * b**2
    second = 3 * cube - 3 * unit * b - 2 * skew * unit * c * b
    third = cube + unit * (1 + 3 * c + skew * c**2) - moments[1]
    most = min(max(c, 0.0) / b, 1.0)
    found = [x for x in _roots(first, second, third) if 0.0 <= x <= most]
    return math.sqrt(min(found, default=0.0))


def _roots(first: float, second: float, third: float) -> tuple[float, ...]:
    """Return the real roots of a quadratic polynomial, given its coefficients from the highest power on."""
    under = second * second - 4 * first * third
    if under < 0.0:
        return ()
    larger = -(second + math.copysign(math.sqrt(under), second)) / 2
    return (larger / first, third / larger) if larger else (0.0,)


def _number(alike: float, dimensions: float) -> float:
    """Return how many equal modes have the given mean square of all pairs, of so many at most."""
    return min(1 / max(alike, 1e-9), dimensions)


def _levels(rest: float, live: float, moments: tuple[float, float]) -> tuple[Array, Array]:
    """Return how many eigenvalues there are of a few sizes, and these sizes.

    Parameters
    ----------
    rest, moments
        Sums of the eigenvalues, of their squares and of their cubes.
    live
        How many there would be if they were equal ones.
    """
    if rest <= 0:
        return np.zeros(3), np.zeros(3)
    c = max(live * moments[0] / rest**2 - 1.0, 1e-9)
    skew = (live**2 * moments[1] / rest**3 - 1.0 - 3.0 * c) / c**2
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
