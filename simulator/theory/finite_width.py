"""How far one draw of the weights strays from theory: the spread of log second moments, to first order in 1 / width.

The second moment Q of a node, over batch, channels and positions of one draw, is an average over a finite number n of
channels. Its relative fluctuation delta adds up over layers, so that log Q is close to normal (Hanin & Nica [1]_) with

    E log Q = log q - V / 2,    sd log Q = sqrt(V),    V = Var(delta),

where the log of each source counts as that of a chi-squared variable, which is exact for linear layers: V and V / 2 are
then sums of psi_1(k / 2) and of log(k / 2) - psi(k / 2) in place of 2 / k and 1 / k.

Every node's delta is a linear combination of independent sources, each a layer's own channels. Four rules:

Dense layer. Given its input, channels are independent Gaussian functions of the point (sample and position) with kernel
K, and Q averages their z^2: delta = s delta_in + own, with s the share of q that is not the bias and

    Var(own) = (2 / n) <K^2> / q^2,    <...> the mean over all pairs of points.

Of m rows of a random rotation of N inputs Q is the part of the inputs' covariance C in m directions of N, and Var(own)
the (1 - m / N) of that with tr C^2 / (tr C)^2 - 1 / N in place of <K^2> / q^2. Of sums and averages of channels that
have a mean m in common, <K^2> - m^4 counts.

Activation. Write phi(sigma u)^2 = sum_k a_k h_k(u) in orthonormal Hermite polynomials, c the correlation of two points:

    delta = s delta_in + own,    s = d log E phi^2 / d log q = a_2 / (sqrt(2) a_0),
    Var(own) = (1 / n) sum_{k != 0, 2} (a_k / a_0)^2 <c^k>.

The term k = 2 is what delta_in knows already: the channels' z^2. One sample and ReLU: 2/n of the layer and 3/n of the
activation, the 5/n of [1]_ and [2]_. Behind a normalisation c has no mean, so that <c^3> is what the kernel of one draw
strays by: a channel's skewness over the points (see `skewness`).

Gate. Of the gradient, with correlation gamma, and phi'(sigma u)^2 = sum_k b_k h_k(u):

    delta_back = delta_back_out + t delta_in + own,    t = b_2 / (sqrt(2) b_0),
    Var(own) = (1 / n) < sum_{k != 0, 2} (b_k / b_0)^2 c^k + 2 gamma^2 sum_{k > 0} (b_k / b_0)^2 c^k >.

Dense layer, back. The gradient at its n inputs is Gaussian given all later layers: own as forward, of its kernel.

Assumptions: weights on the way back are independent of those on the way forward; of weights that are not normal the
squared lengths of their vectors are followed, by kappa / fan more variable; 1 / n^2 is left out, so that log q must
itself be right to 1 / n.
Beyond what batch normalisation or a depthwise layer sends back, and after averaging positions whose mean is small, the
spread is not known.

References
----------
.. [1] B. Hanin, M. Nica, "Products of many large random matrices and gradients in deep neural networks", Commun. Math.
   Phys. 376, 2020 (arXiv 1812.05994), theorem 1: log-normal with variance 5 sum 1/n for ReLU.
.. [2] B. Hanin, D. Rolnick, "How to start training: the effect of initialization and architecture", NeurIPS 2018
   (arXiv 1803.01719), theorem 5.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.initializers import WeightLaw, bias_law
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    GlobalAveragePool,
    Linear,
    Network,
    Node,
)
from varprop.simulator.theory.corrections import share_of_batch
from varprop.simulator.theory.fluctuations import Fluctuations, LogLaw
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pair_series import log_second_moment, mean_square_correlation, pair_mean, square_series
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.patchwork import beside, shared_with_inside
from varprop.simulator.theory.signal import Signal
from varprop.simulator.theory.skewness import EVEN, Skewness, output_skewness
from varprop.simulator.theory.strays import together as summed_up


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

    def mixed(self, kernel: PairKernel, width: float, window: Window | None, gates: float = 0.0) -> _Spread:
        """After a dense layer that averages over `width` channels with the given kernel, and over a window.

        The correlation of two samples over n Gaussian channels has variance (1 - c^2)^2 / n; weighted with the product
        of their second moments, and where it strayed before from a mean of c, more. Gates that two samples share leave
        fewer channels. After j windows of T taps about 1 / (1 + (T - 1) j) of it is left: a stray that a window has
        averaged is smooth already.
        """
        square = _apart_square(kernel)
        fresh = max(1.0 - square - self.variance, 0.0) * (1.0 - square + 2 * self.variance) * (1.0 + gates) / width
        taps = 1 if window is None else window.live
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
    skewness, lopsided
        Of the channels over the points; and the mean square of what weights bring behind a normalisation, of either
        sign.
    """

    weights: tuple[float, ...]
    own: float
    channels: float
    spread: _Spread = _Spread()
    kurtosis: float = 0.0
    skewness: Skewness = EVEN
    lopsided: float = 0.0


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


