"""How far the second moments of single points stray in one draw, and what becomes of that behind an activation.

Layers of n channels give a point's second moment q, its level, a factor that strays from one by (E x^4 / (E x^2)^2 - 1)
/ n. Under ReLU and a normalisation the next layer keeps it: of the centred signal phi - M, M the mean over the batch,

    Q(q) = E phi^2 - 2 M E phi + M^2    at a point of level q

has the logarithmic slope one at q = 1, and it is convex, so that levels walk and in the end run away. Batch means take
from E phi(z) E phi(z') only what all points have in common: what is left is (m - M)(m' - M) for m = E phi at the levels
of the two points, one direction of the data that all channels share, `lead` of their whole variance.

Levels are taken as log-normal: noise multiplies them, layer by layer.

At a sum levels of its terms meet. A shortcut's level is one that the branch has seen through its windows, with all that
came back to the point: the terms' covariance says how the sum's level goes with each of theirs.

On the way back E phi'^2 depends on q, so that the gradient goes with a power of the level, layer upon layer: it leans.
Under a window a level is the mean over its taps. So on maps the gradient at a point goes with powers of the levels at
other points, too, by offset: a window spreads them over pairs of its taps, and their sum stays. What neighbours' levels
have in common is much where many windows were averaged over, and does not average out; with correlations c(u) of levels
the power of the point's own that says all of that is sum_u l(u) c(u).
The level at a layer's output is a mean over its own channels, so that of q^l a channel's own square x_c^2 has the part
l q^(l - 1) x_c^2 / n; the next slopes, which look at the level through single weights, add twice their `coherence` to
l / n. That square goes with the channel's own slopes, and E phi'^2 (phi - M)^2 is more than E phi'^2 Var phi; at a
point of correlation r with it, r of what is odd in the channel is left, and r^2 of the rest. Of two channels
coherence meets both slopes, E[y phi' (phi - M)]^2, against what the layer's opposed gradients do, (E phi')^4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS /= _WEIGHTS.sum()
_NONE = 1e-9  # power of levels that is but rounding: what projections do to one that is, is no multiple of it
LEAST = 1e-4  # variance that stands for none: slopes are differences between levels


@dataclass(frozen=True)
class Levels:
    """What an activation makes of points whose levels stray.

    Attributes
    ----------
    gain
        Relative variance of the levels of the centred output over that of the input.
    noise
        Relative variance of a single channel's squared deviation from the mean: n channels stray by 1 / n of it.
    lead
        Share of the variance in the direction of E phi at the points.
    strayed
        Variance of the input's levels.
    along
        E[u^k phi' (phi - M)], k = 1 and 3 and u of variance one, over the root of E phi'^2 Var phi.
    slopes, gates, tilted
        E phi'^2, E phi'^2 (phi - M)^2 over Var phi, and E[y^2 phi'^2], at each of the levels' `nodes`.
    powers
        E[u^k phi'^2] over E phi'^2, k = 2 and 4, for u of variance one.
    odd
        E[u phi'^2] E[u (phi - M)^2] over E phi'^2 Var phi.
    dimensions
        Of the sphere that points are on.
    """

    gain: float = 1.0
    noise: float = 2.0
    lead: float = 0.0
    strayed: float = 0.0
    along: tuple[float, float] = (0.0, 0.0)
    slopes: Array | None = None
    gates: Array | None = None
    tilted: Array | None = None
    powers: tuple[float, float] = (1.0, 3.0)
    odd: float = 0.0
    dimensions: float = np.inf

    def known(self, share: float) -> float:
        """Return B of `coherence` at one point, behind a normalisation over points of which one has this share."""
        second, fourth = self.powers
        along = second - 2.0 * share * (second + fourth) + share * (1.0 + 3.0 * second / (1.0 + 2.0 / self.dimensions))
        # Of two points nothing is left.
        return (along / max(1.0 - share * (1.0 + second), share) - 1.0) / 2.0

    def coherent(self, share: float) -> float:
        """Return what is left of the coherence of two channels' gradients, before such a normalisation."""
        first, third = self.along
        return (first - share * (first + third)) ** 2 + share * first**2

    @property
    def bent(self) -> float:
        """Power of the input's levels that those of the output go with."""
        spread = max(self.strayed, LEAST)
        return power(spread, self.gain * spread)

    def passed(self, leaning: float, own: float, odd: float, width: float) -> tuple[float, float, float, float]:
        """Return what becomes of a gradient that goes with the levels.

        Parameters
        ----------
        leaning
            Power of a point's level that the gradient's second moment goes with, at the output.
        own
            Power of a channel's own square, of n in the level: what the levels around have of it at the point, r^2 of
            each, and twice the coherence of the channel's gradient with its value.
        odd
            What `own` is more for what slopes and squares are odd in: of that, levels around have r at the point.
        width
            Number of channels, whose squares are what a level is the mean of.

        Returns
        -------
        factor
            Mean product with the squared slopes, over the product of means, as both go with the levels.
        known
            The same as the gradient knows its own channel.
        leaning
            At the input.
        along
            Mean product with (y phi')^2, over the product of means.
        """
        if self.slopes is None or self.gates is None or self.tilted is None or not self.slopes.all():
            return 1.0, 1.0, leaning, 1.0
        own, bent = own / width, self.bent
        leaning *= bent
        levels, weights = nodes(self.strayed)
        before = weights * levels**leaning
        behind = before * self.slopes
        squares = float(before * levels**-bent @ self.gates)
        factor = float(behind.sum()) / float(before.sum()) / float(weights @ self.slopes)
        known = 1.0 + own * (squares / float(behind.sum()) - 1.0) + odd * self.odd / width
        along = float(before @ self.tilted) / float(before.sum()) / float(weights @ self.tilted)
        return factor, known, leaning + _power(levels, self.slopes, behind), along


UNSTRAYED = Levels()


def nodes(variance: float) -> tuple[Array, Array]:
    """Return levels of mean one and this variance, and their weights."""
    return log_normal(np.array(max(variance, LEAST)))


def log_normal(variance: Array) -> tuple[Array, Array]:
    """Return points of log-normal laws of mean one, shape (*variance.shape, points), and their weights, (points,)."""
    log = np.log1p(variance)[..., None]
    return np.exp(np.sqrt(log) * _NODES - log / 2), _WEIGHTS


def power(before: float, behind: float) -> float:
    """Return the power of levels that what is left of them goes with, given both variances."""
    return float(np.sqrt(np.log1p(behind) / np.log1p(before))) if before > 0.0 else 1.0


def projected(leaning: float, strayed: float, share: float, parts: Array) -> float:
    """Return the power of levels that a gradient goes with behind the two projections of a normalisation.

    Of the square G at a point that has the part t of a channel's variance and `share` of all points, G E[(1 - share -
    t)^2] + share (E G + q E[G q]) is left at the level q. `parts` are E t and E t^2 at the nodes.
    """
    if abs(leaning) < _NONE or strayed <= 0.0:
        return leaning
    levels, weights = nodes(strayed)
    square, left = levels**leaning, 1.0 - share
    left = square * (left**2 - 2.0 * left * parts[0] + parts[1])
    left += share * (float(weights @ square) + levels * float(weights @ (square * levels)))
    return _power(levels, left, weights * left)


def _power(levels: Array, field: Array, weights: Array) -> float:
    """Return the power of levels that fits a field best."""
    x = np.log(levels)
    x = x - float(weights @ x) / float(weights.sum())
    return float(weights @ (x * np.log(field))) / float(weights @ x**2)


def divided(variance: float, parts: Array) -> float:
    """Return the variance of levels behind a division, given the parts that points have of what they are divided by."""
    whole = float(_WEIGHTS @ parts)
    spread = float(_WEIGHTS @ (parts / whole) ** 2) - 1.0 if whole > 0.0 else 0.0
    return variance / max(variance, LEAST) * spread


def after(
    variance: float,
    dimensions: float,
    moments: Array,
    slopes: Array,
    turned: Array,
    squared: Array,
    odd: Array,
) -> Levels:
    """Return what an activation makes of levels of this variance.

    Parameters
    ----------
    dimensions
        Of the sphere that points u of level one are on.
    moments, slopes
        E phi^k, k = 1 to 4, and E phi'^2 phi^k, k = 0 to 2, at each of the `nodes`.
    turned, squared
        There E[u phi'], E[u phi' phi], E[u^3 phi'] and E[u^3 phi' phi]; E[u^2 phi'^2] and E[u^4 phi'^2].
    odd
        There E[u phi'^2], E[u phi] and E[u phi^2].
    """
    points, weights = nodes(variance)
    m1, m2, m3, m4 = moments
    mean = float(weights @ m1)
    levels = m2 - 2 * mean * m1 + mean**2
    whole = float(weights @ levels)
    if whole <= 0.0:
        return Levels()
    fourth = m4 - 4 * mean * m3 + 6 * mean**2 * m2 - 4 * mean**3 * m1 + mean**4
    spread = float(weights @ levels**2) / whole**2 - 1.0
    noise = float(weights @ (fourth - levels**2)) / whole**2
    lead = float(weights @ (m1 - mean) ** 2) / whole
    gates = (slopes[2] - 2 * mean * slopes[1] + mean**2 * slopes[0]) / whole
    squares = float(weights @ slopes[0])
    along = turned[1::2] @ weights - mean * (turned[::2] @ weights)
    unit = squares * whole or 1.0
    first, third = (along / np.sqrt(unit)).tolist()
    return Levels(
        max(spread, 0.0) / max(variance, LEAST),
        noise,
        lead,
        variance,
        (first, third),
        slopes[0],
        gates,
        points * squared[0],
        (float(weights @ squared[0]) / squares, float(weights @ squared[1]) / squares) if squares else (1.0, 3.0),
        float(weights @ odd[0]) * float(weights @ (odd[2] - 2 * mean * odd[1])) / unit,
        dimensions,
    )
