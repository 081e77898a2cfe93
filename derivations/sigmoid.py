"""Logistic function 1 / (1 + exp(-z))."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    derivative_step,
    function_results,
    mean_over,
    mean_step,
    moment_results,
    q,
    z,
)
from varprop.derivations.quadrature import ASSUMPTION, panel_step
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, bound, step

_e = sp.exp(-sp.Abs(z))  # never overflows
VALUE = sp.Piecewise((1 / (1 + _e), z >= 0), (_e / (1 + _e), True))
_DERIVATIVE = _e / (1 + _e) ** 2
_logistic = 1 / (1 + sp.exp(-z))
_second, _slope = mean_over(_logistic**2), mean_over(_DERIVATIVE**2)
_turn = -(1 + sp.sqrt(3) * sp.I) / 2
_quarter, _sixteenth = sp.Rational(1, 4), sp.Rational(1, 16)

DERIVATION = Derivation(
    "sigmoid",
    "Logistic sigmoid",
    (*ASSUMPTIONS, ASSUMPTION),
    (
        step(
            "stable",
            "Form that neither overflows nor loses the tail.",
            r"multiply through by $\exp z$ where $z$ is negative",
            _logistic,
            VALUE,
        ),
        derivative_step(VALUE, _DERIVATIVE),
        step(
            "symmetry",
            "The function less one half is odd.",
            "common denominator",
            _logistic + 1 / (1 + sp.exp(z)),
            sp.Integer(1),
        ),
        mean_step(VALUE, sp.Rational(1, 2), "symmetry"),
        step(
            "half_tanh",
            "A sigmoid is a hyperbolic tangent of half the width.",
            r"multiply through by $\exp(z/2)$",
            _logistic,
            (1 + sp.tanh(z / 2)) / 2,
        ),
        step(
            "forward",
            "Forward: so its second moment at $q$ is that of tanh at $q/4$.",
            "expand the square; the odd term has mean 0; $z/2$ is $N(0, q/4)$",
            _second,
            _quarter + mean_over(sp.tanh(z) ** 2).subs(q, q / 4) / 4,
        ),
        bound(
            "small_above", "Near zero: at most $1/4 + q/16$ ...", r"$\tanh^2 x \leq x^2$", _second, _quarter + q / 16
        ),
        bound(
            "small_below",
            "... and at least that less $q^2 / 32$.",
            r"$\tanh^2 x \geq x^2 - 2 x^4 / 3$",
            _quarter + q / 16 - q**2 / 32,
            _second,
        ),
        bound(
            "large_below",
            r"Far out: at least $1/2 - 1 / \sqrt{2 \pi q}$ ...",
            "tanh's bound at $q/4$",
            sp.Rational(1, 2) - 1 / sp.sqrt(2 * sp.pi * q),
            _second,
        ),
        bound(
            "large_above",
            "... and at most this.",
            "tanh's bound at $q/4$",
            _second,
            sp.Rational(1, 2) - (1 - sp.pi**2 / (6 * q)) / sp.sqrt(2 * sp.pi * q),
        ),
        step(
            "modulus",
            r"On the lines $\operatorname{Im} z = 2 \pi/3$ the modulus squared is at most $4/3$, there and in the"
            " strip between.",
            r"$\exp(-2 \pi i/3) = -(1 + i \sqrt{3}) / 2$, and $1 - e + e^2 \geq 3/4$ for $e = \exp(-z)$",
            1 / ((1 + _turn * sp.exp(-z)) * (1 + sp.conjugate(_turn) * sp.exp(-z))),
            1 / (sp.Rational(3, 4) + (sp.exp(-z) - sp.Rational(1, 2)) ** 2),
        ),
        panel_step("quadrature", _logistic**2, 2 * sp.pi / 3, sp.Rational(4, 3)),
        bound(
            "backward_above",
            "Backward: at most $1/16$, tanh's factor at $q/4$ over 16 ...",
            "the slope is at most $1/4$",
            _slope,
            _sixteenth,
        ),
        bound(
            "backward_small", "... near zero at least $(1 - q/2) / 16$ ...", "tanh's bound", (1 - q / 2) / 16, _slope
        ),
        bound(
            "backward_large",
            "... and far out at most this.",
            "tanh's bound at $q/4$",
            _slope,
            1 / (6 * sp.sqrt(2 * sp.pi * q)),
        ),
        panel_step("backward_quadrature", sp.sech(z / 2) ** 4 / 16, 2 * sp.pi / 3, sp.Integer(1)),
    ),
    function_results(VALUE, _DERIVATIVE) | moment_results(mean=sp.Rational(1, 2)),
    (
        cite("glorot2010", "section 3.1"),
        cite("lecun1998", "section 4.4"),
        cite("trefethen2008", "theorem 4.5"),
    ),
)