def log_laws(
    network: Network, signals: list[Signal], gradients: list[Gradient]
) -> tuple[list[LogLaw | None], list[LogLaw | None]]:
    """Return the law over draws of every node's log second moment, forward and backward.

    Parameters
    ----------
    network
        The nodes.
    signals, gradients
        What theory found for each.

    Returns
    -------
    forward, backward
        Of each node; None where the second moment is zero or the spread is not known (see the module's assumptions).
    """
    count = len(network)
    found = Fluctuations(network)
    steps: list[_Step] = []
    for index in range(count):
        step = _forward(network, index, signals, steps)
        steps.append(step)
        found.add(index, step.weights, step.own)
    returns = [_Return((), 0.0, math.nan)] * count
    for index in range(count - 1, -1, -1):
        back = _backward(network, index, signals, gradients, returns)
        returns[index] = back
        found.add_back(index, back.shares, back.slope, back.own)
    return [_known(law) for law in found.forward], [_known(law) for law in found.backward]


def _known(law: LogLaw) -> LogLaw | None:
    return LogLaw(max(law.variance, 0.0), law.deficit) if math.isfinite(law.variance) else None


def _forward(network: Network, index: int, signals: list[Signal], steps: list[_Step]) -> _Step:
    node, signal = network.nodes[index], signals[index]
    inputs = [signals[i] for i in node.inputs]
    before = [steps[i] for i in node.inputs]
    if signal.known is not None:
        return _Step((0.0,) * len(before), 0.0, 0.0)
    if log_second_moment(signal.kernel) == -math.inf:
        return _Step((0.0,) * len(before), math.nan, math.nan)
    match node.operation:
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
            # Correlations that centring leaves are larger, and stray more.
            contrast = 1.0 - inputs[0].kernel.pair_mean / inputs[0].kernel.second_moment
            spread = before[0].spread.times(contrast**-2 if contrast > 0 else 0.0)
            lopsided, weighted = 0.0, inputs[0].weighted
            if signal.sample is None and weighted is not None:
                (source,) = network.nodes[node.inputs[0]].inputs
                lopsided = output_skewness(weighted, steps[source].skewness)
            return _Step((slope,), own, channels, spread, lopsided=lopsided)
        case Activation(function=name):
            return _activated(activation(name), node, signal, inputs[0], before[0])
        case Add():
            return _added(node, signal, inputs, before)
        case AveragePool() | GlobalAveragePool():
            mean = float(signal.mean.mean()) ** 2 / signal.kernel.second_moment
            if mean < 0.5:
                # A mean of positions is ruled by its kernel's slow modes, whose spread is not followed.
                return _Step((1.0,), math.nan, math.nan)
            # Not the channels' squares before, but those after are averaged: the source may take away.
            channels = 2 / node.shape[0] * max(_freely(signal), 0.0)
            return _Step((1.0,), channels - before[0].channels, channels, before[0].spread)
    return _Step((1.0,), 0.0, before[0].channels, before[0].spread, skewness=before[0].skewness)


