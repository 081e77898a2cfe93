"""Correlation of two samples through He-ReLU layers: it tends to one, but only as 1 / depth^2."""

import sympy as sp

from varprop.derivations.gaussian import CORRELATION, c, q1, q2
from varprop.derivations.references import cite
from varprop.derivations.relu import ARC_COSINE, ARC_STEPS, BOTH_POSITIVE
from varprop.derivations.theorem import Derivation, Result, step

_theta = sp.Symbol("theta", positive=True)
_t, _rate = sp.symbols("t k", positive=True)
_kernel = sp.Symbol("K", positive=True)
_f = sp.Function("f")
_angle = sp.acos(c)
_MAP = (sp.sqrt(1 - c**2) + c * (sp.pi - _angle)) / sp.pi
_SLOPE = 1 - _angle / sp.pi
_LOST = 2 * sp.sin(_theta / 2) ** 2  # 1 - c for c = cos theta
_SHORT = (sp.sin(_theta) - _theta * sp.cos(_theta)) / sp.pi
_COEFFICIENT = 2 * sp.sqrt(2) / (3 * sp.pi)

DERIVATION = Derivation(
    "relu_correlation",
    "Correlation map of ReLU",
    (
        "wide layers with He's variance $2 / n$, so that the second moments of both samples are kept",
        r"without bias; $c$ is the correlation of the pre-activations, $\theta = \arccos c$ the angle of the two"
        " samples",
    ),
    (
        *ARC_STEPS,
        step(
            "forward",
            r"Forward: the correlation map $f(c) = 2\, \mathbb{E}[\operatorname{relu}(z_1)"
            r" \operatorname{relu}(z_2)]$, with variances one.",
            "He's factor 2 on the arc-cosine kernel",
            2 * _kernel,
            _MAP,
            where={_kernel: ARC_COSINE},
        ),
        step(
            "backward",
            "Backward: the covariance of two samples' gradients takes the factor $f'(c)$, that of one sample"
            " alone $f'(1) = 1$.",
            "He's factor 2 on the probability that both are active; by Price's theorem it is the slope",
            sp.Derivative(_MAP, c),
            2 * BOTH_POSITIVE,
            domain=CORRELATION,
        ),
        step(
            "fixed_point",
            "Equal samples stay equal.",
            r"$\arccos 1 = 0$",
            _f(1),
            sp.Integer(1),
            where={_f: sp.Lambda(c, _MAP)},
        ),
        step(
            "marginal",
            "The slope at $c = 1$ is one, neither order nor chaos: nothing shrinks exponentially.",
            r"$\arccos 1 = 0$",
            _f(1),
            sp.Integer(1),
            where={_f: sp.Lambda(c, _SLOPE)},
        ),
        step(
            "angle",
            r"In the angle, a layer takes $(\sin \theta - \theta \cos \theta) / \pi$ from $1 - c$.",
            r"put $c = \cos \theta$: $1 - f(c) = (1 - c) - (\sin \theta - \theta \cos \theta) / \pi$",
            1 - (sp.sin(_theta) + sp.cos(_theta) * (sp.pi - _theta)) / sp.pi,
            _LOST - _SHORT,
            domain={_theta: (0.0, 3.1)},
        ),
        step(
            "leading",
            r"Near one, what is taken is $(2 \sqrt{2} / 3 \pi) (1 - c)^{3/2}$.",
            r"$\sin x - x \cos x = x^3 / 3$ and $1 - \cos x = x^2 / 2$ to leading order",
            sp.Limit(_SHORT / _LOST ** sp.Rational(3, 2), _theta, 0),
            _COEFFICIENT,
        ),
        step(
            "step",
            "So $(1 - c)^{-1/2}$ grows by half that coefficient a layer.",
            "expand $(t - k t^{3/2})^{-1/2} - t^{-1/2}$ at small $t = 1 - c$",
            sp.Limit(1 / sp.sqrt(_t - _rate * _t ** sp.Rational(3, 2)) - 1 / sp.sqrt(_t), _t, 0),
            _rate / 2,
        ),
        step(
            "rate",
            r"After many layers $l^2 (1 - c)$ tends to $9 \pi^2 / 2 = 44.4$, from any two different samples.",
            "the mean of converging increments converges (Stolz): $(1 - c)^{-1/2} / l$ tends to half the coefficient",
            1 / (_rate / 2) ** 2,
            9 * sp.pi**2 / 2,
            where={_rate: _COEFFICIENT},
        ),
    ),
    {
        "correlation": Result((c,), _MAP, "correlation after a layer"),
        "gradient_correlation": Result((c,), _SLOPE, "factor of the covariance of two samples' gradients"),
        "covariance": Result((q1, q2, c), sp.sqrt(q1 * q2) * _MAP, "covariance after a layer"),
    },
    (cite("cho2009", "section 2, degrees 0 and 1"), cite("hayou2019", "section 3.2"), cite("price1958", "theorem")),
)
