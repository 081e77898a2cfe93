"""Which initializer for which activation: what a layer does to signal and gradient, derived and not remembered.

A dense layer and a 3x3 convolution, as wide before as behind, are reduced to sigma_w^2 = fan_in Var(w) and sigma_b^2,
by the framework's own rule and fans. Mean field theory (`mean_field`) says the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.architectures import FRAMEWORKS
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.initializers import bias_law, parse_initializer, weight_law
from varprop.simulator.mean_field import EDGE, phase_diagram, verdict
from varprop.simulator.network import FrameworkName, Initializer, NetworkBuilder
from varprop.simulator.weight_law import rule

Array = NDArray[np.float64]

ACTIVATIONS = ("linear", "relu", "leaky_relu(0.2)", "relu6", "elu", "selu", "gelu", "silu", "tanh", "sigmoid")
INITIALIZERS = (
    "default", "he_normal", "glorot_normal", "lecun_normal", "orthogonal", "random_normal", "random_normal(std=1.0)",
)  # fmt: skip
LAYERS = ("dense", "conv3x3")
WIDTH = 256

LINE = 0.99
"""Share of an output's variance that its linear part makes up above which an activation is called a line."""

SATURATED = 0.1
"""Slope over the steepest one below which a unit of a bounded activation counts as saturated."""

MOST = 0.6
"""Share of saturated units worth a word: half of a ReLU6's are off at any variance."""

_u = np.linspace(-9, 9, 6001)
_mass = np.exp(-_u * _u / 2) / np.exp(-_u * _u / 2).sum()


@dataclass(frozen=True)
class Row:
    """One activation behind one layer.

    Attributes
    ----------
    fan_in, weight_variance, sigma_w2, sigma_b2
        Of the layer; sigma_w2 is their product.
    forward, backward
        Factors of the second moments of signal (from q = 1) and gradient in one layer.
    q_star, chi
        Variance that depth leads to (None: without end, or every one is kept), and the gradient's factor there
        (None: without end).
    linear_share, saturated_share
        Of the activation at that variance (at 1 if there is none): share of the output's variance that is linear in
        the input, and of units whose slope is below a tenth of the steepest.
    """

    activation: str
    initializer: str
    framework: str
    layer: str
    fan_in: int
    weight_variance: float
    sigma_w2: float
    sigma_b2: float
    forward: float
    backward: float
    q_star: float | None
    chi: float | None
    linear_share: float
    saturated_share: float
    verdict: str


def gain_rows(
    activations: Sequence[str] = (),
    initializers: Sequence[str] = (),
    frameworks: Sequence[str] = (),
    width: int = WIDTH,
) -> list[Row]:
    """Return a row for every activation, initializer, framework and layer.

    Parameters
    ----------
    activations, initializers, frameworks
        Names; empty for the usual ones.
    width
        Channels before and behind the layer.

    Raises
    ------
    UserError
        An unknown name, a width below 1, or weights without variance or with a mean.
    """
    if not 1 <= width <= 10**6:
        raise UserError("--width", width, "a whole number from 1 to 1,000,000")
    for name in frameworks:
        if name not in FRAMEWORKS:
            raise did_you_mean("--framework", name, list(FRAMEWORKS))
    rules = [parse_initializer(text) for text in initializers or INITIALIZERS]
    sites = [
        _site(rule, FRAMEWORKS[framework], layer, width)
        for rule in rules
        for framework in frameworks or FRAMEWORKS
        for layer in LAYERS
    ]
    weights, biases = (
        sorted({_rounded(value) for value in values}) for values in zip(*(s[1:] for s in sites), strict=True)
    )
    rows = []
    for name in activations or ACTIVATIONS:
        function = activation(name)
        diagram = phase_diagram(function, weights, biases)
        for site, sigma_w2, sigma_b2 in sites:
            where = weights.index(_rounded(sigma_w2)), biases.index(_rounded(sigma_b2))
            rows.append(
                _row(function, site, sigma_w2, sigma_b2, float(diagram.q_star[where]), float(diagram.chi[where]))
            )
    return rows


@dataclass(frozen=True)
class _Site:
    initializer: str
    framework: str
    layer: str
    fan_in: int
    weight_variance: float