def _dense(network: Network, node: Node, signal: Signal, source: Signal, before: _Step) -> _Step:
    assert signal.weighted is not None
    bias = bias_law(node, network.framework)
    weight = 1.0 if bias is None else 1.0 - min(bias.second_moment / _size(signal.kernel), 1.0)
    kurtosis = 0.0 if bias is None else bias.excess_kurtosis * (1.0 - weight) ** 2
    spread = before.spread.mixed(source.kernel, source.width, signal.weighted.window)
    apart = _strayed(signal, source) if network.has_batch_norm else spread.variance
    square = mean_square_correlation(signal.kernel, _inside(signal)) + apart * _apart(signal)
    law, fan_in = signal.weighted.law, signal.weighted.fan_in
    # Mean over points of x_i^2 x_i'^2 of an input, over its second moment squared.
    inputs = 1.0 + (before.channels * source.width if math.isfinite(source.width) else 0.0)
    lengths = weight**2 * _lengths(law, fan_in) * inputs
    if law.matrix is not None:
        square = max(square - 1.0 / fan_in, 0.0)  # of inputs that are alike in all directions projections are, too
    channels = (2 * square * _free(law) + lengths + kurtosis) / node.shape[0]
    return _Step((weight,), channels, channels, spread, kurtosis)


def _strayed(signal: Signal, source: Signal) -> float:
    """Return the variance of the correlation of different points behind a dense layer of a net with normalisation.

    There deviations of the centred kernel are known. Those of its products with the channels' mean, m z over n
    channels, are fresh, and a window averages them.
    """
    weighted = signal.weighted
    assert weighted is not None
    varied = _varied(signal.kernel)
    taps = 1 if weighted.window is None else weighted.window.live
    crossed = 2 * varied * (1.0 - varied) / (source.width * taps)
    return varied**2 * weighted.strays.variance + crossed


def _varied(kernel: PairKernel) -> float:
    """Share of a second moment that is not the channels' mean."""
    return 1.0 - _apart_mean(kernel) / kernel.second_moment if kernel.second_moment > 0 else 0.0


def _activated(function: ActivationFunction, node: Node, signal: Signal, source: Signal, before: _Step) -> _Step:
    squares = square_series(function, source.kernel)
    slope = squares.slope
    if signal.sample is not None:
        channels = _measured(signal, node)
        own = max(channels - slope**2 * before.channels, 0.0)
    else:
        level = signal.kernel.diagonal / signal.kernel.second_moment
        own = max(pair_mean(source.kernel, squares.series, level=level, inside=_inside(source)), 0.0)
        if function.homogeneous:
            # E phi^4 / (E phi^2)^2 is proportional to 3 + excess kurtosis; z^2 knows of one.
            own += before.kurtosis * ((1.0 + float(squares.series.sum()) + 2.0) / 3.0 - 1.0)
        if source.law is not None:
            # Of normalised points, on a sphere of d dimensions, (z^2)^2 is d / (d + 2) of what it is of normal ones.
            own /= 1.0 + 2.0 / source.law.own_sphere
        own /= node.shape[0]
        channels = slope**2 * before.channels + own
    # Of a channel that has the skewness g over the points, the mean of h_3 is g / sqrt(6).
    own += float(squares.series[3]) / 6 * before.lopsided / node.shape[0]
    assert signal.duals is not None
    gates = signal.duals.derivative
    scale = log_second_moment(source.kernel) + gates.log_scale - log_second_moment(signal.kernel)
    response = _apart_mean(gates) * math.exp(scale)
    # What the kernel itself says of channels that go together is in <c^3>.
    skewness = Skewness.activated(squares.third, source.together * _apart(source))
    return _Step((slope,), own, channels, before.spread.times(response**2), skewness=skewness)


