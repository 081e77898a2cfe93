"""He's initializer: the variance that keeps the second moment through a rectifier."""

import sympy as sp

from varprop.derivations.gaussian import a, density, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_fan = sp.Symbol("fan", integer=True, positive=True)
_q = sp.Symbol("q", positive=True)
_VARIANCE = 2 / ((1 + a**2) * _fan)
_leaky = sp.Piecewise((z, z > 0), (a * z, True))

DERIVATION = Derivation(
    "he",
    "He initialization",
    (
        "weights are independent, with mean 0; every layer is followed by a (leaky) rectifier of slope a below zero",
        "the pre-activation is symmetric about 0",
    ),
    (
        step(
            "activation",
            "A rectifier keeps the share (1 + a^2) / 2 of the second moment.",
            "derived for leaky_relu",
            sp.Integral(_leaky**2 * density(z, _q), (z, -sp.oo, sp.oo)),
            (1 + a**2) / 2 * _q,
        ),
        step(
            "condition",
            "Forward with fan_in, or backward with fan_out: the layer keeps what the rectifier passes.",
            "set the product of the layer's factor and the activation's to one and solve",
            _fan * _VARIANCE * (1 + a**2) / 2,
            sp.Integer(1),
        ),
    ),
    {"variance": Result((_fan, a), _VARIANCE, "weight variance")},
    (cite("he2015", "Eq. (10) forward, Eq. (14) backward, Eq. (15) with slope a"),),
)
