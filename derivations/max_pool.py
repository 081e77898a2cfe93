"""Maximum over windows that do not overlap, of independent N(0, q) values."""

import sympy as sp

from varprop.derivations.gaussian import q, z
from varprop.derivations.references import cite
from varprop.derivations.special_functions import Phi, normal
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_g = sp.Symbol("g", positive=True)
_cdf = Phi(z)
_pdf = normal(z, sp.Integer(1))
_MEAN = 3 / sp.sqrt(sp.pi) * (sp.Rational(1, 2) + sp.asin(sp.Rational(1, 3)) / sp.pi)
_SECOND = 1 + sp.sqrt(3) / sp.pi


def _order_statistic(power: int, n: sp.Expr) -> sp.Integral:
    return sp.Integral(z**power * n * _pdf * _cdf ** (n - 1), (z, -sp.oo, sp.oo))


DERIVATION = Derivation(
    "max_pool",
    "Maximum pooling",
    ("the $n$ values of a window are independent $N(0, q)$", "windows do not overlap; one value has the maximum"),
    (
        step(
            "law",
            r"The maximum has density $n\, p\, \Phi^{n-1}$, here integrated.",
            r"all $n$ values stay below: the distribution function is $\Phi^n$",
            _order_statistic(0, _n),
            sp.Integer(1),
        ),
        step(
            "pair_mean",
            "Mean of the larger of two.",
            "integrate by parts",
            _order_statistic(1, sp.Integer(2)),
            1 / sp.sqrt(sp.pi),
        ),
        step(
            "mean",
            "Mean of the largest of four, for $q = 1$.",
            "integrate by parts; what is left is an orthant probability of correlation $1/3$",
            _order_statistic(1, sp.Integer(4)),
            _MEAN,
        ),
        step(
            "second_moment",
            "Forward: second moment of the largest of four, for $q = 1$.",
            "integrate by parts twice",
            _order_statistic(2, sp.Integer(4)),
            _SECOND,
        ),
        step(
            "backward",
            "Backward: one of $n$ values receives the gradient whole, so the mean square over values is $g / n$.",
            "one square $g$ among $n$ values",
            sp.Integral(_cdf ** (_n - 1) * _pdf, (z, -sp.oo, sp.oo)) * _g,
            _g / _n,
        ),
    ),
    {
        "mean_of_four": Result((q,), sp.sqrt(q) * _MEAN, "mean of the largest of four"),
        "second_moment_of_four": Result((q,), q * _SECOND, "second moment of the largest of four"),
        "gradient": Result((_n, _g), _g / _n, "second moment of the input's gradient"),
    },
    (cite("david2003", "chapter 3"),),
)