def _added(node: Node, signal: Signal, inputs: list[Signal], before: list[_Step]) -> _Step:
    logs = [log_second_moment(s.kernel) - log_second_moment(signal.kernel) for s in inputs]
    weights = tuple(math.exp(log) for log in logs)
    # Products of different branches: what the sum's kernel has beyond the squares of its parts.
    parts = [w * w * _freely(s) for w, s in zip(weights, inputs, strict=True)]
    crossed = max(_freely(signal) - sum(parts), 0.0)
    spreads = [step.spread.times(w * w) for w, step in zip(weights, before, strict=True)]
    # Branches that start from one map stray alike.
    spread = _Spread(*(sum(math.sqrt(v) for v in kind) ** 2 for kind in zip(*map(astuple, spreads), strict=True)))
    together = spread.variance - sum(part.variance for part in spreads)
    if all(s.strays.rooted for s in inputs):
        shares = [w * _varied(s.kernel) for w, s in zip(weights, inputs, strict=True)]
        strays = [s.strays for s in inputs]
        alone = sum(share**2 * part.variance for share, part in zip(shares, strays, strict=True))
        together = summed_up(shares, strays, inputs[0].kernel).variance - alone
    crossed += together * _apart(signal)
    own = crossed * 2 / node.shape[0]
    channels = own + sum(w * w * step.channels for w, step in zip(weights, before, strict=True))
    skewness = sum(w**1.5 * step.skewness.alone for w, step in zip(weights, before, strict=True))
    lopsided = sum(w**3 * step.lopsided for w, step in zip(weights, before, strict=True))
    return _Step(weights, own, channels, spread, skewness=Skewness(skewness), lopsided=lopsided)


def _freely(signal: Signal) -> float:
    """Return half of what one channel's squares vary by, if Gaussian: what all channels have on the mean is no chance.

    The covariance of two squares is 2 K^2 - 2 m^4 at points of the product K and the mean m.
    """
    size = signal.kernel.second_moment
    mean = float(signal.mean.mean()) ** 2 / size if size > 0 else 0.0
    return mean_square_correlation(signal.kernel, _inside(signal)) - mean**2


def _measured(signal: Signal, node: Node) -> float:
    """Relative variance of a sampled channel's mean square over the batch, over the number of channels."""
    sample = signal.draw()
    # The second half mirrors the first.
    half = sample.values.shape[2] // 2
    values, fixed = sample.values[..., :half], [field[:, :half] for field in sample.normalised]
    single = np.einsum("psc,psc->sc", values, values) / len(values)
    squares = single.mean(axis=0)
    share = share_of_batch(single[:, :, None], fixed, signal.kernel.layout.batch)
    variance = float(squares.var(ddof=1)) * share
    mean = float(squares.mean())
    return variance / mean**2 / node.shape[0] if mean > 0 else 0.0


