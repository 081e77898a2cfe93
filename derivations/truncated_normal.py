"""Normal law cut at a number of its own deviations: what truncation takes from the variance."""

import sympy as sp

from varprop.derivations.gaussian import density, z
from varprop.derivations.references import cite
from varprop.derivations.special_functions import normal
from varprop.derivations.theorem import Derivation, Result, step

_limit = sp.Symbol("limit", positive=True)
_q, _g, _s = sp.symbols("q g s", positive=True)
_depth, _l = sp.symbols("L l", integer=True, positive=True)
_pdf = density(_limit, sp.Integer(1))
_MASS = sp.erf(_limit / sp.sqrt(2))  # 2 Phi(limit) - 1
_VARIANCE = 1 - 2 * _limit * _pdf / _MASS

DERIVATION = Derivation(
    "truncated_normal",
    "Truncated normal law",
    (r"a standard normal variable, drawn anew until it lies within $[-\ell, \ell]$",),
    (
        step(
            "mass",
            "Mass that is kept.",
            r"definition of erf: $2 \Phi(\ell) - 1$",
            sp.Integral(normal(z, sp.Integer(1)), (z, -_limit, _limit)),
            _MASS,
        ),
        step(
            "parts",
            "Second moment inside.",
            "$z p(z)$ is minus the derivative of the density $p$: integrate by parts",
            sp.Integral(z**2 * normal(z, sp.Integer(1)), (z, -_limit, _limit)),
            _MASS - 2 * _limit * _pdf,
        ),
        step(
            "variance",
            r"Variance after truncation: one less $2\, \ell\, p(\ell) / (2 \Phi(\ell)"
            r" - 1)$.",
            "divide by the mass; the mean is 0 by symmetry",
            sp.Integral(z**2 * normal(z, sp.Integer(1)), (z, -_limit, _limit)) / _MASS,
            _VARIANCE,
        ),
        step(
            "forward",
            "Forward: layers whose deviation was meant before truncation lose this factor each; at limit 2, 24 He"
            " layers"
            " keep 0.2% of the signal.",
            "each layer's second moment is proportional to its weights' variance",
            _q * sp.Product(_VARIANCE, (_l, 1, _depth)),
            _q * _VARIANCE**_depth,
            cases=({_depth: 1}, {_depth: 3}),
        ),
        step(
            "backward",
            "Backward: so does the gradient's second moment.",
            "the gradient's factor is proportional to the weights' variance as well",
            _g * sp.Product(_VARIANCE, (_l, 1, _depth)),
            _g * _VARIANCE**_depth,
            cases=({_depth: 1}, {_depth: 3}),
        ),
        step(
            "correction",
            "Divided by the deviation after truncation, draws have deviation $s$ again: so do the truncated laws"
            " of He, Glorot and LeCun.",
            "the square is proportional to the variance after truncation",
            sp.Integral((_s * z) ** 2 / _VARIANCE * normal(z, sp.Integer(1)), (z, -_limit, _limit)) / _MASS,
            _s**2,
        ),
    ),
    {
        "signal": Result((_q, _limit, _depth), _q * _VARIANCE**_depth, "second moment behind L uncorrected layers"),
        "variance": Result((_limit,), _VARIANCE, "variance after truncation at +-limit deviations"),
        "deviation": Result((_limit,), sp.sqrt(_VARIANCE), "deviation after truncation (0.8796... at limit 2)"),
    },
    (cite("johnson1994", "chapter 13 (truncated normal)"),),
)
