"""Residual networks at depth: doubling, linear growth behind batch normalisation, and scaled branches."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_depth, _l, _k = sp.symbols("L l k", integer=True, positive=True)
_q, _g, _factor, _alpha = sp.symbols("q g f alpha", positive=True)
_x, _b, _gradient, _p, _m, _m_g = sp.symbols("x b d p m m_g", real=True)
_LAYERS = ({_depth: 1}, {_depth: 2}, {_depth: 7})

DERIVATION = Derivation(
    "residual",
    "Residual networks at depth",
    (
        "the last weights of a branch have mean 0 and are independent of all before: shortcut and branch are"
        " uncorrelated",
        "$f$ is the factor of the second moment through a branch; a branch without normalisation has the same"
        r" factor backward ($n_{\mathrm{out}} = n$, critical variance)",
        "batch normalization at the branch's start makes the branch's output second moment one, whatever comes in, and"
        " divides the branch's gradient by the incoming second moment (large batch, mean 0)",
    ),
    (
        step(
            "block",
            "Forward: shortcut plus branch.",
            "the cross term has mean 0",
            E((_x + _b) ** 2),
            (1 + _factor) * _q,
        ),
        step(
            "block_backward",
            "Backward: the shortcut's gradient plus the branch's, $p d$.",
            "the cross term has mean 0, the branch's last weights having mean 0",
            E((_gradient + _p * _gradient) ** 2),
            (1 + _factor) * _g,
        ),
        step(
            "doubling",
            "A branch that keeps the second moment ($f = 1$, He) doubles it each block, forward and backward: $2^L$.",
            "$L$ equal factors",
            _q * sp.Product((1 + _factor).subs(_factor, 1), (_l, 1, _depth)),
            _q * 2**_depth,
            cases=_LAYERS,
        ),
        step(
            "scaled",
            r"Branches scaled by $\alpha = 1 / \sqrt{L}$ grow to $(1 + 1/L)^L$, below $e$ at any depth.",
            "$f = 1/L$",
            _q * sp.Product((1 + _factor).subs(_factor, 1 / _depth), (_l, 1, _depth)),
            _q * (1 + 1 / _depth) ** _depth,
            cases=_LAYERS,
        ),
        step(
            "scaled_limit",
            "Which tends to $e$.",
            "definition of $e$",
            sp.Limit((1 + 1 / _q) ** _q, _q, sp.oo),
            sp.E,
        ),
        step(
            "normalised",
            "Behind batch normalization each block adds one: $q = 1 + l$ after $l$ blocks of a stage that begins"
            " at one.",
            "sum of ones",
            1 + sp.Sum(1, (_k, 1, _depth)),
            1 + _depth,
            cases=_LAYERS,
        ),
        step(
            "normalised_backward",
            "Backward: the branch of block $l$ divides the gradient by its incoming second moment $l$: $f = 1 /"
            " l$, and the factors multiply up to $L + 1$: the gradient at the stage's begin is that at its end"
            " times $L + 1$.",
            "the product telescopes",
            _g * sp.Product(1 + 1 / _l, (_l, 1, _depth)),
            _g * (1 + _depth),
            cases=_LAYERS,
        ),
        step(
            "downsampling",
            "A block whose shortcut is normalised as well starts the count anew at 2.",
            "one from each of the two",
            sp.Subs(E((_x + _b) ** 2), (_q, _factor), (1, 1)),
            sp.Integer(2),
        ),
        step(
            "learned_scale",
            r"A branch with a learned scale $\alpha$ that starts at zero leaves all unchanged at initialization.",
            r"$\alpha^2 f$ is the branch's factor",
            (1 + _alpha**2 * _factor) * _q,
            _q,
            where={_alpha: sp.Integer(0)},
        ),
    ),
    {
        "plain": Result((_q, _depth), _q * 2**_depth, "second moment after L blocks without normalization"),
        "normalised": Result((_depth,), 1 + _depth, "second moment after L blocks with normalised branches"),
        "scaled": Result(
            (_q, _depth),
            _q * (1 + 1 / _depth) ** _depth,
            "second moment with branches scaled by one over the root of L",
        ),
        "normalised_gradient": Result(
            (_g, _depth), _g * (1 + _depth), "gradient's second moment L normalised blocks back"
        ),
    },
    (
        cite("he2016", "Eqs. (1) and (2)"),
        cite("zhang2019", "section 2"),
        cite("desmith2020", "section 3"),
        cite("yangschoenholz2017", "section 3"),
    ),
    laws={
        _x: (_m, _q),
        _b: (sp.Integer(0), _factor * _q),
        _gradient: (_m_g, _g),
        _p: (sp.Integer(0), _factor),
    },
)
