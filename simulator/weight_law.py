"""From an initializer's name to the law of one weight, by each framework's own rule and fans.

References
----------
.. [1] X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
   eq. 16 (uniform; the normal one has the same variance, eq. 12).
.. [2] K. He et al., "Delving deep into rectifiers", ICCV 2015, eqs. 10, 14 and 15.
.. [3] Y. LeCun et al., "Efficient BackProp", 1998, eq. 16.
.. [4] A. Saxe, J. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
   networks", ICLR 2014, section 3.
.. [5] L. Xiao et al., "Dynamical isometry and a mean field theory of CNNs", ICML 2018, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.network import Conv2d, FrameworkName, Initializer, Linear, Network, Node

Distribution = Literal["normal", "uniform", "truncated_normal", "orthogonal", "delta_orthogonal", "constant"]
Parameters = Mapping[str, float | str]

TRUNCATION_POINT = 2.0
"""Where Keras, TensorFlow and this package cut a normal, in deviations of the parent."""

_density = math.exp(-(TRUNCATION_POINT**2) / 2) / math.sqrt(2 * math.pi)
_inside = math.erf(TRUNCATION_POINT / math.sqrt(2))
# Integration by parts: E z^2 = 1 - 2 c pdf(c) / P(|z| < c) and E z^4 = 3 E z^2 - 2 c^3 pdf(c) / P(|z| < c).
_second = 1 - 2 * TRUNCATION_POINT * _density / _inside
_fourth = 3 * _second - 2 * TRUNCATION_POINT**3 * _density / _inside

TRUNCATION_FACTOR = math.sqrt(_second)
"""Deviation of a standard normal truncated at two deviations (0.8796...)."""


@dataclass(frozen=True, slots=True)
class WeightLaw:
    """The law of one weight of a layer, as drawn.

    The support is `mean` +- `limit`. Weights are independent but for the two orthogonal laws, where a matrix of shape
    `matrix`, or its transpose, has orthonormal columns times `limit`. A `delta_orthogonal` kernel is that matrix at
    its centre and zero elsewhere; its `std` and `excess_kurtosis` are averages over all taps.
    """

    distribution: Distribution
    mean: float
    std: float
    limit: float
    excess_kurtosis: float
    framework_fan_in: int
    framework_fan_out: int
    matrix: tuple[int, int] | None = None

    def fresh(self, outputs: int, fan_in: float) -> float:
        """Variance over draws of the outputs' mean product for two unlike inputs, over the squared second moment.

        It is one over the number of independent outputs, to leading order. Of rows of a random orthogonal matrix it is
        m (n - m) / (n (n - 1) (n + 2)) times n^2 / m^2, that of a projection on m of n dimensions: a whole basis leaves
        nothing to chance.
        """
        return 1 / outputs if self.matrix is None else max(1 / outputs - 1 / fan_in, 0.0)

    @property
    def variance(self) -> float:
        """Variance of one weight."""
        return self.std**2

    @property
    def second_moment(self) -> float:
        """Second moment of one weight: the variance and the squared mean."""
        return self.mean**2 + self.std**2


@dataclass(frozen=True, slots=True)
class Site:
    """Where an initializer is applied: a layer's operation, its name for messages, the framework and its fans."""

    name: str
    operation: Conv2d | Linear
    framework: FrameworkName
    fans: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """One initializer: its parameters with their defaults, in positional order, and its law.

    A parameter whose default is a number (or None: worked out from others) takes a number, `choices` lists the words
    that the others take. `needs_fans` says that the rule asks for a layer's fans, so that a bias cannot use it.
    """

    description: str
    law: Callable[[Parameters, Site], WeightLaw]
    defaults: Mapping[str, float | str | None] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs_fans: bool = True


def framework_fans(operation: Conv2d | Linear, framework: FrameworkName) -> tuple[int, int]:
    """Return (fan_in, fan_out) as the framework's own initializers count them.

    Both read them off the kernel's shape: torch (out, in / groups, kh, kw) gives in / groups * kh * kw and
    out * kh * kw; Keras's (kh, kw, in / groups, out) gives the same, but its depthwise kernel (kh, kw, in, multiplier)
    gives in * kh * kw and multiplier * kh * kw. A convolution with one channel a group is Keras's DepthwiseConv2D.

    Examples
    --------
    >>> from varprop.simulator.network import Conv2d, ZEROS
    >>> depthwise = Conv2d(96, 96, (3, 3), (1, 1), (1, 1, 1, 1), 96, ZEROS, None)
    >>> framework_fans(depthwise, "torch"), framework_fans(depthwise, "keras")
    ((9, 864), (864, 9))
    """
    if isinstance(operation, Linear):
        return operation.in_features, operation.out_features
    taps = operation.kernel[0] * operation.kernel[1]
    if framework == "keras" and operation.depthwise:
        return operation.in_channels * taps, operation.out_channels // operation.groups * taps
    return operation.in_channels // operation.groups * taps, operation.out_channels * taps


