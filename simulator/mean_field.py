r"""Mean field of a wide plain net: where variances and correlations settle, how fast, and how gradients go meanwhile.

A layer takes the variance q and the correlation c of two inputs of equal variance to

    V(q) = sigma_w^2 E[phi(z)^2] + sigma_b^2,
    C(c) = (sigma_w^2 E[phi(z1) phi(z2)] + sigma_b^2) / q*,    z1, z2 of variance q* and correlation c

(Poole et al. 2016 [1]_, eqs. 3 and 5). The gradient's second moment goes with chi = sigma_w^2 E[phi'(z)^2], the slope
of C at c = 1 (eq. 6): below 1 inputs merge and gradients vanish, above 1 they part and gradients explode. Deviations
from the fixed points q* and c* fall as exp(-l / xi) (Schoenholz et al. 2017 [2]_, eqs. 7 to 9):

    1 / xi_q = -log |V'(q*)|,    1 / xi_c = -log(sigma_w^2 E[phi'(z1) phi'(z2)]) at c*.

Where q vanishes or grows without end, phi acts as the two half-lines that it is near zero or far away; for half-lines
of different slopes C has no fixed point but c = 1, approached as 1 / l^2 (chi / V' = 1), which has no depth scale.

References
----------
.. [1] B. Poole et al., "Exponential expressivity in deep neural networks through transient chaos", NeurIPS 2016
   (arXiv 1606.05340).
.. [2] S. S. Schoenholz et al., "Deep information propagation", ICLR 2017 (arXiv 1611.01232).
.. [3] S. Hayou, A. Doucet, J. Rousseau, "On the impact of the activation function on deep neural networks training",
   ICML 2019 (arXiv 1902.06853), propositions 1 and 2: half-lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.errors import UserError
from varprop.simulator.interpolation import UniformTable
from varprop.simulator.theory.duals import ORDER, hermite_expansion

Array = NDArray[np.float64]

TRAINABLE = 6.0
"""Depth scales over which Schoenholz 2017 (section 5) found nets trainable."""

EDGE = 1e-4
"""Distance of chi from 1 called the edge of chaos: depth scales beyond 10,000 layers."""

LARGEST = 1e6
"""Of sigma_w^2 and sigma_b^2."""

_STEP = 1 / 32  # of log q between tabulated moments; what is read between them is good to 2e-9
_LEAST = 5  # points of a table
_REACH = 40.0  # of log q
_START = 0.0  # log q of the input
_TOUCHING = 1e-12  # V(q) / q - 1 that only rounding keeps from 0
_TINY = 1e-300  # a log's argument where phi' is zero almost everywhere
_HALVINGS = 48
_SCAN = 241  # weight variances from 1 / LARGEST to LARGEST among which chi = 1 is looked for


@dataclass(frozen=True)
class FixedPoint:
    """A variance that a layer gives back.

    Attributes
    ----------
    q
        The variance q* = sigma_w^2 E[phi(z)^2] + sigma_b^2, z ~ N(0, q*).
    chi
        sigma_w^2 E[phi'(z)^2] there: the factor of the gradient's second moment.
    slope
        Slope of the variance map there; the fixed point is stable if it is between -1 and 1.
    """

    q: float
    chi: float
    slope: float


@dataclass(frozen=True)
class Phase:
    """Where a wide plain net settles; None where there is no such number.

    Attributes
    ----------
    q_star
        Variance reached from q = 1: None if it grows without end, circles, or if every variance is kept.
    c_star
        Correlation that two inputs of positive correlation end with: None if each keeps its own.
    chi
        Factor of the gradient's second moment at q_star, or in the limit where q vanishes or grows without end: None
        if it is infinite there, as for x^2.
    xi_q, xi_c
        Depth scales of variances and correlations, in layers: None where the approach is not exponential.
    critical_sigma_w2
        Smallest weight variance at which chi passes 1 for the same sigma_b^2.
    trainable_depth
        6 xi_c.
    verdict
        The phase in words.
    fixed_points
        All of the variance map with q from 4e-18 to 2e17, in order.
    """

    activation: str
    sigma_w2: float
    sigma_b2: float
    q_star: float | None
    c_star: float | None
    chi: float | None
    xi_q: float | None
    xi_c: float | None
    critical_sigma_w2: float | None
    trainable_depth: float | None
    verdict: str
    fixed_points: tuple[FixedPoint, ...]


@dataclass(frozen=True)
class PhaseDiagram:
    """`Phase` over a grid, arrays of shape (sigma_w2, sigma_b2).

    `q_star` is inf where it grows without end and nan where every variance is kept or none is reached; depth scales are
    inf where the approach is not exponential, nan where there is nothing to approach. `critical_sigma_w2` has the shape
    of `sigma_b2`, nan where chi never passes 1.
    """

    activation: str
    sigma_w2: Array
    sigma_b2: Array
    q_star: Array
    c_star: Array
    chi: Array
    xi_q: Array
    xi_c: Array
    critical_sigma_w2: Array


def phase(function: ActivationFunction, sigma_w2: float, sigma_b2: float = 0.0) -> Phase:
    """Return where a wide plain net with this activation settles.

    Parameters
    ----------
    function
        The activation phi.
    sigma_w2
        Weight variance times fan-in, above 0.
    sigma_b2
        Bias variance, at least 0.

    Raises
    ------
    UserError
        A variance out of range.

    Examples
    --------
    >>> from varprop.simulator.activations import activation
    >>> found = phase(activation("tanh"), 2.5, 0.05)
    >>> print(f"{found.q_star:.6f} {found.c_star:.6f} {found.critical_sigma_w2:.6f}")
    1.063958 0.446804 1.760955
    """
    grid = _diagram(function, [sigma_w2], [sigma_b2], function.dual, function.derivative_dual)
    q, c, chi, xi_q, xi_c = (float(a[0, 0]) for a in (grid.q_star, grid.c_star, grid.chi, grid.xi_q, grid.xi_c))
    return Phase(
        function.name,
        float(sigma_w2),
        float(sigma_b2),
        _finite(q),
        _finite(c),
        _finite(chi),
        _finite(xi_q),
        _finite(xi_c),
        _finite(float(grid.critical_sigma_w2[0])),
        _finite(TRAINABLE * xi_c),
        verdict(q, chi),
        fixed_points(function, sigma_w2, sigma_b2),
    )


def phase_diagram(function: ActivationFunction, sigma_w2: ArrayLike, sigma_b2: ArrayLike) -> PhaseDiagram:
    """Return `phase` over a grid of weight and bias variances, each an array of one dimension.

    Correlations of activations without a closed form come from Hermite series: they agree with `phase`
    within 1e-4 (`xi_c`: .5%), for kinked activations within 1e-3 and, where `xi_c` is below 50 layers, 5%.
    """
    closed = function.closed_dual
    return _diagram(
        function, sigma_w2, sigma_b2, function.dual if closed else None, function.derivative_dual if closed else None
    )


def diagram_rows(diagram: PhaseDiagram) -> list[dict[str, float | str | None]]:
    """Return a phase diagram as a row a point; None where a number is not finite."""
    rows: list[dict[str, float | str | None]] = []
    for i, w in enumerate(diagram.sigma_w2):
        for j, b in enumerate(diagram.sigma_b2):
            row: dict[str, float | str | None] = {"sigma_w2": float(w), "sigma_b2": float(b)}
            for name in ("q_star", "c_star", "chi", "xi_q", "xi_c"):
                row[name] = _finite(float(getattr(diagram, name)[i, j]))
            row["critical_sigma_w2"] = _finite(float(diagram.critical_sigma_w2[j]))
            rows.append({**row, "verdict": verdict(float(diagram.q_star[i, j]), float(diagram.chi[i, j]))})
    return rows


def fixed_points(function: ActivationFunction, sigma_w2: float, sigma_b2: float = 0.0) -> tuple[FixedPoint, ...]:
    """Return the fixed points of the variance map with q from 4e-18 to 2e17, in order.

    A positively homogeneous activation without bias keeps all variances or none, and gets none here.

    Examples
    --------
    >>> from varprop.simulator.activations import activation
    >>> [point] = fixed_points(activation("tanh"), 25 / 9)
    >>> round(point.q, 6)
    1.17848
    """
    if sigma_w2 == 0 or (function.homogeneous and sigma_b2 == 0):
        return ()
    moments = _moments(function)
    excess = moments.excess(sigma_w2) - sigma_b2
    (apart,) = np.nonzero(excess)  # elsewhere the map touches the diagonal
    (crossings,) = np.nonzero((excess[apart][:-1] < 0) != (excess[apart][1:] < 0))
    left, right = moments.log_q[apart[crossings]], moments.log_q[apart[crossings + 1]]
    u = _bisected(moments, sigma_w2, sigma_b2, left, right)
    chi, slope = sigma_w2 * moments.derivative(u), sigma_w2 * moments.slope(u)
    return tuple(FixedPoint(*map(float, point)) for point in zip(np.exp(u), chi, slope, strict=True))


def verdict(q_star: float, chi: float) -> str:
    """Name a phase in words; `q_star` as in `PhaseDiagram`."""
    side = "edge of chaos" if abs(chi - 1) < EDGE else "ordered" if chi < 1 else "chaotic"
    fate = {
        "edge of chaos": "gradients keep their size",
        "ordered": "inputs merge and gradients vanish",
        "chaotic": "inputs part and gradients explode",
    }[side]
    if q_star == 0:
        return f"{side}: the signal vanishes, gradients go as chi^l"
    if q_star == math.inf:
        return f"diverges: the signal grows without end, gradients go as chi^l ({side})"
    if math.isnan(q_star):
        return f"{side}: every variance is kept" if side == "edge of chaos" else "circles: no variance is reached"
    return f"{side}: {fate}"


@dataclass(frozen=True)
class _Moments:
    """Moments over a grid of log q, and tables between; the grid ends where they leave float range."""

    log_q: Array
    values: Array
    log_second: UniformTable
    log_derivative: UniformTable

    def excess(self, sigma_w2: float) -> Array:
        """Q - sigma_w^2 E phi^2 over the grid: a fixed point where it equals sigma_b^2."""
        q = np.exp(self.log_q)
        excess = q - sigma_w2 * self.values
        return np.where(np.abs(excess) < _TOUCHING * q, 0.0, excess)

    def second(self, log_q: ArrayLike) -> Array:
        return np.asarray(np.exp(self.log_second(log_q)))

    def derivative(self, log_q: ArrayLike) -> Array:
        return np.asarray(np.exp(self.log_derivative(log_q)))

    def slope(self, log_q: ArrayLike) -> Array:
        """D E phi^2 / d q."""
        return np.asarray(self.second(log_q) * self.log_second(log_q, slope=True) / np.exp(log_q))


@lru_cache(maxsize=64)
def _moments(function: ActivationFunction) -> _Moments:
    log_q = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    q = np.exp(log_q)
    second, derivative = function.second_moment(q), function.derivative_second_moment(q)
    usable = np.isfinite(second) & np.isfinite(derivative) & (second > 0)
    start = int(np.searchsorted(log_q, _START))
    if not usable[start]:
        raise UserError("activation", function.name, "an activation that varies, with finite moments, under N(0, 1)")
    bad = np.flatnonzero(~usable)
    part = slice(int(max(bad[bad < start], default=-1)) + 1, int(min(bad[bad > start], default=len(q))))
    log_q, second, derivative = log_q[part], second[part], derivative[part]
    if len(log_q) < _LEAST:
        raise UserError("activation", function.name, "an activation whose moments stay in float range around N(0, 1)")
    logs = np.log(second), np.log(np.maximum(derivative, _TINY))
    return _Moments(log_q, second, *(UniformTable(float(log_q[0]), _STEP, values) for values in logs))


def _diagram(
    function: ActivationFunction,
    sigma_w2: ArrayLike,
    sigma_b2: ArrayLike,
    dual: Callable[[Array, Array, Array], Array] | None,
    derivative_dual: Callable[[Array, Array, Array], Array] | None,
) -> PhaseDiagram:
    if function.homogeneous and not any(_near(function)):
        raise UserError("activation", function.name, "an activation that varies")
    w, b = _checked("sigma_w2", sigma_w2), _checked("sigma_b2", sigma_b2)
    if not np.all(w > 0):
        raise UserError("sigma_w2", float(w.min()), "a weight variance above 0")
    q_star, chi, slope = _settled(function, w, np.broadcast_to(b, (len(w), len(b))))
    grid_w, grid_b = np.broadcast_arrays(w[:, None], b[None, :])
    with np.errstate(divide="ignore"):
        xi_q = np.where(np.isnan(slope), np.nan, 1 / np.abs(np.log(np.minimum(np.abs(slope), 1.0))))
    c_star, xi_c = np.full_like(chi, np.nan), np.full_like(chi, np.nan)
    inside = (q_star > 0) & np.isfinite(q_star)
    if inside.any():
        c_star[inside], xi_c[inside] = _correlated(
            function, grid_w[inside], grid_b[inside], q_star[inside], chi[inside], dual, derivative_dual
        )
    # Near zero and far away phi is two half-lines: correlations tend to 1, or stay where they are on a straight line.
    for limit, (left, right) in ((0.0, _near(function)), (math.inf, _far(function)), (math.nan, _near(function))):
        here = np.isnan(q_star) & function.homogeneous if math.isnan(limit) else q_star == limit
        # A bias that adds to a variance kept otherwise has correlation 1, and outweighs the signal in the end.
        merge = here & ((left != right) | ((chi == 1) & (grid_b > 0)))
        c_star[merge], xi_c[merge] = 1.0, np.inf
    return PhaseDiagram(function.name, w, b, q_star, c_star, chi, xi_q, xi_c, _critical(function, b))


def _checked(what: str, values: ArrayLike) -> Array:
    found = np.atleast_1d(np.asarray(values, dtype=np.float64))
    for value in found:
        if not 0 <= value <= LARGEST:
            raise UserError(what, value, f"a variance from 0 to {LARGEST:g}")
    return found


def _near(function: ActivationFunction) -> tuple[float, float]:
    return function.germ_zero[1], function.germ_zero[2]


def _far(function: ActivationFunction) -> tuple[float, float]:
    return function.germ_infinity[0][0], function.germ_infinity[1][0]


def _half_lines(slopes: tuple[float, float]) -> float:
    """E phi'^2 of two half-lines, and E phi^2 / q."""
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2


def _settled(function: ActivationFunction, w: Array, b: Array) -> tuple[Array, Array, Array]:
    """Variance reached from q = 1, chi and V' there; b has shape (w, any)."""
    if function.homogeneous:
        factor = np.broadcast_to(w[:, None] * _half_lines(_near(function)), b.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(factor < 1, b / (1 - factor), np.where((factor == 1) & (b == 0), np.nan, np.inf))
        return q, factor, np.where(factor < 1, factor, np.nan)
    moments = _moments(function)
    start = int(np.searchsorted(moments.log_q, _START))
    upper, rises = np.empty(b.shape, np.intp), np.empty(b.shape, np.bool_)
    for row, sigma_w2 in enumerate(w):
        excess = moments.excess(float(sigma_w2))
        # The first crossing above the start, where excess climbs to b, or the first below, where it falls under b.
        above = start + np.searchsorted(np.maximum.accumulate(excess[start:]), b[row], side="right")
        below = start - np.searchsorted(-np.minimum.accumulate(excess[start::-1]), -b[row], side="right")
        rises[row] = excess[start] < b[row]
        upper[row] = np.where(rises[row], above, below + 1)
    some = (upper > 0) & (upper < len(moments.log_q))
    w = np.broadcast_to(w[:, None], b.shape)
    u = np.where(rises, np.inf, -np.inf)
    u[some] = _bisected(moments, w[some], b[some], moments.log_q[upper[some] - 1], moments.log_q[upper[some]])
    q, chi, slope = np.exp(u), np.empty_like(u), np.full_like(u, np.nan)
    chi[some], slope[some] = w[some] * moments.derivative(u[some]), w[some] * moments.slope(u[some])
    chi[u == np.inf] = w[u == np.inf] * _half_lines(_far(function))
    chi[u == -np.inf] = slope[u == -np.inf] = w[u == -np.inf] * _half_lines(_near(function))
    circling = slope < -1
    q[circling], slope[circling] = np.nan, np.nan
    return q, chi, slope


def _bisected(moments: _Moments, sigma_w2: float | Array, sigma_b2: float | Array, lower: Array, upper: Array) -> Array:
    """Log of a fixed point between two logs, on either side of which V(q) - q differs in sign."""

    def rises(u: Array) -> NDArray[np.bool_]:
        return np.asarray(sigma_w2 * moments.second(u) + sigma_b2 > np.exp(u))

    first = rises(lower)
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        same = rises(middle) == first
        lower, upper = np.where(same, middle, lower), np.where(same, upper, middle)
    return np.asarray((lower + upper) / 2)


def _correlated(
    function: ActivationFunction,
    w: Array,
    b: Array,
    q: Array,
    chi: Array,
    dual: Callable[[Array, Array, Array], Array] | None,
    derivative_dual: Callable[[Array, Array, Array], Array] | None,
) -> tuple[Array, Array]:
    """c* and xi_c at finite fixed points: 1 if chi <= 1; else the root in [0, 1), C being convex."""
    if dual is None or derivative_dual is None:
        products, slopes = _series(function, q)
    else:
        products = lambda c: dual(q, q, c)  # noqa: E731
        slopes = lambda c: derivative_dual(q, q, c)  # noqa: E731
    c = np.ones_like(q)
    if np.any(chi > 1):
        lower, upper = np.zeros_like(q), np.ones_like(q)
        for _ in range(_HALVINGS):
            middle = (lower + upper) / 2
            climbs = w * products(middle) + b > q * middle
            lower, upper = np.where(climbs, middle, lower), np.where(climbs, upper, middle)
        c = np.where(chi > 1, lower, 1.0)  # exactly 0 for odd functions without a bias, where nothing climbs
    rate = np.where(chi > 1, w * slopes(c), chi)
    with np.errstate(divide="ignore"):
        return c, 1 / np.abs(np.log(np.clip(rate, 0.0, 1.0)))


def _series(function: ActivationFunction, q: Array) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """E phi phi and E phi' phi' from Hermite series; both are exact at c = 1.

    The tail's value and slope at c = 1 are known. It is shared out between the next power of c and the tail that kinks
    have, whose squared coefficients fall as k^(-5/2).
    """
    coefficients, moments = hermite_expansion(function, np.sqrt(q))
    squares, degree = coefficients[0].T ** 2, np.arange(ORDER + 1)
    tail = np.maximum(moments[0] - squares.sum(axis=0), 0.0)
    slope = q * moments[1] - degree @ squares
    kinks, steepest = _kink_tail()
    least = ORDER + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.nan_to_num(np.clip((slope / tail - least) / (steepest - least), 0.0, 1.0))

    def products(c: Array) -> Array:
        last = share * kinks(np.sqrt(1 - c)) + (1 - share) * c**least
        return np.asarray(np.polynomial.polynomial.polyval(c, squares, tensor=False) + tail * last)

    def slopes(c: Array) -> Array:
        inner = np.polynomial.polynomial.polyval(c, (degree[:, None] * squares)[1:], tensor=False)
        root = np.sqrt(np.maximum(1 - c, 1e-12))
        last = -share * kinks(root, slope=True) / (2 * root) + (1 - share) * least * c**ORDER
        return np.asarray((inner + tail * last) / q)

    return products, slopes


@lru_cache(maxsize=1)
def _kink_tail() -> tuple[UniformTable, float]:
    """Sum of k^(-5/2) c^k over k > ORDER, over its value at c = 1, as a function of sqrt(1 - c); slope in c there."""
    edges = np.unique(np.round(np.geomspace(ORDER + 1, 2.0**24, 600)))
    zeta = scipy.special.zeta
    share = np.append(-np.diff(zeta(2.5, edges)), zeta(2.5, edges[-1]))
    power = np.append(-np.diff(zeta(1.5, edges)), zeta(1.5, edges[-1])) / share
    root = np.linspace(0, 1, 513)
    with np.errstate(divide="ignore"):
        values = np.exp(np.log1p(-(root**2))[:, None] * power) @ share
    return UniformTable(0.0, float(root[1]), values / values[0]), float(power @ share) / float(values[0])


def _critical(function: ActivationFunction, b: Array) -> Array:
    """Smallest weight variance at which chi passes 1, for each bias variance."""
    if function.homogeneous:
        return np.full(len(b), 1 / _half_lines(_near(function)))
    scan = np.geomspace(1 / LARGEST, LARGEST, _SCAN)
    ordered = _settled(function, scan, np.broadcast_to(b, (_SCAN, len(b))))[1] < 1
    passes = ordered[:-1] & ~ordered[1:]
    first = np.argmax(passes, axis=0)
    lower, upper = np.log(scan[first]), np.log(scan[first + 1])
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        below = _settled(function, np.exp(middle), b[:, None])[1][:, 0] < 1
        lower, upper = np.where(below, middle, lower), np.where(below, upper, middle)
    return np.where(passes.any(axis=0), np.exp((lower + upper) / 2), np.nan)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
