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
    "depthwise_conv2d": "one kernel a channel: fan of the taps alone, and its fluctuation",
    "zero_padding": "'same' padding: how fast a map loses its second moment at the border",
    "identity": "linear activation",
    "relu": "rectifier",
    "leaky_relu": "rectifier with a slope below zero",
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
    "add": "residual sum",
    "average_pool": "mean over a window",
    "max_pool": "maximum over a window",
    "truncated_normal": "deviation lost to truncation",
    "he": "initializer for rectifiers",
    "glorot": "initializer for linear layers, forward and backward in compromise",
    "lecun": "initializer for unit-variance activations",
}
"""Topic and what it derives; each is the module of that name."""


def derivation(topic: str) -> Derivation:
    """Return the derivation of a topic, importing its module (and SymPy) on first use.

    Raises
    ------
    KeyError
        If `topic` is not in `TOPICS`.
    """
    if topic not in TOPICS:
        raise KeyError(topic)
    found: Derivation = import_module(f"varprop.derivations.{topic}").DERIVATION
    return found