def _backward(
    network: Network, index: int, signals: list[Signal], gradients: list[Gradient], returns: list[_Return]
) -> _Return:
    node, signal, gradient = network.nodes[index], signals[index], gradients[index]
    readers = network.consumers[index]
    inside = _inside(gradient)
    shares = _shares(network, index, gradients)
    unknown = any(share and math.isnan(returns[reader].own) for reader, share in zip(readers, shares, strict=True))
    if unknown or log_second_moment(gradient.kernel) == -math.inf or signal.data is not None:
        return _Return(shares, 0.0, math.nan)
    slope, own, spread, shared = 0.0, 0.0, _Spread(), 0.0
    known, fresh = 0.0, 0.0 if readers else 1.0
    for reader, share in zip(readers, shares, strict=True):
        if not share:
            continue
        after, arriving, stray = network.nodes[reader], gradients[reader], returns[reader].spread
        match after.operation:
            case Conv2d(depthwise=True) | BatchNorm():
                own = math.nan
            case Conv2d() | Linear():
                weighted = signals[reader].weighted
                assert weighted is not None
                fresh = _free(weighted.law, back=True)
                own += share**2 * _lengths(weighted.law, after.fan_out or 1) / node.shape[0]
                stray = stray.mixed(arriving.kernel, after.shape[0], weighted.window, returns[reader].gates)
            case Add():
                known += share**2 * mean_square_correlation(arriving.kernel, inside)
            case Activation() if signal.known is not None:
                own = math.nan
            case Activation(function=name):
                duals = signals[reader].duals
                assert duals is not None
                gates = duals.derivative
                squares = square_series(activation(name), signal.kernel)
                level = arriving.kernel.diagonal * gates.diagonal
                noise = pair_mean(
                    signal.kernel, squares.gates, level=level / float(level.mean()), inside=_inside(signal),
                    gradient=arriving.kernel, spread=stray.variance, square=squares.gate_square,
                )  # fmt: skip
                slope += share * squares.gate_slope
                own += share**2 * max(noise, 0.0) / node.shape[0]
                stray = stray.times((_apart_mean(gates) / gates.second_moment) ** 2)
                correlation = math.sqrt(_apart_square(signal.kernel))
                shared = float(correlation ** np.arange(len(squares.gates)) @ squares.gates)
                shared += squares.gate_square * correlation**2
        spread = spread.plus(stray.times(share**2))
    if fresh:
        square = mean_square_correlation(gradient.kernel, inside) + spread.variance * _apart(gradient)
        own += 2 / node.shape[0] * fresh * max(square - known, 0.0)
    return _Return(shares, slope, own, spread, shared)


def _shares(network: Network, index: int, gradients: list[Gradient]) -> tuple[float, ...]:
    """Share of each consumer in a node's gradient; branches that are not plain shortcuts count alike."""
    readers = network.consumers[index]
    if len(readers) < 2:
        return (1.0,) * len(readers)
    here = log_second_moment(gradients[index].kernel)
    shortcuts = {
        r: math.exp(min(log_second_moment(gradients[r].kernel) - here, 0.0))
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


def _lengths(law: WeightLaw, fan: int) -> float:
    """Relative variance of a weight vector's squared length, less that of a Gaussian one (which `_free` is about)."""
    return 0.0 if law.matrix is not None else law.excess_kurtosis / fan


def _size(kernel: PairKernel) -> float:
    return math.exp(min(max(log_second_moment(kernel), -700.0), 700.0))


def _inside(of: Signal | Gradient) -> float:
    """Share of a map's positions that a cut-out carries; pieces of images stand for all of theirs, but for edges.

    Means over channels are taken out of these pieces, so that their correlations cancel; those of positions further
    apart would not.
    """
    if of.amplitude is None or of.kernel.layout.profiles > 1 or of.kernel.layout.pieces:
        return beside(shared_with_inside(of.far, of.amplitude)) if isinstance(of, Signal) else 1.0
    return float(of.kernel.values.shape[1] / of.amplitude.size)


def _apart(of: Signal | Gradient) -> float:
    """Share of pairs of different points."""
    return 1.0 - _inside(of) / float(of.kernel.values.shape[1] * of.kernel.layout.batch)


def _apart_mean(kernel: PairKernel) -> float:
    """Mean over pairs of different points (zero if there are none)."""
    same = 1 / (kernel.values.shape[1] * kernel.layout.batch)
    return (kernel.pair_mean - same * kernel.second_moment) / (1 - same) if same < 1 else 0.0


def _apart_square(kernel: PairKernel) -> float:
    """Mean squared correlation of different points (one if there are none)."""
    same = 1 / (kernel.values.shape[1] * kernel.layout.batch)
    return max((mean_square_correlation(kernel) - same) / (1 - same), 0.0) if same < 1 else 1.0
