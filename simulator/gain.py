"""Gains: the factor on the weights that keeps an activation's second moment, or its variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.errors import UserError
from varprop.simulator.generated.moments import CLOSED_FORMS
from varprop.simulator.mean_field import FixedPoint, fixed_points
from varprop.simulator.notebook import gain_html
from varprop.simulator.quadrature import gaussian_mean


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

    def _repr_html_(self) -> str:
        return gain_html(self)

    def with_forms(self, forms: Mapping[str, str]) -> Gain:
        """Return the same with closed forms that somebody found; the numbers are quadrature's and stay."""
        if "second_moment" not in forms:
            return self
        return replace(self, closed_form=dict(forms), method="closed form")


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
    activation.require_moments(q)
    mean, second_moment = float(activation.mean(q)), float(activation.second_moment(q))
    # Not second_moment - mean^2: for a sigmoid at small q nothing would be left of it.
    variance = float(gaussian_mean(lambda z: (activation.value(z) - mean) ** 2, q, activation.kinks))
    if not variance > 0:
        raise UserError("activation", activation.name, f"an activation that varies under N(0, {q:g})")
    forms = CLOSED_FORMS.get(activation.family, {})
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
        fixed_points=fixed_points(activation, factor**2),
    )


def numbers_in_words(activation: ActivationFunction, q: float = 1.0) -> str:
    """Return moments, gain, critical weight variance and correlation map at one variance, as a sentence."""
    found = gain(activation, q)
    slope = found.derivative_second_moment
    half, one = float(activation.dual(q, q, 0.5)), found.second_moment
    critical = f"{1 / slope:.10g}" if slope > 0 else "none"
    return (
        f"by quadrature at q = {q:g}: E[phi] = {found.mean:.10g}, E[phi^2] = {one:.10g}, E[phi'^2] = {slope:.10g}; "
        f"gain 1/sqrt(E[phi^2]) = {found.gain_second_moment:.10g}, critical sigma_w^2 = 1/E[phi'^2] = {critical}; "
        f"correlation map C(c) = E[phi(z1) phi(z2)] / E[phi^2] with C(0) = {found.mean**2 / one:.10g}, "
        f"C(1/2) = {half / one:.10g}, C'(1) = {q * slope / one:.10g}"
    )
