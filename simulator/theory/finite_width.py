"""How far one draw of the weights strays from theory: the spread of log second moments, to first order in 1 / width.

The second moment Q of a node, over batch, channels and positions of one draw, is an average over a finite number of
channels n. Its relative fluctuation delta adds up over layers, so that log Q is close to normal (Hanin & Nica [1]_) with

    E log Q = log q - V / 2,    sd log Q = sqrt(V),    V = Var(delta).

Every node's delta is a linear combination of independent sources, each a layer's own channels, followed by four rules.

Dense layer. Given its input, channels are independent Gaussian functions of the point x (sample and position) with kernel
K, and Q averages their z^2: delta = s delta_in + own, with s the share of q that is not the bias and

    Var(own) = (2 / n) <K^2> / q^2,    <...> the mean over all pairs of points.

Activation. Write phi(sigma u)^2 = sum_k a_k h_k(u) in orthonormal Hermite polynomials, c the correlation of two points:

    delta = s delta_in + own,    s = d log E phi^2 / d log q = a_2 / (sqrt(2) a_0),
    Var(own) = (1 / n) sum_{k != 0, 2} (a_k / a_0)^2 <c^k>.

The term k = 2 is what delta_in knows already: the channels' z^2. One sample and ReLU: 2/n of the layer and 3/n of the
activation, the 5/n of [1]_ and [2]_.

Gate. Of the gradient, with correlation gamma, and phi'(sigma u)^2 = sum_k b_k h_k(u):

    delta_back = delta_back_out + t delta_in + own,    t = b_2 / (sqrt(2) b_0),
    Var(own) = (1 / n) < sum_{k != 0, 2} (b_k / b_0)^2 c^k + 2 gamma^2 sum_{k > 0} (b_k / b_0)^2 c^k >.

Dense layer, back. The gradient at its n inputs is Gaussian given all later layers: own as forward, of the gradient's kernel.

Assumptions: weights on the way back are independent of those on the way forward; weights are normal or orthogonal (other
laws differ by their excess kurtosis over fan-in); many channels, for E log and for leaving out 1 / n^2.

References
----------
.. [1] B. Hanin, M. Nica, "Products of many large random matrices and gradients in deep neural networks", Commun. Math.
   Phys. 376, 2020 (arXiv 1812.05994), theorem 1: log-normal with variance 5 sum 1/n for ReLU.
.. [2] B. Hanin, D. Rolnick, "How to start training: the effect of initialization and architecture", NeurIPS 2018
   (arXiv 1803.01719), theorem 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import eval_hermitenorm, gammaln, zeta

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.initializers import WeightLaw, bias_law, weight_law
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
)
from varprop.simulator.quadrature import gaussian_mean
from varprop.simulator.theory.backward import Gradient
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_ORDER = 40
_ENTRIES = 4096  # of a kernel that are looked at; of larger ones evenly spaced rows
_FAR = 200.0  # log of the second moment up to which an activation is evaluated as it is
_GRID = 32  # variances per unit of log q at which an activation is expanded
_SQUARE = np.array([0.0, 0.0, 1.0])

Source = tuple[str, int]
Fluctuation = dict[Source, float]
"""Relative fluctuation of a second moment: coefficients of independent sources."""


@dataclass(frozen=True)
class _Spread:
    """How far correlations of different points stray from the kernel's, from draw to draw.

    Attributes
    ----------
    variance
        Of the correlation of two different points.
    unmixed
        What it would be without convolutions, whose windows average it.
    """

    variance: float = 0.0
    unmixed: float = 0.0

    def times(self, factor: float) -> _Spread:
        return _Spread(self.variance * factor, self.unmixed * factor)

    def plus(self, other: _Spread) -> _Spread:
        return _Spread(self.variance + other.variance, self.unmixed + other.unmixed)

    def mixed(self, kernel: PairKernel, width: float, node: Node, gates: float = 0.0) -> _Spread:
        """After a dense layer that averages over `width` channels with the given kernel, and over a window.

        The correlation of two samples over n Gaussian channels has variance (1 - c^2)^2 / n; weighted with the product
        of their second moments, and where it strayed before from a mean of c, more. Gates that two samples share leave
        fewer channels. After j windows of T taps about 1 / (1 + (T - 1) j) of it is left: a stray that a window has
        averaged is smooth already.
        """
        square = _apart_square(kernel)
        fresh = max(1.0 - square - self.variance, 0.0) * (1.0 - square + 2 * self.variance) * (1.0 + gates) / width
        taps = math.prod(node.operation.kernel) if isinstance(node.operation, Conv2d) else 1
        rough = self.variance / self.unmixed if self.unmixed else 0.0
        return _Spread(self.variance / (1 + (taps - 1) * rough) + fresh / taps, self.unmixed + fresh)


@dataclass(frozen=True)
class _Step:
    """What a node makes of its inputs' fluctuations.

    Attributes
    ----------
    weights
        Of each input's fluctuation.
    own
        Variance of the source that the node adds.
    channels
        Relative variance over draws given the input of the last dense layer: that of one channel over their number.
    spread
        Of the correlations of different points.
    kurtosis
        Excess kurtosis of the channels that the bias brings.
    """

    weights: tuple[float, ...]
    own: float
    channels: float
    spread: _Spread = _Spread()
    kurtosis: float = 0.0


@dataclass(frozen=True)
class _Return:
    """The same of the gradient.

    Attributes
    ----------
    shares
        Weights of the consumers' fluctuations.
    slope
        Weight of the node's own forward fluctuation.
    own, spread
        As forward.
    gates
        Covariance of squared slopes at two different points over their squared mean, if the channels were just gated.
    """

    shares: tuple[float, ...]
    slope: float
    own: float
    spread: _Spread = _Spread()
    gates: float = 0.0


def log_variances(
    network: Network, signals: list[Signal], gradients: list[Gradient]
) -> tuple[list[float | None], list[float | None]]:
    """Return the variance over draws of every node's log second moment, forward and backward.

    Parameters
    ----------
    network
        The nodes.
    signals, gradients
        What theory found for each.

    Returns
    -------
    forward, backward
        V of each node; None where the second moment is zero, or no rule is known (behind the gradient of a
        depthwise layer, and of data whose own kernel is not carried).
    """
    count = len(network)
    sums = _Sums(network)
    steps: list[_Step] = []
    for index in range(count):
        steps.append(_forward(network, index, signals, steps))
        sums.add(index, steps[index])
    returns = [_Return((), 0.0, math.nan)] * count
    for index in range(count - 1, -1, -1):
        returns[index] = _backward(network, index, signals, gradients, returns)
        sums.add_back(index, returns[index])
    return [_known(v) for v in sums.forward], [_known(v) for v in sums.backward]


def _known(variance: float) -> float | None:
    return max(variance, 0.0) if math.isfinite(variance) else None


class _Sums:
    """Every node's fluctuation as a combination of independent sources.

    Where all paths run through one node, its fluctuation becomes a single source of all that comes after (forward) or
    before (backward), so that the cost of a chain is linear in its depth.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        reach = np.maximum.accumulate([max(readers, default=0) for readers in network.consumers])
        self._narrow = [index == 0 or bool(reach[index - 1] <= index) for index in range(len(network))]
        self._variance: dict[Source, float] = {}
        self._signals: list[Fluctuation] = []
        self._inner: list[Fluctuation] = []
        self._gradients: list[Fluctuation] = [{} for _ in network.nodes]
        self.forward: list[float] = []
        self.backward = [math.nan] * len(network)

    def add(self, index: int, step: _Step) -> None:
        """Follow a node forward."""
        terms = [(w, self._signals[i]) for w, i in zip(step.weights, self._network.nodes[index].inputs, strict=True)]
        found = self._combined(terms, ("channels", index), step.own)
        self.forward.append(self._total(found))
        self._inner.append(found)
        self._signals.append(self._single(("node", index), self.forward[index]) if self._narrow[index] else found)

    def add_back(self, index: int, step: _Return) -> None:
        """Follow a node backward."""
        terms = [(w, self._gradients[i]) for w, i in zip(step.shares, self._network.consumers[index], strict=True)]
        terms.append((step.slope, self._signals[index]))
        found = self._combined(terms, ("gradient channels", index), step.own)
        self.backward[index] = self._total(found)
        if self._narrow[index]:
            # All but what the nodes before know of this one's signal is news to them.
            shared = found.pop(("node", index), 0.0)
            later = self._single(("gradient", index), self._total(found))
            found = self._combined([(1.0, later), (shared, self._inner[index])])
        self._gradients[index] = found

    def _combined(
        self, terms: list[tuple[float, Fluctuation]], source: Source | None = None, own: float = 0.0
    ) -> Fluctuation:
        found: Fluctuation = {}
        for weight, fluctuation in terms:
            if weight:
                for key, coefficient in fluctuation.items():
                    found[key] = found.get(key, 0.0) + weight * coefficient
        if source is not None and own:
            # The log of a chi-squared of 2 / own degrees of freedom: exact for linear layers of any width.
            self._variance[source] = float(zeta(2.0, 1.0 / own)) if own > 0 else own
            found[source] = 1.0
        return found

    def _single(self, source: Source, variance: float) -> Fluctuation:
        self._variance[source] = variance
        return {source: 1.0}

    def _total(self, fluctuation: Fluctuation) -> float:
        return sum(c * c * self._variance[key] for key, c in fluctuation.items())


