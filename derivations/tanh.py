"""Hyperbolic tangent."""

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

_VALUE = sp.tanh(z)
_e = sp.exp(-2 * sp.Abs(z))
_DERIVATIVE = 4 * _e / (1 + _e) ** 2  # 1 - tanh(z)^2 would lose the tail
_second, _slope = mean_over(_VALUE**2), mean_over(_DERIVATIVE**2)
_i = sp.I * sp.sqrt(3)
_far = sp.sqrt(2 / (sp.pi * q))

DERIVATION = Derivation(
    "tanh",
    "Hyperbolic tangent",
    (*ASSUMPTIONS, ASSUMPTION),
    (
        derivative_step(_VALUE, _DERIVATIVE),
        mean_step(_VALUE, sp.Integer(0), "the function is odd"),
        step(
            "forward",
            "Forward: the integral that is left, with what saturation takes from one.",
            r"$\tanh^2 = 1 - \operatorname{sech}^2$, and tanh has slope $\operatorname{sech}^2$",
            _second,
            1 - mean_over(_DERIVATIVE),
        ),
        bound("small_above", "Near zero: at most $q$ ...", r"$\tanh^2 z \leq z^2$", _second, q),
        bound(
            "small_below",
            "... and at least $q - 2 q^2$, so the relative error of $q$ is at most $2 q$.",
            r"$\tanh^2 z \geq z^2 - 2 z^4 / 3$, and $\mathbb{E}\,z^4 = 3 q^2$",
            q - 2 * q**2,
            _second,
        ),
        bound(
            "large_below",
            r"Far out: at least $1 - \sqrt{2 / (\pi q)}$ ...",
            r"the density is at most its value at 0, and $\operatorname{sech}^2$ has integral 2",
            1 - _far,
            _second,
        ),
        bound(
            "large_above",
            "... and at most this: the error falls as $q^{-3/2}$.",
            r"$\exp(-x) \geq 1 - x$, and $z^2 \operatorname{sech}^2 z$ has integral $\pi^2 / 6$",
            _second,
            1 - _far * (1 - sp.pi**2 / (24 * q)),
        ),
        step(
            "modulus",
            r"On the lines $\operatorname{Im} z = \pi/3$ the modulus squared of tanh is at most 3, there and in"
            " the strip between.",
            r"addition theorem: $(t + i \sqrt{3}) / (1 + i \sqrt{3} t)$ with $t = \tanh z$ real",
            ((_VALUE + _i) / (1 + _i * _VALUE)) * ((_VALUE - _i) / (1 - _i * _VALUE)),
            3 - 8 * _VALUE**2 / (1 + 3 * _VALUE**2),
        ),
        panel_step("quadrature", _VALUE**2, sp.pi / 3, sp.Integer(3)),
        bound(
            "backward_small",
            "Backward: near zero the factor is at least $1 - 2 q$; one is its upper bound.",
            r"$\operatorname{sech}^4 = (1 - \tanh^2)^2 \geq 1 - 2 z^2$",
            1 - 2 * q,
            _slope,
        ),
        bound(
            "backward_large_above",
            "Far out it is at most this ...",
            r"the density is at most its value at 0, and $\operatorname{sech}^4$ has integral $4/3$",
            _slope,
            _far * sp.Rational(2, 3),
        ),
        bound(
            "backward_large_below",
            "... and at least this.",
            r"$z^2 \operatorname{sech}^4 z$ has integral $(\pi^2 - 6) / 9$",
            _far * sp.Rational(2, 3) * (1 - (sp.pi**2 - 6) / (24 * q)),
            _slope,
        ),
        panel_step("backward_quadrature", sp.sech(z) ** 4, sp.pi / 3, sp.Integer(16)),
    ),
    function_results(_VALUE, _DERIVATIVE) | moment_results(mean=sp.Integer(0)),
    (
        cite("poole2016", "section 2"),
        cite("schoenholz2017", "section 2"),
        cite("trefethen2008", "theorem 4.5"),
    ),
)
