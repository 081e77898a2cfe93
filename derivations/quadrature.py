"""Steps for activations without closed forms: the quadrature that is run, with its error bound."""

from __future__ import annotations

import sympy as sp

from varprop.derivations.gaussian import q, z
from varprop.derivations.special_functions import normal
from varprop.derivations.theorem import Step, bound

centre = sp.Symbol("c", real=True)
half = sp.Symbol("r", positive=True)
"""A panel is [centre - half, centre + half]."""

_DOMAIN = {half: (0.3, 0.5), centre: (-2.0, 2.0), q: (0.5, 3.0)}

ASSUMPTION = (
    "the second moments have no closed form: the line is cut into panels, each with a Gauss-Legendre rule (12"
    r" points a panel of length $\min(\sqrt{q}, 1)$ in exported code; the engine's panels shrink towards 0); both"
    " agree with the integral to $10^{-12}$"
)


def panel_step(name: str, function: sp.Expr, strip: sp.Expr, size: sp.Expr) -> Step:
    """Return the bound on the error of a Gauss-Legendre rule for one panel of E[function(z)].

    Parameters
    ----------
    strip
        Height d such that the function is analytic for |Im z| <= d.
    size
        Bound on its modulus there, over the panel's ellipse.
    """
    integrand, largest, rho = sp.Function("F"), sp.Symbol("M", positive=True), sp.Symbol("rho", positive=True)
    inner, outer = sp.Rational(8, 9), sp.Rational(5, 9)
    offset = half * sp.sqrt(sp.Rational(3, 5))
    rule = half * (outer * integrand(centre - offset) + inner * integrand(centre) + outer * integrand(centre + offset))
    growth = size * sp.exp(strip**2 / (2 * q)) / sp.sqrt(2 * sp.pi * q)
    return bound(
        name,
        "Error on a panel of half-length $r$ about $c$, here of 3 points: the integrand is analytic up to"
        rf" $|\operatorname{{Im}} z| = d = {sp.latex(strip)}$, on an ellipse whose half-axes sum to $\rho r$ with"
        r" $\rho = d/r + \sqrt{1 + (d/r)^2}$, and is bounded there by some $M$ (the density grows by $\exp(d^2/2q)$)."
        r" $N$ points leave at most $(64/15) M r \rho^{-2N+2} / (1 - \rho^{-2})$, so each further point gains"
        r" $\rho^2$.",
        "Chebyshev expansion in the ellipse: an $N$-point rule is exact up to degree $2N - 1$",
        sp.Abs(sp.Integral(integrand(z), (z, centre - half, centre + half)) - rule),
        sp.Rational(64, 15) * half * largest / ((1 - rho**-2) * rho**4),
        domain=_DOMAIN,
        where={
            integrand: sp.Lambda(z, function * normal(z, q)),
            largest: growth,
            rho: strip / half + sp.sqrt(1 + (strip / half) ** 2),
        },
    )
