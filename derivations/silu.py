"""Sigmoid linear unit z sigmoid(z), also called swish."""

import sympy as sp

from varprop.derivations.gaussian import ASSUMPTIONS, derivative_step, function_results, mean_over, q, z
from varprop.derivations.quadrature import ASSUMPTION, centre, half, panel_step
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, bound, step

_e = sp.exp(-sp.Abs(z))
_VALUE = sp.Piecewise((z / (1 + _e), z >= 0), (z * _e / (1 + _e), True))
_DERIVATIVE = sp.Piecewise(((1 + _e + z * _e) / (1 + _e) ** 2, z >= 0), (_e * (1 + _e + z) / (1 + _e) ** 2, True))
_second, _slope = mean_over(_VALUE**2), mean_over(_DERIVATIVE**2)
# |z|^2 over the panel's ellipse, times the 4/3 that bounds the sigmoid's square in this strip
_STRIP = 2 * sp.pi / 3
_SIZE = sp.Rational(4, 3) * ((sp.Abs(centre) + sp.sqrt(half**2 + _STRIP**2)) ** 2 + _STRIP**2)
_tanh = sp.tanh(z / 2)

DERIVATION = Derivation(
    "silu",
    "Sigmoid linear unit",
    (*ASSUMPTIONS, ASSUMPTION),
    (
        step(
            "stable",
            "Form that neither overflows nor loses the tail.",
            r"multiply through by $\exp z$ where $z$ is negative",
            z / (1 + sp.exp(-z)),
            _VALUE,
        ),
        derivative_step(_VALUE, _DERIVATIVE),
        step(
            "mean",
            "The mean is $q$ times the mean slope of the sigmoid.",
            r"Stein: $\mathbb{E}[z f(z)] = q \mathbb{E}[f'(z)]$",
            mean_over(_VALUE),
            q * mean_over(_e / (1 + _e) ** 2),
        ),
        step(
            "forward",
            "Forward: what is left is an integral over tanh.",
            r"$\operatorname{sigmoid}(z) = (1 + \tanh(z/2)) / 2$; expand the square; the odd term has mean 0",
            _second,
            q / 4 + mean_over(z**2 * _tanh**2) / 4,
        ),
        bound(
            "small",
            "Near zero: at least $q/4$ and at most $q/4 + 3 q^2 / 16$.",
            r"$\tanh^2 x \leq x^2$, $\mathbb{E}\,z^4 = 3 q^2$",
            _second,
            q / 4 + 3 * q**2 / 16,
        ),
        bound("large_above", "Far out: at most $q/2$, as a rectifier.", r"$\tanh^2 \leq 1$", _second, q / 2),
        bound(
            "large_below",
            "And at least $q/2$ less this.",
            r"$z^2 \operatorname{sech}^2(z/2)$ has integral $4 \pi^2 / 3$, and the density is at most its value"
            " at 0",
            q / 2 - sp.pi**2 / (3 * sp.sqrt(2 * sp.pi * q)),
            _second,
        ),
        panel_step("quadrature", (z / (1 + sp.exp(-z))) ** 2, _STRIP, _SIZE),
        step(
            "backward",
            "Backward: the derivative less one half is odd, so only its square counts beside $1/4$.",
            r"$\phi'(z) + \phi'(-z) = 1$",
            _slope,
            sp.Rational(1, 4) + mean_over((_DERIVATIVE - sp.Rational(1, 2)) ** 2),
        ),
        bound(
            "backward_small",
            "Near zero: at most $1/4 + q/4$.",
            r"the slope of $\phi'$ is at most $1/2$, at 0",
            _slope,
            sp.Rational(1, 4) + q / 4,
        ),
    ),
    function_results(_VALUE, _DERIVATIVE),
    (
        cite("elfwing2018", "section 2"),
        cite("ramachandran2017", "section 4"),
        cite("stein1981", "lemma 1"),
        cite("trefethen2008", "theorem 4.5"),
    ),
)
