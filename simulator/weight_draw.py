"""Reference sampler: draws whole weight tensors from their law with a NumPy generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Conv2d, Linear, Node
from varprop.simulator.weight_law import TRUNCATION_POINT, WeightLaw


def draw(law: WeightLaw, node: Node, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a layer's weights.

    Parameters
    ----------
    law
        As `weight_law` returns it for `node`.
    node
        A convolution or a linear layer.
    rng
        Source of randomness.

    Returns
    -------
    ndarray
        Shape (out, in / groups, kh, kw) for a convolution, (out, in) for a linear layer.

    Notes
    -----
    The orthogonal laws take Q of a Gaussian matrix's QR decomposition with the signs of R's diagonal moved into it;
    without them Q is not uniform over orthogonal matrices (F. Mezzadri, Notices of the AMS 54, 2007, section 5).
    """
    shape = _weight_shape(node)
    if law.matrix is None:
        return _independent(law, shape, rng)
    matrix = law.limit * _orthogonal(law.matrix, rng)
    if law.distribution == "delta_orthogonal":
        weights = np.zeros(shape)
        taps = weights.reshape(*shape[:2], -1)
        taps[:, :, taps.shape[2] // 2] = matrix  # the centre, as both sides are odd
        return weights
    # A matrix row is an output channel, but for Keras's depthwise kernels: there it is one multiplier of all channels.
    rows = law.matrix[0]
    return matrix.reshape(rows, shape[0] // rows, *shape[1:]).swapaxes(0, 1).reshape(shape)


def draw_bias(law: WeightLaw, node: Node, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a layer's bias, of shape (out,), from the law that `bias_law` returns for it."""
    return _independent(law, _weight_shape(node)[:1], rng)


def _weight_shape(node: Node) -> tuple[int, ...]:
    match node.operation:
        case Conv2d(in_channels=channels, out_channels=out, kernel=kernel, groups=groups):
            return out, channels // groups, *kernel
        case Linear(in_features=features, out_features=out):
            return out, features
    raise TypeError(f"{node.name} ({node.kind}) has no weights")


def _independent(law: WeightLaw, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    match law.distribution:
        case "normal":
            return law.mean + law.std * rng.standard_normal(shape)
        case "uniform":
            return law.mean + rng.uniform(-law.limit, law.limit, shape)
        case "truncated_normal":
            z = rng.standard_normal(shape)
            while (outside := np.abs(z) > TRUNCATION_POINT).any():
                z[outside] = rng.standard_normal(np.count_nonzero(outside))
            return law.mean + law.limit / TRUNCATION_POINT * z
        case "constant":
            return np.full(shape, law.mean)
    raise ValueError(f"weights of a {law.distribution} law are not independent")


def _orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diagonal(r))
    return q if rows >= columns else q.T
