"""Weight decay without batch normalisation: where the data's gradient has died, weights only shrink."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_eta, _decay, _w0 = sp.symbols("eta lambda w0", positive=True)
_steps, _t = sp.symbols("T t", integer=True, positive=True)
_layers = sp.Symbol("L", integer=True, positive=True)
_w, _gradient, _q, _l2 = sp.symbols("w grad q l2", real=True)
_KEPT = 1 - _eta * _decay
_SMALL = {_eta: (0.01, 0.5), _decay: (0.01, 0.5)}

DERIVATION = Derivation(
    "weight_decay",
    "Weight decay without batch normalization",
    (
        r"plain gradient descent with learning rate $\eta$; decay $\lambda$ multiplies $w$ in the update",
        r"a penalty $\lambda_2 |w|^2$ in the loss (Keras) is the decay $\lambda = 2 \lambda_2$",
        r"pure decay: the data's gradient is negligible beside $\lambda w$, as in a network whose signal dies on"
        " the way",
    ),
    (
        step(
            "penalty",
            "A penalty's gradient is a decay of twice its factor.",
            "differentiation",
            sp.Derivative(_l2 * _w**2, _w),
            2 * _l2 * _w,
        ),
        step(
            "update",
            "One step: gradient and decay.",
            r"the step along the loss's gradient plus $\lambda w$, with its terms collected",
            _w - _eta * (_gradient + _decay * _w),
            _KEPT * _w - _eta * _gradient,
        ),
        step(
            "pure_decay",
            "Without a gradient every weight is multiplied by the same number: after $T$ steps by its power.",
            "$T$ equal factors",
            _w0 * sp.Product(_KEPT, (_t, 1, _steps)),
            _w0 * _KEPT**_steps,
            cases=({_steps: 1}, {_steps: 2}, {_steps: 5}),
        ),
        step(
            "forward",
            "Forward: as every weight of a layer shrinks alike, the second moment shrinks by the square, and"
            " through $L$ positively homogeneous layers by its $L$-th power.",
            "the second moment is quadratic in each layer's weights",
            _q * sp.Product((_KEPT**_steps) ** 2, (_t, 1, _layers)),
            _q * _KEPT ** (2 * _steps * _layers),
            cases=({_layers: 1}, {_layers: 3}),
            domain=_SMALL,
        ),
        step(
            "backward",
            "Backward: so does the gradient with respect to activations, and the gradient of one layer's weights"
            " by the other $L - 1$ layers' share: what has died stays dead.",
            "the gradient of a product of $L$ factors holds $L - 1$ of them",
            sp.Product(_KEPT**_steps, (_t, 1, _layers)) / _KEPT**_steps,
            _KEPT ** (_steps * (_layers - 1)),
            cases=({_layers: 1}, {_layers: 3}),
            domain=_SMALL,
        ),
        step(
            "exponential",
            r"For small $\eta \lambda$ this is exponential decay in $\eta \lambda T$.",
            "logarithm of the factor to first order",
            sp.Limit(sp.log(1 - _eta) / _eta, _eta, 0),
            sp.Integer(-1),
        ),
    ),
    {
        "kept": Result((_eta, _decay, _steps), _KEPT**_steps, "factor on every weight after T steps"),
        "second_moment": Result(
            (_q, _eta, _decay, _steps, _layers),
            _q * _KEPT ** (2 * _steps * _layers),
            "second moment behind L homogeneous layers after T steps",
        ),
    },
    (cite("krogh1992", "section 1"), cite("loshchilov2019", "section 2, proposition 1")),
)