def _site(rule: Initializer, framework: FrameworkName, layer: str, width: int) -> tuple[_Site, float, float]:
    """Return a layer with its sigma_w^2 and sigma_b^2; only the frameworks' defaults have a bias."""
    bias = rule if rule.name == "default" else None
    net = NetworkBuilder(layer, framework, (width,) if layer == "dense" else (width, 3, 3))
    if layer == "dense":
        net.linear(width, rule, bias=bias)
    else:
        net.conv2d(width, 3, rule, bias=bias)
    node = net.build().nodes[1]
    law, of_bias = weight_law(node, framework), bias_law(node, framework)
    if law.mean != 0 or law.variance == 0 or node.fan_in is None:
        raise UserError("--init", rule, "weights that vary around zero")
    site = _Site(str(rule), framework, layer, node.fan_in, law.variance)
    return site, node.fan_in * law.variance, 0.0 if of_bias is None else of_bias.second_moment


def _row(function: ActivationFunction, site: _Site, sigma_w2: float, sigma_b2: float, q_star: float, chi: float) -> Row:
    q = q_star if 0 < q_star < math.inf else 1.0
    line, saturated = _shape(function, q)
    words = verdict(q_star, chi)
    if line > LINE and not function.homogeneous and function.germ_zero[1] == function.germ_zero[2]:
        words += f"; acts as a line ({line:.1%} of its variance)"
    if saturated > MOST and _bounded(function):
        words += f"; {saturated:.0%} of units saturated"
    return Row(
        function.name, **asdict(site), sigma_w2=sigma_w2, sigma_b2=sigma_b2,
        forward=sigma_w2 * float(function.second_moment(1.0)) + sigma_b2,
        backward=sigma_w2 * float(function.derivative_second_moment(1.0)),
        q_star=q_star if math.isfinite(q_star) else None, chi=chi if math.isfinite(chi) else None,
        linear_share=line, saturated_share=saturated,
        verdict=words,
    )  # fmt: skip


def _rounded(value: float) -> float:
    """Drop the last digits, which a framework's square root leaves: 2 is critical, 1.9999999999999998 is not."""
    return float(f"{value:.12g}")


def _bounded(function: ActivationFunction) -> bool:
    return function.germ_infinity[0][0] == function.germ_infinity[1][0] == 0


def _shape(function: ActivationFunction, q: float) -> tuple[float, float]:
    """Linear share and saturated share of an activation at N(0, q)."""
    z = math.sqrt(q) * _u
    value, slope = function.value(z), np.abs(function.derivative(z))
    centred = value - _mass @ value
    variance = float(_mass @ centred**2)
    steepest = float(np.abs(function.derivative(np.linspace(-10, 10, 2001))).max())
    linear = float(_mass @ (centred * _u)) ** 2 / variance if variance > 0 else 0.0
    return linear, float(_mass @ (slope < SATURATED * steepest))


@dataclass(frozen=True)
class Choice:
    """The initializers of a table that keep an activation's gradients best, whatever the fan, and what would exactly.

    `chi` is the one furthest from 1 over frameworks and layers. `critical_gain` is the root of the critical sigma_w^2
    without bias: weights of variance critical_gain^2 / fan_in; None where there is none.
    """

    activation: str
    initializers: tuple[str, ...]
    chi: float | None
    critical_gain: float | None
    verdict: str


def choices(rows: Sequence[Row]) -> list[Choice]:
    """Return for each activation the initializers whose chi, at its worst over frameworks and layers, is nearest to 1.

    Where the signal's variance does not settle, it goes as chi^l too: |log chi| measures the loss both ways. Rules that
    ignore the fans are left out, as what they do depends on the width.
    """
    found = []
    for name in dict.fromkeys(row.activation for row in rows):
        worst: dict[str, Row] = {}
        for row in rows:
            if row.activation == name and rule(row.initializer.split("(")[0]).needs_fans:
                worst[row.initializer] = max(worst.get(row.initializer, row), row, key=_loss)
        if not worst:
            continue
        least = min(map(_loss, worst.values()))
        best = [row for row in worst.values() if _loss(row) <= least + EDGE]
        critical = float(phase_diagram(activation(name), 1.0, 0.0).critical_sigma_w2[0])
        gain = math.sqrt(critical) if math.isfinite(critical) else None
        names = tuple(row.initializer for row in best)
        found.append(Choice(name, names, best[0].chi, gain, best[0].verdict))
    return found


def _loss(row: Row) -> float:
    return abs(math.log(row.chi)) if row.chi else math.inf
