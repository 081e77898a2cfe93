"""Rectifier phi(z) = max(z, 0)."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    CORRELATION,
    backward_step,
    c,
    derivative_step,
    forward_step,
    function_results,
    mean_step,
    moment_results,
    price_step,
    q,
    q1,
    q2,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, step

VALUE = sp.Piecewise((z, z > 0), (0, True))
DERIVATIVE = sp.Piecewise((1, z > 0), (0, True))
HALF = sp.Rational(1, 2)

_t = sp.Symbol("t", real=True)
_angle = sp.acos(c)
BOTH_POSITIVE = (sp.pi - _angle) / (2 * sp.pi)
"""P(z1 > 0, z2 > 0), the arc-cosine kernel of degree 0 (halved)."""
ARC_COSINE = (sp.sqrt(1 - c**2) + c * (sp.pi - _angle)) / (2 * sp.pi)
"""E[max(x1, 0) max(x2, 0)] for unit variances, the arc-cosine kernel of degree 1 (halved)."""
_DUAL = sp.sqrt(q1 * q2) * ARC_COSINE

ARC_STEPS = (
    step(
        "both_positive",
        "Probability that both pre-activations are positive.",
        r"in polar coordinates the two half planes overlap in a wedge of angle $\pi - \arccos c$",
        sp.Integral(1 / (2 * sp.pi), (_t, _angle - sp.pi / 2, sp.pi / 2)),
        BOTH_POSITIVE,
        domain=CORRELATION,
    ),
    step(
        "arc_cosine",
        "Correlation map of the rectified part, unit variances.",
        r"polar coordinates: the radius gives 2, the angle the integral of $\cos t \cos(t - \arccos c)$ over the"
        " wedge",
        sp.Integral(sp.cos(_t) * sp.cos(_t - _angle) / sp.pi, (_t, _angle - sp.pi / 2, sp.pi / 2)),
        ARC_COSINE,
        domain=CORRELATION,
    ),
)

DERIVATION = Derivation(
    "relu",
    "Rectified linear unit",
    ASSUMPTIONS,
    (
        derivative_step(VALUE, DERIVATIVE),
        mean_step(VALUE, sp.sqrt(q / (2 * sp.pi)), r"$z \exp(-z^2/2q)$ is a derivative"),
        forward_step(VALUE, q / 2, "the integrand is half of an even one"),
        backward_step(DERIVATIVE, HALF, "half of the mass is positive"),
        *ARC_STEPS,
        price_step(_DUAL, BOTH_POSITIVE),
    ),
    function_results(VALUE, DERIVATIVE)
    | moment_results(
        mean=sp.sqrt(q / (2 * sp.pi)),
        second_moment=q / 2,
        derivative_second_moment=HALF,
        dual=_DUAL,
        derivative_dual=BOTH_POSITIVE,
    ),
    (
        cite("he2015", "Eqs. (8) and (10), backward Eq. (14)"),
        cite("cho2009", "section 2, degrees 0 and 1"),
        cite("price1958", "theorem"),
    ),
)
