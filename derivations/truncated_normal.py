"""Normal law cut at a number of its own deviations: what truncation takes from the variance."""

import sympy as sp

from varprop.derivations.gaussian import density, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_limit = sp.Symbol("limit", positive=True)
_pdf = density(_limit, sp.Integer(1))
_MASS = sp.erf(_limit / sp.sqrt(2))  # 2 Phi(limit) - 1
_VARIANCE = 1 - 2 * _limit * _pdf / _MASS

DERIVATION = Derivation(
    "truncated_normal",
    "Truncated normal law",
    ("a standard normal variable, drawn anew until it lies within [-limit, limit]",),
    (
        step(
            "mass",
            "Mass that is kept.",
            "definition of erf: 2 Phi(limit) - 1",
            sp.Integral(density(z, sp.Integer(1)), (z, -_limit, _limit)),
            _MASS,
        ),
        step(
            "parts",
            "Second moment inside.",
            "z pdf(z) is minus the derivative of pdf: integrate by parts",
            sp.Integral(z**2 * density(z, sp.Integer(1)), (z, -_limit, _limit)),
            _MASS - 2 * _limit * _pdf,
        ),
        step(
            "variance",
            "Variance after truncation, 1 - 2 limit pdf(limit) / (2 Phi(limit) - 1).",
            "divide by the mass; the mean is 0 by symmetry",
            sp.Integral(z**2 * density(z, sp.Integer(1)), (z, -_limit, _limit)) / _MASS,
            _VARIANCE,
        ),
    ),
    {
        "variance": Result((_limit,), _VARIANCE, "variance after truncation at +-limit deviations"),
        "deviation": Result((_limit,), sp.sqrt(_VARIANCE), "deviation after truncation (0.8796... at limit 2)"),
    },
    (cite("johnson1994", "chapter 13 (truncated normal)"),),
)
