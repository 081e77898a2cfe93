"""Gaussian error linear unit z Phi(z), exact."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    CORRELATION,
    backward_step,
    c,
    density,
    derivative_step,
    forward_step,
    function_results,
    mean_over,
    mean_step,
    moment_results,
    price_step,
    q,
    q1,
    q2,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.special_functions import Phi
from varprop.derivations.theorem import Derivation, step

_cdf = Phi(z)
_pdf = density(z, sp.Integer(1))
_VALUE = z * _cdf
_DERIVATIVE = _cdf + z * _pdf

_MEAN = q / sp.sqrt(2 * sp.pi * (1 + q))
_quarter = sp.Rational(1, 4)
_SQUARED_CDF = _quarter + sp.atan(q / sp.sqrt(1 + 2 * q)) / (2 * sp.pi)
_MIXED = q / (2 * sp.pi * (1 + q) * sp.sqrt(1 + 2 * q))  # E[z Phi pdf]
_SECOND = q * (_SQUARED_CDF + 2 * _MIXED)
_BACKWARD = _SQUARED_CDF + 2 * _MIXED + q / (2 * sp.pi * (1 + 2 * q) ** sp.Rational(3, 2))

_k = c * sp.sqrt(q1 * q2)
_D = 1 + q1 + q2 + q1 * q2 * (1 - c**2)
_P = 1 / (2 * sp.pi * sp.sqrt(_D))  # E[pdf(z1) pdf(z2)]
_BOTH = _quarter + sp.atan(_k / sp.sqrt(_D)) / (2 * sp.pi)  # E[Phi(z1) Phi(z2)]
_DUAL = _k * _BOTH + _P * q1 * q2 * ((1 + q1 * (1 - c**2)) / (1 + q1) + c**2 / (1 + q2))  # nothing cancels
_DERIVATIVE_DUAL = _BOTH + _P * _k * (1 / (1 + q1) + 1 / (1 + q2) + 1 / _D)

DERIVATION = Derivation(
    "gelu",
    "Gaussian error linear unit",
    (*ASSUMPTIONS, r"$\Phi$ is the exact normal distribution function, not its tanh approximation"),
    (
        derivative_step(_VALUE, _DERIVATIVE),
        mean_step(
            _VALUE,
            _MEAN,
            r"Stein: $\mathbb{E}[z f(z)] = q \mathbb{E}[f'(z)]$, here with a product of two"
            " Gaussians",
        ),
        step(
            "squared_cdf",
            "Mean of the squared distribution function.",
            "probability that two correlated Gaussians both stay below zero",
            mean_over(_cdf**2),
            _SQUARED_CDF,
        ),
        step(
            "mixed",
            r"Mean of $z \Phi p$, with $p$ the normal density.",
            r"Stein: $(1 + q)\, \mathbb{E}[z \Phi p] = q\, \mathbb{E}[p^2]$",
            mean_over(z * _cdf * _pdf),
            _MIXED,
        ),
        forward_step(_VALUE, _SECOND, r"Stein: $\mathbb{E}[z (z \Phi^2)] = q\, \mathbb{E}[\Phi^2 + 2 z \Phi p]$"),
        backward_step(_DERIVATIVE, _BACKWARD, r"expand the square; $\mathbb{E}[z^2 p^2]$ is a Gaussian integral"),
        step(
            "price_cdf",
            r"The dual of $\Phi$ grows with $c$ as the dual of its density.",
            r"Price's theorem, and $\mathbb{E}[p(z_1) p(z_2)] = \det(1 + \Sigma)^{-1/2} / 2 \pi$",
            sp.Derivative(_BOTH, c),
            sp.sqrt(q1 * q2) * _P,
            domain=CORRELATION,
        ),
        price_step(_DUAL, _DERIVATIVE_DUAL),
        step(
            "independent",
            "At $c = 0$ the dual is the product of the means.",
            "independence",
            _DUAL.subs(c, 0),
            _MEAN.subs(q, q1) * _MEAN.subs(q, q2),
        ),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(
        mean=_MEAN,
        second_moment=_SECOND,
        derivative_second_moment=_BACKWARD,
        dual=_DUAL,
        derivative_dual=_DERIVATIVE_DUAL,
    ),
    (
        cite("hendrycks2016", "section 2"),
        cite("stein1981", "lemma 1"),
        cite("price1958", "theorem"),
        cite("tsuchida2021", "kernel of the GELU"),
    ),
)
