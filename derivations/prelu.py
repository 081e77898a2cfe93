"""Parametric rectifier: slope 1 above zero and a learned slope a below."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    a,
    backward_step,
    derivative_step,
    forward_step,
    function_results,
    mean_over,
    mean_step,
    moment_results,
    q,
    z,
)
from varprop.derivations.leaky_relu import BACKWARD, DERIVATIVE, MEAN, SECOND, VALUE
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_i = sp.Symbol("i", integer=True)
_g, _sigma2 = sp.symbols("g sigma2", positive=True)
_delta, _negative = sp.IndexedBase("delta"), sp.IndexedBase("u")
_SLOPE = sp.Piecewise((0, z > 0), (z, True))

DERIVATION = Derivation(
    "prelu",
    "Parametric rectified linear unit",
    (
        *ASSUMPTIONS,
        "at initialization the slope $a$ is the same constant for all $n$ units that share it (0.25 by default)",
        r"the slope's gradient: the $n$ arriving gradients have mean 0 and are uncorrelated; $u_i = \min(z_i, 0)$",
    ),
    (
        derivative_step(VALUE, DERIVATIVE),
        mean_step(VALUE, MEAN, "a line of slope a has mean 0; the rest is (1 - a) times a rectifier"),
        forward_step(VALUE, SECOND, "each half line carries half of $q$, one of them scaled by $a^2$"),
        backward_step(DERIVATIVE, BACKWARD, "each half line carries half of the mass"),
        step(
            "slope",
            "Derivative with respect to the slope.",
            "differentiation, piece by piece",
            sp.Derivative(VALUE, a),
            _SLOPE,
        ),
        step(
            "slope_unit",
            "Its second moment at one unit.",
            "the integrand is half of an even one",
            mean_over(_SLOPE**2),
            q / 2,
        ),
        step(
            "slope_gradient",
            "Second moment of the slope's gradient: the units that share it add up, which is why it learns fast.",
            "products of different gradients have mean 0",
            E(sp.Sum(_delta[_i] * _negative[_i], (_i, 1, _n)) ** 2),
            _n * _g * q / 2,
            cases=({_n: 1}, {_n: 2}, {_n: 3}),
        ),
        step(
            "condition",
            "A layer of fan $n$ with variance $2 / ((1 + a^2) n)$ keeps the second moment, forward and ($n$"
            " outputs) backward.",
            r"the layer multiplies by $n \sigma^2$, the rectifier by $(1 + a^2) / 2$",
            _n * _sigma2 * (1 + a**2) / 2,
            sp.Integer(1),
            where={_sigma2: 2 / ((1 + a**2) * _n)},
        ),
    ),
    function_results(VALUE, DERIVATIVE)
    | moment_results(mean=MEAN, second_moment=SECOND, derivative_second_moment=BACKWARD)
    | {"slope_gradient": Result((_n, _g, q), _n * _g * q / 2, "second moment of the slope's gradient")},
    (cite("he2015", "Eqs. (1), (3) and (15)"),),
    laws={
        _delta: (sp.Integer(0), _g),
        _negative: (-sp.sqrt(q / (2 * sp.pi)), q / 2),
    },
    defaults={a: 0.25},
)