def weight_law(node: Node, framework: FrameworkName) -> WeightLaw:
    """Return the law of a convolution's or linear layer's weights.

    Raises
    ------
    UserError
        The layer's initializer is unknown, or not defined for a layer of this shape.
    TypeError
        The node has no weights.
    """
    operation = _weighted(node)
    return _law(operation.weight, Site(node.name, operation, framework, framework_fans(operation, framework)))


def bias_law(node: Node, framework: FrameworkName) -> WeightLaw | None:
    """Return the law of a layer's bias, None where it has none.

    The fans are the weights': torch's default bias is uniform within 1 / sqrt(fan_in) of them, Keras's is zero.

    Raises
    ------
    UserError
        The initializer is unknown or needs fans or a matrix, which a bias has not.
    TypeError
        The node has no weights.
    """
    operation = _weighted(node)
    if operation.bias is None:
        return None
    site = Site(node.name, operation, framework, framework_fans(operation, framework))
    if operation.bias.name == "default":
        return _uniform(site, 1 / math.sqrt(3 * max(1, site.fans[0]))) if framework == "torch" else _constant(site, 0.0)
    if rule(operation.bias.name).needs_fans:
        usable = [name for name, known in RULES.items() if not known.needs_fans]
        raise UserError(f"{node.name}: bias initializer", operation.bias, "one of " + ", ".join([*usable, "default"]))
    return _law(operation.bias, site)


def bias_square(node: Node, framework: FrameworkName) -> float:
    """Return the second moment of a layer's bias, zero where it has none."""
    law = bias_law(node, framework)
    return 0.0 if law is None else law.second_moment


def check_initializers(network: Network) -> None:
    """Raise UserError if a layer's initializer is unknown or not defined for its shape."""
    for node in {node.operation: node for node in network.nodes}.values():
        if isinstance(node.operation, Conv2d | Linear):
            weight_law(node, network.framework)
            bias_law(node, network.framework)


def rule(name: str, what: str = "--init") -> Rule:
    """Return the rule of an initializer by its name or alias; `what` names the option in the error."""
    canonical = ALIASES.get(name, name)
    if canonical not in RULES:
        raise did_you_mean(what, name, [*RULES, *ALIASES])
    return RULES[canonical]


def _weighted(node: Node) -> Conv2d | Linear:
    if not isinstance(node.operation, Conv2d | Linear):
        raise TypeError(f"{node.name} ({node.kind}) has no weights")
    return node.operation


def _law(initializer: Initializer, site: Site) -> WeightLaw:
    known = rule(initializer.name)
    given = dict(initializer.parameters)
    defaults = {key: value for key, value in known.defaults.items() if value is not None}
    return known.law(defaults | given, site)


def _normal(site: Site, std: float) -> WeightLaw:
    return WeightLaw("normal", 0.0, std, math.inf, 0.0, *site.fans)


def _truncated_normal(site: Site, std: float) -> WeightLaw:
    limit = TRUNCATION_POINT * std / TRUNCATION_FACTOR
    return WeightLaw("truncated_normal", 0.0, std, limit, _fourth / _second**2 - 3, *site.fans)


def _uniform(site: Site, std: float) -> WeightLaw:
    return WeightLaw("uniform", 0.0, std, math.sqrt(3) * std, -1.2, *site.fans)


def _constant(site: Site, value: float) -> WeightLaw:
    return WeightLaw("constant", value, 0.0, 0.0, 0.0, *site.fans)


def _scaled(site: Site, shape: Literal["normal", "uniform"], std: float) -> WeightLaw:
    """Return a fan-scaled law: what Keras calls normal is truncated, and has the deviation after truncation."""
    if shape == "uniform":
        return _uniform(site, std)
    return _truncated_normal(site, std) if site.framework == "keras" else _normal(site, std)


def _he(shape: Literal["normal", "uniform"]) -> Callable[[Parameters, Site], WeightLaw]:
    def law(parameters: Parameters, site: Site) -> WeightLaw:
        gain = parameters.get("gain", math.sqrt(2 / (1 + float(parameters["a"]) ** 2)))
        fan = site.fans[0] if parameters["mode"] == "fan_in" else site.fans[1]
        return _scaled(site, shape, float(gain) / math.sqrt(fan))

    return law


def _glorot(shape: Literal["normal", "uniform"]) -> Callable[[Parameters, Site], WeightLaw]:
    return lambda parameters, site: _scaled(site, shape, float(parameters["gain"]) * math.sqrt(2 / sum(site.fans)))


def _lecun(shape: Literal["normal", "uniform"]) -> Callable[[Parameters, Site], WeightLaw]:
    return lambda parameters, site: _scaled(site, shape, 1 / math.sqrt(site.fans[0]))


def _default(parameters: Parameters, site: Site) -> WeightLaw:
    if site.framework == "keras":
        return _glorot("uniform")({"gain": 1.0}, site)
    return _he("uniform")({"a": math.sqrt(5), "mode": "fan_in"}, site)


def _truncated(parameters: Parameters, site: Site) -> WeightLaw:
    std = float(parameters["std"])
    return _truncated_normal(site, std if parameters["after"] == "true" else std * TRUNCATION_FACTOR)


