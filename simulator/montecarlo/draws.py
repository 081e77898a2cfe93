"""What a trial draws: every layer's weights and bias, and the cotangent, from the stream keyed (seed, trial, layer)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from varprop.simulator import random
from varprop.simulator.initializers import TRUNCATION_POINT, WeightLaw, bias_law, draw, weight_law
from varprop.simulator.jit import kernel
from varprop.simulator.network import Conv2d, FrameworkName, Linear, Node, Shape

Array = NDArray[np.floating]

WEIGHT, BIAS, COTANGENT = range(3)
OUTSIDE = math.erfc(TRUNCATION_POINT / math.sqrt(2)) / 2
"""Probability below the lower truncation point."""

philox4x32 = kernel(random.philox4x32)
unit_interval = kernel(random.unit_interval)
normal_quantile = kernel(random.normal_quantile)


@kernel
def fill(
    out: Array,
    scale: float,
    low: float,
    width: float,
    normal: bool,
    counter: tuple[int, int, int],
    key: tuple[int, int],
) -> None:
    """Write scale * f(low + width * u) with u uniform on (0, 1); f is the normal quantile, or nothing."""
    for start in range(0, out.size, 4):
        words = philox4x32(start // 4, counter[0], counter[1], counter[2], key[0], key[1])
        for k in range(min(4, out.size - start)):
            value = low + width * unit_interval(words[k])
            if normal:
                value = normal_quantile(value)
            out[start + k] = scale * value


@dataclass(frozen=True, slots=True)
class Parameters:
    """One layer's draw: weights of shape (out, in / groups, kh, kw) or (out, in), bias of shape (out,) or None."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True, slots=True)
class Draws:
    """All that one trial draws.

    Every number is rounded to `dtype` from the same float64 value, so that trials in float32 and float64 see the same
    weights. A bias whose law is the constant 0 is left out.
    """

    seed: int
    trial: int
    dtype: DTypeLike

    def parameters(self, index: int, node: Node, framework: FrameworkName) -> Parameters:
        """Return the weights and bias of the node at `index`, a convolution or a linear layer."""
        law = weight_law(node, framework)
        if law.matrix is None:
            weight = self._independent(law, _weight_shape(node), index, WEIGHT)
        else:
            weight = draw(law, node, np.random.default_rng([self.seed, self.trial, index])).astype(self.dtype)
        bias = bias_law(node, framework)
        if bias is None or bias.second_moment == 0.0:
            return Parameters(weight, None)
        return Parameters(weight, self._independent(bias, weight.shape[:1], index, BIAS))

    def cotangent(self, index: int, out: Array) -> None:
        """Write i.i.d. N(0, 1) into the gradient of the node at `index`."""
        self._fill(out, 1.0, 0.0, 1.0, True, index, COTANGENT)

    def _independent(self, law: WeightLaw, shape: Shape, index: int, purpose: int) -> Array:
        out: Array = np.empty(shape, self.dtype)
        match law.distribution:
            case "normal":
                self._fill(out, law.std, 0.0, 1.0, True, index, purpose)
            case "truncated_normal":
                parent = law.limit / TRUNCATION_POINT
                self._fill(out, parent, OUTSIDE, 1.0 - 2.0 * OUTSIDE, True, index, purpose)
            case "uniform":
                self._fill(out, law.limit, -1.0, 2.0, False, index, purpose)
            case "constant":
                out.fill(law.mean)
        return out

    def _fill(self, out: Array, scale: float, low: float, width: float, normal: bool, index: int, purpose: int) -> None:
        key = self.seed & random.MASK, self.seed >> 32
        fill(out.reshape(-1), scale, low, width, normal, (index, self.trial, purpose), key)


def _weight_shape(node: Node) -> Shape:
    match node.operation:
        case Conv2d(in_channels=channels, out_channels=out, kernel=kernel_size, groups=groups):
            return out, channels // groups, *kernel_size
        case Linear(in_features=features, out_features=out):
            return out, features
    raise TypeError(f"{node.name} ({node.kind}) has no weights")