def _forward(network: Network, index: int, signals: list[Signal], steps: list[_Step]) -> _Step:
    node, signal = network.nodes[index], signals[index]
    inputs = [signals[i] for i in node.inputs]
    before = [steps[i] for i in node.inputs]
    if _log(signal.kernel) == -math.inf:
        return _Step((0.0,) * len(before), math.nan, math.nan)
    match node.operation:
        case Input():
            return _Step((), 0.0, 0.0)
        case Conv2d(depthwise=True):
            channels = _measured(signal, node)
            return _Step((1.0,), max(channels - before[0].channels, 0.0), channels)
        case Conv2d() | Linear():
            return _dense(network, node, signal, inputs[0], before[0])
        case BatchNorm():
            assert signal.law is not None
            slope = 1.0 - signal.law.ratio
            channels = slope**2 * before[0].channels if signal.sample is None else _measured(signal, node)
            own = max(channels - slope**2 * before[0].channels, 0.0)
            return _Step((slope,), own, channels, before[0].spread)
        case Activation(function=name):
            return _activated(activation(name), node, signal, inputs[0], before[0])
        case Add():
            return _added(node, signal, inputs, before)
        case AveragePool() | GlobalAveragePool() | MaxPool():
            mean = float(signal.mean.mean()) ** 2 / _size(signal.kernel)
            if mean < 0.5:
                # A mean of positions is ruled by its kernel's slow modes, whose spread is not followed.
                return _Step((1.0,), math.nan, math.nan)
            # Not the channels' squares before, but those after are averaged: the source may take away.
            channels = 2 / node.shape[0] * (_pair_mean(signal.kernel, _SQUARE, inside=_inside(signal)) - mean**2)
            return _Step((1.0,), channels - before[0].channels, channels, before[0].spread)
    return _Step((1.0,), 0.0, before[0].channels, before[0].spread)


