"""What trials draw: every layer's weights and bias, and the cotangent, from the stream keyed (seed, trial, layer)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from varprop.simulator import random
from varprop.simulator.initializers import TRUNCATION_POINT, WeightLaw, bias_law, draw, weight_law
from varprop.simulator.montecarlo import stream
from varprop.simulator.network import Conv2d, FrameworkName, Linear, Node, Shape

Array = NDArray[np.floating]

WEIGHT, BIAS, COTANGENT, COMPLEMENT = range(4)
"""What a draw is for; COMPLEMENT is a weight matrix's action off the span of its inputs."""

INSIDE = math.erf(TRUNCATION_POINT / math.sqrt(2))
"""Probability between the truncation points."""

Take = Callable[[Shape], Array]


@dataclass(frozen=True, slots=True)
class Parameters:
    """One layer's draws: weights of shape (trials, out, in / groups, kh, kw) or (trials, out, in), bias (trials, out).

    `bias` is None where the layer has none, or one that is always 0.
    """

    weight: Array
    bias: Array | None


@dataclass(frozen=True, slots=True)
class Draws:
    """All that the trials first, first + 1, ... draw; every array has one of the `count` trials a row.

    Draws in float32 and in float64 differ by rounding: those in float32 are within 2e-6 of the others, relatively.
    """

    seed: int
    first: int
    count: int
    dtype: DTypeLike

    def parameters(self, index: int, node: Node, framework: FrameworkName, take: Take | None = None) -> Parameters:
        """Return the weights and bias of the node at `index`, a convolution or a linear layer.

        `take` provides the memory for an array of a given shape.
        """
        take = take or self._fresh
        law = weight_law(node, framework)
        weight = take((self.count, *_weight_shape(node)))
        if law.matrix is None:
            self._independent(law, index, WEIGHT, weight)
        else:
            for row in range(self.count):
                weight[row] = draw(law, node, np.random.default_rng([self.seed, self.first + row, index]))
        return Parameters(weight, self.bias(index, node, framework))

    def bias(self, index: int, node: Node, framework: FrameworkName) -> Array | None:
        """Return the bias of the node at `index`."""
        law = bias_law(node, framework)
        if law is None or law.second_moment == 0.0:
            return None
        out = self._fresh((self.count, node.shape[0]))
        self._independent(law, index, BIAS, out)
        return out

    def normals(self, index: int, purpose: int, out: Array) -> None:
        """Write i.i.d. N(0, 1)."""
        self._fill(out, 1.0, 1.0, True, index, purpose)

    def _fresh(self, shape: Shape) -> Array:
        return np.empty(shape, self.dtype)

    def _independent(self, law: WeightLaw, index: int, purpose: int, out: Array) -> None:
        match law.distribution:
            case "normal":
                self._fill(out, law.std, 1.0, True, index, purpose)
            case "truncated_normal":
                self._fill(out, law.limit / TRUNCATION_POINT, INSIDE, True, index, purpose)
            case "uniform":
                self._fill(out, law.limit, 1.0, False, index, purpose)
            case "constant":
                out.fill(law.mean)

    def _fill(self, out: Array, scale: float, span: float, normal: bool, index: int, purpose: int) -> None:
        fill: Callable[..., None] = stream.fill_single if out.dtype == np.float32 else stream.fill_double
        key = self.seed & random.MASK, self.seed >> 32
        fill(out.reshape(self.count, -1), scale, span, normal, (index, self.first, purpose), key)


def _weight_shape(node: Node) -> Shape:
    match node.operation:
        case Conv2d(in_channels=channels, out_channels=out, kernel=kernel_size, groups=groups):
            return out, channels // groups, *kernel_size
        case Linear(in_features=features, out_features=out):
            return out, features
    raise TypeError(f"{node.name} ({node.kind}) has no weights")
