"""Zero padding: windows at the border of a 3x3 'same' convolution sum fewer products."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_i, _j = sp.symbols("i j", integer=True)
_theta = sp.Symbol("theta", positive=True)
_x = sp.Symbol("x", real=True)

_EIGENVALUE = (1 + 2 * sp.cos(sp.pi / (_n + 1))) / 3
_INSIDE = sp.Piecewise((1, (_i + _j >= 1) & (_i + _j <= _n)), (0, True))


_f = sp.Function("f")
_SINE = {_f: sp.Lambda(_i, sp.sin(sp.pi * _i / (_n + 1)))}

DERIVATION = Derivation(
    "zero_padding",
    "Zero padding of a 3x3 'same' convolution",
    (
        r"$n \times n$ map, stride 1, 9 channels $\sigma^2 \mathbb{E}[\phi^2] / q = 1$: second moments are kept away"
        " from the border",
        "positions are followed by their second moments alone: exact for the mean over weights",
    ),
    (
        step(
            "profile",
            "Forward: along one axis a layer replaces the profile of second moments by a third of the sum over"
            " the three taps; what lies outside is 0. A map that starts flat keeps all but $2/(3 n)$ of it.",
            "2 of the $3 n$ taps along an axis see the padding",
            sp.Sum(sp.Sum(_INSIDE / 3, (_j, -1, 1)), (_i, 1, _n)) / _n,
            1 - sp.Rational(2, 3) / _n,
            cases=({_n: 2}, {_n: 3}, {_n: 5}),
        ),
        step(
            "backward",
            "Backward: an input position is seen by as many outputs as there are taps inside at that position, so the"
            " gradient's profile takes the same steps, and decays at the same rate.",
            "the transposed three taps are the three taps, mirrored",
            sp.Sum(_INSIDE.subs(_j, -_j) / 3, (_j, -1, 1)),
            sp.Sum(_INSIDE / 3, (_j, -1, 1)),
            cases=({_n: 3, _i: 1}, {_n: 3, _i: 2}, {_n: 3, _i: 3}),
        ),
        step(
            "sine",
            "A sine keeps its shape under the three taps.",
            "addition theorem",
            sp.sin(_x - _theta) + sp.sin(_x) + sp.sin(_x + _theta),
            (1 + 2 * sp.cos(_theta)) * sp.sin(_x),
        ),
        step(
            "border",
            r"With angle $\pi / (n + 1)$ the sine vanishes at 0 and at $n + 1$, so the zeros outside are its own.",
            r"$\sin 0 = \sin \pi = 0$",
            _f(0) ** 2 + _f(_n + 1) ** 2,
            sp.Integer(0),
            where=_SINE,
        ),
        step(
            "slowest",
            "This mode is positive everywhere, hence (Perron) the slowest; an interior row shows its factor.",
            "the sine step, divided by three",
            (_f(_i - 1) + _f(_i) + _f(_i + 1)) / 3,
            _EIGENVALUE * _f(_i),
            where=_SINE,
        ),
    ),
    {
        "decay": Result((_n,), _EIGENVALUE**2, "factor a layer of the slowest mode, both axes"),
        "first_layer": Result((_n,), (1 - sp.Rational(2, 3) / _n) ** 2, "what a flat map keeps in one layer"),
    },
    (cite("xiao2018", "section 2 (there with circular padding, which keeps all)"),),
)