def _orthogonal(parameters: Parameters, site: Site) -> WeightLaw:
    operation, gain = site.operation, float(parameters["gain"])
    if isinstance(operation, Linear):
        matrix = operation.out_features, operation.in_features
    elif site.framework == "keras" and operation.depthwise:
        # Keras flattens (kh, kw, in, multiplier) to (kh * kw * in, multiplier): all channels share one unit vector.
        matrix = operation.out_channels // operation.groups, site.fans[0]
    else:
        matrix = operation.out_channels, site.fans[0]
    longer = max(matrix)
    # An entry of a uniformly random unit vector in n dimensions: E x^2 = 1 / n, E x^4 = 3 / (n (n + 2)).
    kurtosis = 3 * longer / (longer + 2)
    return WeightLaw("orthogonal", 0.0, gain / math.sqrt(longer), gain, kurtosis - 3, *site.fans, matrix=matrix)


def _delta_orthogonal(parameters: Parameters, site: Site) -> WeightLaw:
    operation, gain = site.operation, float(parameters["gain"])
    if isinstance(operation, Linear):
        n_out, n_in, kernel, groups = operation.out_features, operation.in_features, (1, 1), 1
    else:
        n_out, n_in, kernel, groups = (
            operation.out_channels,
            operation.in_channels,
            operation.kernel,
            operation.groups,
        )
    if n_out < n_in or groups > 1 or kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise UserError(
            f"{site.name}: delta_orthogonal",
            f"{n_in} -> {n_out} channels, kernel {kernel[0]}x{kernel[1]}, {groups} group{'s' * (groups > 1)}",
            "at least as many channels out as in, an odd kernel and one group",
            "use orthogonal or another initializer",
        )
    taps = kernel[0] * kernel[1]
    # Only one tap in `taps` is not zero, with moments as in `_orthogonal`.
    kurtosis = 3 * n_out / (n_out + 2) * taps
    std = gain / math.sqrt(n_out * taps)
    return WeightLaw("delta_orthogonal", 0.0, std, gain, kurtosis - 3, *site.fans, matrix=(n_out, n_in))


_HE_DEFAULTS: dict[str, float | str | None] = {"a": 0.0, "mode": "fan_in", "gain": None}
_HE_CHOICES = {"mode": ("fan_in", "fan_out")}
_HE_TEXT = "gain^2 / fan, gain = sqrt(2 / (1 + a^2)) unless given; mode=fan_in or fan_out"

RULES: dict[str, Rule] = {
    "default": Rule("the framework's own: torch uniform, variance 1 / (3 fan_in); Keras glorot_uniform", _default),
    "he_normal": Rule(f"He: normal (Keras: truncated), variance {_HE_TEXT}", _he("normal"), _HE_DEFAULTS, _HE_CHOICES),
    "he_uniform": Rule(f"He: uniform, variance {_HE_TEXT}", _he("uniform"), _HE_DEFAULTS, _HE_CHOICES),
    "glorot_normal": Rule(
        "Glorot: normal (Keras: truncated), variance 2 gain^2 / (fan_in + fan_out)", _glorot("normal"), {"gain": 1.0}
    ),
    "glorot_uniform": Rule(
        "Glorot: uniform, variance 2 gain^2 / (fan_in + fan_out)", _glorot("uniform"), {"gain": 1.0}
    ),
    "lecun_normal": Rule("LeCun: normal (Keras: truncated), variance 1 / fan_in", _lecun("normal")),
    "lecun_uniform": Rule("LeCun: uniform, variance 1 / fan_in", _lecun("uniform")),
    "random_normal": Rule(
        "normal with deviation std, whatever the layer",
        lambda parameters, site: _normal(site, float(parameters["std"])),
        {"std": 0.05},
        needs_fans=False,
    ),
    "random_uniform": Rule(
        "uniform within +-bound, whatever the layer",
        lambda parameters, site: _uniform(site, float(parameters["bound"]) / math.sqrt(3)),
        {"bound": 0.05},
        needs_fans=False,
    ),
    "truncated_normal": Rule(
        "normal cut at two deviations; std is the deviation before the cut, or after it with after=true",
        _truncated,
        {"std": 0.05, "after": "false"},
        {"after": ("false", "true")},
        needs_fans=False,
    ),
    "orthogonal": Rule("gain times a random matrix with orthonormal rows or columns", _orthogonal, {"gain": 1.0}),
    "delta_orthogonal": Rule(
        "orthogonal at a kernel's centre, zero elsewhere (Xiao 2018)", _delta_orthogonal, {"gain": 1.0}
    ),
    "zeros": Rule("all zero", lambda parameters, site: _constant(site, 0.0), needs_fans=False),
    "constant": Rule(
        "all equal to value",
        lambda parameters, site: _constant(site, float(parameters["value"])),
        {"value": 1.0},
        needs_fans=False,
    ),
}
"""Every initializer, by its canonical name."""

ALIASES = {
    "kaiming_normal": "he_normal",
    "kaiming_uniform": "he_uniform",
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
    "normal": "random_normal",
    "uniform": "random_uniform",
}
"""Other words for the same rules."""