def _dense(network: Network, node: Node, signal: Signal, source: Signal, before: _Step) -> _Step:
    law, bias = weight_law(node, network.framework), bias_law(node, network.framework)
    weight = 1.0 if bias is None else 1.0 - min(bias.second_moment / _size(signal.kernel), 1.0)
    kurtosis = 0.0 if bias is None else bias.excess_kurtosis * (1.0 - weight) ** 2
    spread = before.spread.mixed(source.kernel, source.width, node)
    square = _pair_mean(signal.kernel, _SQUARE, inside=_inside(signal)) + spread.variance * _apart(signal)
    channels = (2 * square * _free(law) + kurtosis) / node.shape[0]
    return _Step((weight,), channels, channels, spread, kurtosis)


def _activated(function: ActivationFunction, node: Node, signal: Signal, source: Signal, before: _Step) -> _Step:
    squares = _squares(function, _step_of(source.kernel))
    slope = squares.slope
    if signal.sample is not None:
        channels = _measured(signal, node)
        own = max(channels - slope**2 * before.channels, 0.0)
    else:
        level = signal.kernel.diagonal / signal.kernel.second_moment
        own = _pair_mean(source.kernel, squares.series, level=level, inside=_inside(source))
        if function.homogeneous:
            # E phi^4 / (E phi^2)^2 is proportional to 3 + excess kurtosis; z^2 knows of one.
            own += before.kurtosis * ((1.0 + float(squares.series.sum()) + 2.0) / 3.0 - 1.0)
        own /= node.shape[0]
        channels = slope**2 * before.channels + own
    assert signal.duals is not None
    gates = signal.duals.derivative
    response = _apart_mean(gates) * math.exp(_log(source.kernel) + gates.log_scale - _log(signal.kernel))
    return _Step((slope,), own, channels, before.spread.times(response**2))


