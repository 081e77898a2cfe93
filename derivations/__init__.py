"""Symbolic derivations: one layer, activation or initializer a file; nothing here imports the simulator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varprop.derivations.theorem import Derivation

TOPICS: dict[str, str] = {
    "linear": "dense layer: second moment and covariance forward, gradient backward",
    "bias": "independent bias",
    "conv2d": "convolution with shared weights",
    "image_kernel": "image and kernel written out: every output and gradient; image_kernel(4x5,2x3) for other sizes",
    "depthwise_conv2d": "one kernel a channel: fan of the taps alone, and its fluctuation",
    "depthwise_fans": "what each framework's initializer does to a depthwise layer",
    "zero_padding": "'same' padding: how fast a map loses its second moment at the border",
    "identity": "linear activation",
    "relu": "rectifier",
    "leaky_relu": "rectifier with a slope below zero",
    "prelu": "leaky rectifier with a learned slope, and the slope's gradient",
    "relu6": "rectifier clipped at 6",
    "elu": "exponential linear unit",
    "selu": "scaled exponential linear unit, lambda and alpha from their fixed point",
    "sigmoid": "logistic function",
    "tanh": "hyperbolic tangent",
    "erf": "error function",
    "gelu": "Gaussian error linear unit",
    "silu": "sigmoid linear unit (swish)",
    "hard_swish": "piecewise quadratic swish",
    "batch_norm": "batch normalisation: output, gradient with both projections, scale invariance",
    "weight_decay": "pure decay of a network whose signal dies",
    "batch_norm_weight_decay": "scale invariance: growth, equilibrium norm, angular update",
    "add": "residual sum",
    "residual": "growth over residual blocks, with and without normalization",
    "average_pool": "mean over a window",
    "max_pool": "maximum over a window",
    "critical_variance": "weight variance that keeps signal or gradient, for any activation",
    "truncated_normal": "deviation lost to truncation",
    "he": "initializer for rectifiers",
    "glorot": "initializer for linear layers, forward and backward in compromise",
    "lecun": "initializer for unit-variance activations",
    "orthogonal": "orthogonal weights: norms kept for every draw",
    "mean_field": "variance and correlation maps, fixed points, depth scales",
    "relu_correlation": "ReLU's correlation map, and how slowly samples merge",
    "input_gradient": "gradient at the data: slopes that know the weights before them",
    "finite_width_linear": "exact law of the log of a squared norm in linear networks",
    "finite_width_relu": "fluctuations of He-ReLU networks, forward and backward",
    "drawn_levels": "layers of finite width draw by draw: what bends, and gradients that know the weights",
}
"""Topic and what it derives; each is the module of that name."""


def derivation(topic: str) -> Derivation:
    """Return the derivation of a topic, importing its module (and SymPy) on first use.

    A topic of variable size takes its sizes in parentheses: ``image_kernel(4x5,2x3)``.

    Raises
    ------
    KeyError
        If the name before the parenthesis is not in `TOPICS`.
    ValueError
        If the sizes are not understood, or the topic has none; the message says what is expected.
    """
    name, parenthesis, sizes = topic.partition("(")
    if name not in TOPICS:
        raise KeyError(name)
    module = import_module(f"varprop.derivations.{name}")
    if not parenthesis:
        found: Derivation = module.DERIVATION
        return found
    if not (hasattr(module, "sized") and sizes.endswith(")")):
        raise ValueError(f"{name}, without sizes" if not hasattr(module, "sized") else "a closing parenthesis")
    sized: Derivation = module.sized(sizes.removesuffix(")"))
    return sized
