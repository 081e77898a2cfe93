"""Gradient at the data: the kernel's mixed derivative, with what slopes know of the weights that made them."""

import sympy as sp

from varprop.derivations.gaussian import mean_over, q, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_s, _t = sp.symbols("s t", real=True)
_alpha, _beta, _gamma = sp.symbols("alpha beta gamma", real=True)
_K = sp.Symbol("K", real=True)
_qa, _qb = sp.symbols("q_a q_b", positive=True)
_f = sp.Function("f")
_left, _right, _both = sp.Function("u")(_s), sp.Function("v")(_t), sp.Function("k")(_s, _t)

# Of phi = exp(alpha z) at one point and exp(beta z) at the other, whose mixtures all functions are.
_mean = sp.exp((_alpha**2 * _left + 2 * _alpha * _beta * _both + _beta**2 * _right) / 2)
_at_a = _alpha**2 * sp.Derivative(_left, _s) / 2 + _alpha * _beta * sp.Derivative(_both, _s)
_at_b = _beta**2 * sp.Derivative(_right, _t) / 2 + _alpha * _beta * sp.Derivative(_both, _t)
_active = (sp.pi - sp.acos(_K / sp.sqrt(_qa * _qb))) / (2 * sp.pi)
_density = 1 / (2 * sp.pi * sp.sqrt(_qa * _qb - _K**2))
_POSITIVE = {_K: (-0.15, 0.15)}

DERIVATION = Derivation(
    "input_gradient",
    "Gradient at the data",
    (
        "hidden layers are wide, so that the output is a Gaussian function of the data $x$ with the layers' kernel $K$;"
        " few inputs will do",
        r"the gradient's second moment is the mixed derivative $\partial^2 K(x, x') / \partial x_p\, \partial x'_p$ at"
        r" $x' = x$; $s$ moves $x_p$ and $t$ moves $x'_p$",
        r"$a$ and $b$ are two points of a layer (places of a map), $u(s)$, $v(t)$ and $k(s, t)$ their variances and"
        r" covariance; $R(a, b)$ is the derivative of $k$ for $s$, $R(b, a)$ that for $t$, $T$ that for both, and"
        r" $2 R(a, a)$, $2 R(b, b)$ are those of $u$ and $v$",
        r"$\phi$ is shown for $e^{\alpha z}$ at $a$ and $e^{\beta z}$ at $b$: everything is linear in each, and"
        " exponentials span all functions that have a Fourier transform",
    ),
    (
        step(
            "response",
            r"Forward: the kernel's response to one input, $R(a, b)$, becomes $\mathbb{E}[\phi'(a) \phi'(b)] R(a, b) +"
            r" \mathbb{E}[\phi''(a) \phi(b)] R(a, a)$.",
            "chain rule on the kernel after the activation (Price's theorem)",
            sp.Derivative(_mean, _s),
            _at_a * _mean,
        ),
        step(
            "mixed",
            r"Backward: $T$ becomes $\mathbb{E}[\phi'(a) \phi'(b)] T + \mathbb{E}[\phi''(a) \phi''(b)] (R(a, a) R(b, b)"
            r" + R(a, b) R(b, a)) + \mathbb{E}[\phi'''(a) \phi'(b)] R(a, a) R(b, a) + \mathbb{E}[\phi'(a) \phi'''(b)]"
            r" R(a, b) R(b, b)$. Slopes that know nothing of the weights leave the first term alone.",
            "differentiate for both inputs, and multiply out",
            sp.Derivative(_mean, _s, _t),
            (_alpha * _beta * sp.Derivative(_both, _s, _t) + _at_a * _at_b) * _mean,
        ),
        step(
            "one_point",
            r"At one point what is added is $R^2$ times the mean of the squared slope's second derivative.",
            "product rule, with $f$ for the slope",
            sp.Derivative(_f(z) ** 2, (z, 2)),
            2 * sp.Derivative(_f(z), z) ** 2 + 2 * _f(z) * sp.Derivative(_f(z), (z, 2)),
        ),
        step(
            "by_parts",
            r"It needs no second derivative: $q^2$ times that mean is that of $(z^2 - q)$ times the squared slope, here"
            r" $e^{\gamma z}$.",
            "Stein's lemma twice",
            q**2 * mean_over(_gamma**2 * sp.exp(_gamma * z)),
            mean_over((z**2 - q) * sp.exp(_gamma * z)),
            domain={_gamma: (-1.0, 1.0)},
        ),
        step(
            "relu",
            r"ReLU: $\mathbb{E}[\phi''(a) \phi''(b)]$ is the density of both at zero.",
            "Price's theorem on the probability that both are active",
            sp.Derivative(_active, _K),
            _density,
            domain=_POSITIVE,
        ),
        step(
            "relu_turned",
            r"ReLU: $\mathbb{E}[\phi'''(a) \phi'(b)] = -(K / q_a)\, \mathbb{E}[\phi''(a) \phi''(b)]$, so nothing is"
            " added at one point, although both diverge there.",
            "Price's theorem: twice the derivative of that probability for $q_a$",
            2 * sp.Derivative(_active, _qa),
            -_K / _qa * _density,
            domain=_POSITIVE,
        ),
    ),
    {
        "relu_bent": Result((_qa, _qb, _K), _density, "E[phi'' phi''] of ReLU, two points of covariance K"),
    },
    (
        cite("price1958", "theorem"),
        cite("stein1981", "lemma 1"),
        cite("williams1997", "section 3"),
    ),
)