def _added(node: Node, signal: Signal, inputs: list[Signal], before: list[_Step]) -> _Step:
    logs = [_log(s.kernel) - _log(signal.kernel) for s in inputs]
    weights = tuple(math.exp(log) for log in logs)
    # Products of different branches: what the sum's kernel has beyond the squares of its parts.
    parts = [w * w * _pair_mean(s.kernel, _SQUARE, inside=_inside(s)) for w, s in zip(weights, inputs, strict=True)]
    own = max(_pair_mean(signal.kernel, _SQUARE, inside=_inside(signal)) - sum(parts), 0.0) * 2 / node.shape[0]
    channels = own + sum(w * w * step.channels for w, step in zip(weights, before, strict=True))
    spread = reduce(_Spread.plus, (step.spread.times(w * w) for w, step in zip(weights, before, strict=True)))
    return _Step(weights, own, channels, spread)


def _measured(signal: Signal, node: Node) -> float:
    """Relative variance of a sampled channel's mean square over the batch, over the number of channels."""
    values = signal.draw().values
    # The second half mirrors the first.
    values = values[: len(values) // 2]
    single = np.einsum("csp,csp->cs", values, values) / values.shape[2]
    squares = single.mean(axis=1)
    variance = float(squares.var(ddof=1))
    samples = single.shape[1]
    if samples > 1:
        missing = 1 / samples - 1 / signal.kernel.layout.batch
        variance = max(variance - missing * float(single.var(axis=1, ddof=1).mean()), 0.0)
    return variance / float(squares.mean()) ** 2 / node.shape[0]


def _backward(
    network: Network, index: int, signals: list[Signal], gradients: list[Gradient], returns: list[_Return]
) -> _Return:
    node, signal, gradient = network.nodes[index], signals[index], gradients[index]
    readers = network.consumers[index]
    inside = _inside(gradient)
    shares = _shares(network, index, gradients)
    if _log(gradient.kernel) == -math.inf or signal.data is not None:
        return _Return(shares, 0.0, math.nan)
    slope, own, spread, shared = 0.0, 0.0, _Spread(), 0.0
    known, fresh = 0.0, 0.0 if readers else 1.0
    for reader, share in zip(readers, shares, strict=True):
        after, arriving, stray = network.nodes[reader], gradients[reader], returns[reader].spread
        match after.operation:
            case Conv2d(depthwise=True) | BatchNorm():
                own = math.nan
            case Conv2d() | Linear():
                fresh = _free(weight_law(after, network.framework), back=True)
                stray = stray.mixed(arriving.kernel, after.shape[0], after, returns[reader].gates)
            case Add():
                known += share**2 * _pair_mean(arriving.kernel, _SQUARE, inside=inside)
            case Activation(function=name):
                duals = signals[reader].duals
                assert duals is not None
                gates = duals.derivative
                squares = _squares(activation(name), _step_of(signal.kernel))
                level = arriving.kernel.diagonal * gates.diagonal
                noise = _pair_mean(
                    signal.kernel, squares.gates, level=level / float(level.mean()), inside=_inside(signal),
                    gradient=arriving.kernel, spread=stray.variance, square=squares.gate_square,
                )  # fmt: skip
                slope += share * squares.gate_slope
                own += share**2 * noise / node.shape[0]
                stray = stray.times((_apart_mean(gates) / gates.second_moment) ** 2)
                correlation = math.sqrt(_apart_square(signal.kernel))
                shared = float(np.polynomial.polynomial.polyval(correlation, squares.gates))
                shared += squares.gate_square * correlation**2
        spread = spread.plus(stray.times(share**2))
    if fresh:
        square = _pair_mean(gradient.kernel, _SQUARE, inside=inside) + spread.variance * _apart(gradient)
        own += 2 / node.shape[0] * fresh * max(square - known, 0.0)
    return _Return(shares, slope, own, spread, shared)


def _shares(network: Network, index: int, gradients: list[Gradient]) -> tuple[float, ...]:
    """Share of each consumer in a node's gradient; branches that are not plain shortcuts count alike."""
    readers = network.consumers[index]
    if len(readers) < 2:
        return (1.0,) * len(readers)
    here = _log(gradients[index].kernel)
    shortcuts = {
        r: math.exp(min(_log(gradients[r].kernel) - here, 0.0))
        for r in readers
        if isinstance(network.nodes[r].operation, Add)
    }
    others = len(readers) - len(shortcuts)
    left = max(1.0 - sum(shortcuts.values()), 0.0)
    return tuple(shortcuts[r] if r in shortcuts else left / others for r in readers)


def _free(law: WeightLaw, back: bool = False) -> float:
    """Share of the freedom that the length of a dense layer's output has, given its input: none of a rotation's."""
    if law.matrix is None:
        return 1.0
    rows, columns = law.matrix[::-1] if back else law.matrix
    return max(1.0 - rows / columns, 0.0)


@dataclass(frozen=True)
class _Squares:
    """Hermite coefficients of phi^2 and phi'^2 at one deviation, relative to the constant one.

    Attributes
    ----------
    slope, gate_slope
        s and t: logarithmic derivatives by the variance.
    series, gates
        Squared coefficients but for k = 0 and 2, with the truncated tail at the end.
    gate_square
        That of phi'^2 at k = 2.
    """

    slope: float
    gate_slope: float
    series: Array
    gates: Array
    gate_square: float


def _step_of(kernel: PairKernel) -> int:
    return round(_GRID * min(max(_log(kernel), -_FAR), _FAR))


@lru_cache(maxsize=4096)
def _squares(function: ActivationFunction, step: int) -> _Squares:
    """Expand phi^2 and phi'^2 at q = exp(step / _GRID)."""
    if function.homogeneous:
        step = 0
    q = np.full(_ORDER + 2, math.exp(step / _GRID))
    degree = np.arange(_ORDER + 1)[:, None]

    def moments(square: Array, u: Array) -> Array:
        basis = eval_hermitenorm(degree, u[None, :]) / np.exp(gammaln(degree + 1) / 2)
        return np.concatenate([basis * square, (square * square)[None, :]])

    def expanded(values: Array) -> tuple[float, Array]:
        series = (values / values[0]) ** 2
        tail = max(float(values[-1] / values[0] ** 2 - series[:-1].sum()), 0.0)
        slope = float(values[2] / values[0]) / math.sqrt(2)
        series[-1], series[0], series[2] = tail, 0.0, 0.0
        return slope, series

    sigma = float(np.sqrt(q[0]))
    value = gaussian_mean(lambda z: moments(function.value(z[0]) ** 2, z[0] / sigma), q, function.kinks)
    gate = gaussian_mean(lambda z: moments(function.derivative(z[0]) ** 2, z[0] / sigma), q, function.kinks)
    slope, series = expanded(value)
    gate_slope, gates = expanded(gate)
    return _Squares(slope, gate_slope, series, gates, 2 * gate_slope**2)


def _log(kernel: PairKernel) -> float:
    """Log of the second moment."""
    q = kernel.second_moment
    return math.log(q) + kernel.log_scale if q > 0 else -math.inf


def _size(kernel: PairKernel) -> float:
    return math.exp(min(max(_log(kernel), -700.0), 700.0))


def _inside(of: Signal | Gradient) -> float:
    """Share of a map's positions that a cut-out carries."""
    return 1.0 if of.amplitude is None else of.kernel.values.shape[1] / of.amplitude.size


def _apart(of: Signal | Gradient) -> float:
    """Share of pairs of different points."""
    return 1.0 - _inside(of) / (of.kernel.values.shape[1] * of.kernel.layout.batch)


def _apart_mean(kernel: PairKernel) -> float:
    """Mean over pairs of different points (zero if there are none)."""
    same = 1 / (kernel.values.shape[1] * kernel.layout.batch)
    return (kernel.pair_mean - same * kernel.second_moment) / (1 - same) if same < 1 else 0.0


def _apart_square(kernel: PairKernel) -> float:
    """Mean squared correlation of different points (one if there are none)."""
    same = 1 / (kernel.values.shape[1] * kernel.layout.batch)
    return max((_pair_mean(kernel, _SQUARE) - same) / (1 - same), 0.0) if same < 1 else 1.0


def _pair_mean(
    kernel: PairKernel,
    series: Array,
    *,
    level: Array | None = None,
    inside: float = 1.0,
    gradient: PairKernel | None = None,
    spread: float = 0.0,
    square: float = 0.0,
) -> float:
    """Mean over pairs of points of f(c) = sum_k series[k] c^k, c the correlation, or with a gradient's gamma of
    f(c) + 2 gamma^2 (f(c) + square c^2).

    Parameters
    ----------
    level
        Weight of each point, with mean one; default: its second moment. Shape (profiles, positions).
    inside
        Share of the map that the kernel covers; all else is as far away as its corners are from each other.
    spread
        Variance of gamma.
    """
    layout = kernel.layout
    if level is None:
        level = kernel.diagonal / kernel.second_moment
    blocks, points = len(kernel.values), kernel.values.shape[1]
    few = max(_ENTRIES // points**2, 4)
    every = 1 if blocks * points**2 <= _ENTRIES else max((blocks - layout.profiles) // few, 1)
    looked = layout.profiles + len(range(layout.profiles, blocks, every))
    rows = min(max(_ENTRIES // (looked * points), 2), points)
    other = kernel if gradient is None else gradient
    return float(
        _pair_sum(
            kernel.values, layout.left, layout.right, layout.profiles, layout.weight, _inverse_root(kernel),
            level, series, inside, other.values, _inverse_root(other), gradient is not None, spread, square,
            -(-points // rows), every,
        )
    )  # fmt: skip


def _inverse_root(kernel: PairKernel) -> Array:
    diagonal = kernel.diagonal
    return np.divide(1.0, np.sqrt(np.maximum(diagonal, 0.0)), out=np.zeros_like(diagonal), where=diagonal > 0)


@numba.njit(cache=True)
def _pair_sum(
    values: Array, left: Ints, right: Ints, profiles: int, weight: Array, inverse: Array,
    level: Array, series: Array, inside: float, gradient: Array, gradient_inverse: Array, gated: bool, spread: float,
    square: float, row_step: int, block_step: int,
) -> float:  # fmt: skip
    """Sum `_pair_mean` over every `row_step`-th point, and every `block_step`-th pair of different samples."""
    points = values.shape[1]
    blocks = len(values)
    crossing = (blocks - profiles + block_step - 1) // block_step
    total = 0.0
    block = 0
    while block < blocks:
        a, b = left[block], right[block]
        near, seen, far = 0.0, 0.0, 0.0
        for i in range(row_step // 2, points, row_step):
            row = 0.0
            for j in range(points):
                c = values[block, i, j] * (inverse[a, i] * inverse[b, j])
                c = min(max(c, -1.0), 1.0)
                term = series[-1]
                for k in range(len(series) - 2, -1, -1):
                    term = term * c + series[k]
                if gated:
                    gamma = gradient[block, i, j] * (gradient_inverse[a, i] * gradient_inverse[b, j])
                    more = min(gamma * gamma, 1.0)
                    if block >= profiles or i != j:
                        more = min(more + spread, 1.0)
                    term += 2 * more * (term + square * c * c)
                row += level[b, j] * term
                if j == (points - 1 if i < points // 2 else 0):
                    far += term
            near += level[a, i] * row
            seen += 1.0
        if block < profiles:
            total += weight[block] * (inside * near / (seen * points) + (1 - inside) * far / seen)
        else:
            total += weight[block] * (blocks - profiles) / crossing * near / (seen * points)
        block += 1 if block < profiles else block_step
    return total
