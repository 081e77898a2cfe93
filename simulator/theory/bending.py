"""What the gradient at the data gains because slopes know the weights that made them.

Theory takes the weights w of a layer as independent of the slopes phi'(w x) behind it. Few inputs know better. Behind
any number of wide layers the output y is a Gaussian function of the data x, whose kernel K(x, x') is that of the
layers, so that exactly (Adler, "The Geometry of Random Fields", 1981, section 2.2)

    E[(dy / dx_p)^2] = d^2 K(x, x') / dx_p dx'_p    at x' = x.

Let R_p(a, b) = dK(a, b) / dx_p with b held fixed, and T_p(a, b) = d^2 K(a, b) / dx_p dx'_p, for two points a, b of a
layer. Weights multiply both by their variance, and an activation, by Price's theorem (IRE Trans. Inf. Theory 4, 1958),
with all expectations at these two points (the topic `input_gradient` of the derivations),

    R -> E[phi'_a phi'_b] R(a, b) + E[phi''_a phi_b] R(a, a),
    T -> E[phi'_a phi'_b] T(a, b) + S(a, b),
    S = E[phi''_a phi''_b] (R(a, a) R(b, b) + R(a, b) R(b, a))
        + E[phi'''_a phi'_b] R(a, a) R(b, a) + E[phi'_a phi'''_b] R(a, b) R(b, b).

Without S that is the recursion of independent slopes. As T is linear, S adds the sum of S(a, b) E[g_a g_b] over pairs
of points, g being the gradient behind the activation: 1 / fan_in of all for each pair of places that know one input,
and most where gradients are alike, as they are behind a global pooling.

At one point S = R^2 E[(phi'^2)''], which is zero for ReLU; elsewhere its E[phi''_a phi''_b] is that of two deltas,
1 / (2 pi sqrt(q^2 - K^2)), and E[phi'''_a phi'_b] = -E[phi''_a phi''_b] K / q.

Batch normalisation divides by a channel's own variance v, which depends on the weights, too: large weights make v large
and y = z / sqrt(v) no larger. To first order S loses, for points c of the batch,

    mean over c of R(a, c) R(b, c)   times   E[(y_a d/dy_a + y_b d/dy_b) phi'(y_a) phi'(y_b)] / v:

all it has at one point behind the first weights, whose length is then without effect. Points of a normalised channel
lie on a sphere of d dimensions, where products of four coordinates are d / (d + 2) of those of Gaussian ones.

Orthogonal weights W know less of one point. Of m outputs and n inputs Gaussian ones leave |W^T g|^2 larger by the
share (m s - 1) / n, where s is the share of |g|^2 along W x. If the rows of W are orthonormal, m <= n, |W^T g| is |g|
whatever g is; of orthonormal columns, m > n, W^T g is what g has in the range of W, where W x lies, with one of m - 1
other directions as likely as the next: s + (1 - s) (n - 1) / (m - 1) of |g|^2 in place of n / m, so that 1 - n / m of
that share is left, to leading order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.network import Activation, Add, Network
from varprop.simulator.theory.duals import FAR
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.maps import Size
from varprop.simulator.theory.pairs import Layout
from varprop.simulator.theory.response import (
    Bends,
    Data,
    Response,
    activated,
    bends,
    by_profile,
    first,
    followed,
    follows,
    numbers,
)
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_LARGEST = 700.0  # log of a number
_ONE = 1e-3  # of 1 - c^2: phi''_a phi''_b of half-lines is as large as one over its root


def gained(
    network: Network,
    index: int,
    signals: list[Signal],
    gradients: list[Gradient],
    back: Gradient,
    known: dict[int, Bends],
) -> float:
    """Return the second moment of the gradient at a weighted layer's input over what independent slopes make of it.

    Followed are chains of weights, normalisations and activations, up to a pooling or a depthwise layer, and beyond a
    sum, if nothing is normalised, the shortcuts.

    Parameters
    ----------
    index
        The weighted layer, whose input is taken as given.
    signals
        Of all nodes.
    gradients
        Of the last node and all before it down to this layer.
    back
        What comes back through this layer if slopes are independent.
    known
        Bends of activations by node, to which those that are found on the way are added.
    """
    operation, whole = network.nodes[index].operation, back.kernel.second_moment * back.edges
    source, weighted = signals[network.nodes[index].inputs[0]], signals[index].weighted
    if not follows(operation) or not whole > 0.0:
        return 1.0
    assert weighted is not None
    response = first(operation, network.nodes[network.nodes[index].inputs[0]].shape, source, signals[index])
    chain, profiles = _chain(network, index, signals), response.parts.shape[1]
    if response.size == (1, 1) and not _bent(network, chain):
        return 1.0
    samples = source.kernel.layout
    data, more = Data.of(source, profiles), 0.0
    bends_of = _bends(network, chain, signals, samples, profiles, known)
    unit = source.kernel.log_scale if source.known is None else 0.0
    # Of weights w that are not Gaussian E[w^2 (w x)^2] is another, and at one point that is all that counts.
    own, rest = 1.0 + weighted.law.excess_kurtosis / 2, 1.0
    if weighted.law.matrix is not None:
        own = rest = max(1.0 - weighted.fan_in / network.nodes[index].shape[0], 0.0)
    for after in chain:
        before, signal, operation = signals[index], signals[after], network.nodes[after].operation
        if isinstance(operation, Activation):
            found, gradient = bends_of[after], gradients[len(network) - 1 - after]
            sources = _sources(response, found, data, before)
            sources[:, -1] *= own
            own = rest
            arriving = by_profile(gradient.kernel, samples, profiles)
            if gradient.kernel.size != response.size:
                arriving = np.take(arriving, numbers(response.size, (1, 1), gradient.kernel.size), axis=1)
            products = sources * arriving
            apart = gradient.kernel.log_scale + before.kernel.log_scale - back.kernel.log_scale - unit
            total = float((products @ response.pairs(response.size)).mean())
            channels = response.share * network.nodes[after].shape[0]
            more += total * math.exp(min(apart, _LARGEST)) * gradient.edges * channels
            response = activated(response, found, before, signal)
        else:
            response = followed(operation, response, before, signal)
        index = after
    return 1.0 + more / whole


def _chain(network: Network, index: int, signals: list[Signal]) -> list[int]:
    """Return the nodes behind one that can be followed.

    Behind a sum these are shortcuts alone, whose slopes see its terms; `shared` has what weights that read it do.
    """
    found: list[int] = []
    summed = False
    while True:
        before, readers = signals[index].kernel, network.consumers[index]
        if not network.has_batch_norm and len(readers) > 1:
            readers = tuple(reader for reader in readers if isinstance(network.nodes[reader].operation, Add))
        if len(readers) != 1:
            break
        (index,) = readers
        operation = network.nodes[index].operation
        added = isinstance(operation, Add) and not network.has_batch_norm
        if not (follows(operation) or added) or not before.second_moment > 0:
            break
        summed |= added
        if summed and network.nodes[index].fan_in is not None:
            break
        far = abs(before.log_scale) > FAR
        if far and isinstance(operation, Activation) and not activation(operation.function).homogeneous:
            break
        found.append(index)
    return found


def _bent(network: Network, chain: list[int]) -> bool:
    """Tell whether any activation of a chain is more than two half-lines, which at one point do not count."""
    operations = [network.nodes[index].operation for index in chain]
    return any(isinstance(op, Activation) and not activation(op.function).homogeneous for op in operations)


def _bends(
    network: Network, chain: list[int], signals: list[Signal], samples: Layout, most: int, known: dict[int, Bends]
) -> dict[int, Bends]:
    """Return the bends of the activations of a chain, those of one kind worked out together.

    Those of the same `samples` are added to the known ones.
    """
    kinds: dict[tuple[str, Size, int], list[int]] = {}
    found: dict[int, Bends] = {}
    for index in chain:
        node = network.nodes[index]
        if isinstance(node.operation, Activation):
            kernel = signals[node.inputs[0]].kernel
            if index in known and kernel.layout is samples and len(known[index].q) >= most:
                found[index] = known[index].of(most)
            else:
                kinds.setdefault((node.operation.function, kernel.size, kernel.layout.profiles), []).append(index)
    for (name, *_), indices in kinds.items():
        kernels = [signals[network.nodes[index].inputs[0]].kernel for index in indices]
        found.update(zip(indices, bends(activation(name), kernels, samples, most), strict=True))
    like = [index for index in found if signals[network.nodes[index].inputs[0]].kernel.layout is samples]
    known.update({index: found[index] for index in like})
    return found


def _sources(response: Response, found: Bends, data: Data, signal: Signal) -> Array:
    """Return S by profile and offset, an input, over the ways from an input to both points."""
    apart = data.at(response.size, response.jump)
    twice = data.at(response.size, (2 * response.jump[0], 2 * response.jump[1]))
    square, means = apart[:, -1:], data.means
    r0, r1, r2 = response.parts[:, :, :-1]
    _, s1, s2 = response.own
    both = s1 * s1 * square + (2 * s1 + s2) * s2 * means
    crossed = r0 * r0 * twice + 2 * r0 * r1 * apart + r1 * r1 * square + (2 * (r0 + r1) + r2) * r2 * means
    mixed = s1 * (r0 * apart + r1 * square + r2 * means) + s2 * (r0 + r1 + r2) * means
    bent, turned = found.bent[:, :-1], found.turned[:, :-1]
    sources = bent * (both + crossed) + 2 * turned * mixed
    sources[:, -1:] = found.widened * both
    if signal.law is not None:
        scaled = 2 * (turned + found.correlation[:, :-1] * bent)
        scaled[:, -1:] = found.widened
        sources -= response.parts[0, :, -1:] ** 2 * (apart - means) * scaled
        sources /= 1.0 + 2.0 / signal.law.sphere
    # Points that are nearly one are one: what is left of their differences is that of approximations.
    own = sources[:, -1:]
    sources = np.where(1.0 - found.correlation[:, :-1] ** 2 < _ONE, own, sources)
    sources[:, -1:] = own
    return np.asarray(sources / found.q)
