"""What the gradients of different channels have in common where a shortcut meets channels again.

Of a sum z = x + F let F be what a branch of dense layers makes of x, delta the gradient at z and g that at x, of n
channels. What comes later depends on F, and so on the weights W of the branch. As E[W f] = Var W E[df / dW] for
Gaussian weights (Stein), given the channels' values

    E[g_c] = delta_c + kappa psi_c / (n q) sum_j F_j delta_j,                                                   (1)

where psi = h phi' is half the slope of h^2, h the input of the branch's first weights, q = E h^2, and kappa is
d log E F^2 / d log q. All channels share the sum. So, with V_c = sum_j F_j E[delta_j delta_c], of which the term j = c
is not zero where slopes know F,

    E[delta_c (g_c - delta_c)] = kappa psi_c V_c / (n q),
    E[g_c g_c'] = E[delta_c delta_c'] + kappa (psi_c V_c' + V_c psi_c') / (n q)
                  + kappa^2 psi_c psi_c' / (n q)^2 sum_ij F_i F_j E[delta_i delta_j].

Products of two channels of order 1 / n change sums over all pairs by as much as the n squares do: what one sum leaves
an earlier one meets, and over many blocks that grows with the square of their number. They are carried as

    E[g_c g_c'] = 1/n sum_k s_k (P_kc Q_kc' + Q_kc P_kc'),

fields over sampled channels, which slopes multiply. The gradient at the n inputs of a layer of a branch gains by the
last sum kappa^2 / n (sum_ij F_i F_j E[delta_i delta_j] / n) / (E F^2 E delta^2) of itself, i and j two channels; what
one channel makes of it `bending` finds.

On a map F_j(b) delta_j(b) is summed over the places b that x_c(p) reaches through the branch, weighted with the ways.
The term j = c of V_c is E[delta_c(p) delta_c(b) (alpha F(b) + beta F(p))], as delta_c(p) knows F_c(p), too: its
covariances with F(b) and F(p) are the responses (`response`) of their kernels to x_c(p) at b alone. Behind strides a
place reaches a part: squares of places gain by the mean square of the parts, products of two by the squared mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.network import Activation, Add, Conv2d, Linear, Network, ZeroPad
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.maps import Size, by_offset, stepped
from varprop.simulator.theory.response import Bends, Response, activated, bends, first, followed, ways_under
from varprop.simulator.theory.sample import alike
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_ONE = 1e-3  # of 1 - c^2: points that are nearer are one
_LEAST = 1e-3  # of the gradient's square: what two channels have in common counts, n times, down to that
_SOME = np.s_[..., ::2]  # of what is sampled: half of the channels, as means of small corrections are taken


@dataclass(frozen=True)
class Common:
    """A part of E[g_c g_c'] of two of n channels: weight / n (P_c Q_c' + Q_c P_c').

    Attributes
    ----------
    weight, log_scale
        The weight is in units of ``exp(log_scale)``.
    one, other
        P and Q at sampled channels, shape (positions, samples, channels).
    """

    weight: float
    log_scale: float
    one: Array
    other: Array

    def through(self, slopes: Array) -> Common:
        """Return what is left of it behind an activation's slopes, on the way back."""
        one, other, slopes = alike(self.one, self.other, slopes)
        return replace(self, one=one * slopes, other=other * slopes)

    def counts(self, gradient: Gradient) -> bool:
        """Tell whether it is still of any size beside a gradient's square."""
        size = abs(self.weight) * _root_square(self.one) * _root_square(self.other)
        scale = math.exp(self.log_scale - gradient.kernel.log_scale)
        return size * scale > _LEAST * gradient.kernel.second_moment

    def sums(self, values: Array) -> tuple[float, float]:
        """Return the means over channels of P and of Q times a field."""
        one, other, values = alike(self.one, self.other, values)
        first_sum, second_sum = (float(np.einsum("psc,psc->", field, values)) for field in (one, other))
        return first_sum / values.size, second_sum / values.size


@dataclass(frozen=True)
class Branch:
    """Layers from a node to a sum.

    Attributes
    ----------
    start
        The node.
    chain
        The layers.
    growth
        kappa from the input of each weighted layer on.
    reach
        Of each place of that input, share of the ways from it that arrive.
    """

    start: int
    chain: tuple[int, ...]
    growth: dict[int, float]
    reach: dict[int, Array]

    @staticmethod
    def to(network: Network, end: int, signals: list[Signal]) -> Branch | None:
        """Return the branch that ends at a weighted layer; None where anything but layers is on the way."""
        chain: list[int] = []
        growth: dict[int, float] = {}
        reach: dict[int, Array] = {}
        grown, index = 1.0, end
        down, across = (np.ones(side) for side in _size(network, end))
        while not chain or not _starts(network, index, signals):
            node = network.nodes[index]
            match node.operation:
                case Conv2d() as conv:
                    weighted = signals[index].weighted
                    assert weighted is not None
                    assert weighted.window is not None
                    rows, cols = ways_under(weighted.window, conv.stride, _size(network, node.inputs[0]))
                    down, across = down @ rows, across @ cols
                case ZeroPad(padding=(top, bottom, left, right)):
                    down, across = down[top : len(down) - bottom], across[left : len(across) - right]
                case Activation():
                    grown *= _growth(network, index, signals)
                case Linear():
                    pass
                case _:
                    return None
            if node.fan_in is not None:
                growth[index], reach[index] = grown, np.outer(down, across)
            chain.append(index)
            (index,) = node.inputs
        return Branch(index, tuple(reversed(chain)), growth, reach)

    @property
    def weighted(self) -> int:
        """The first weighted layer."""
        return next(index for index in self.chain if index in self.reach)


@dataclass(frozen=True)
class _Met:
    """A branch at its end.

    Attributes
    ----------
    values
        What it adds there, over its root mean square.
    common
        What channels have in common there.
    psi, kappa
        psi over the root of q, and kappa times the root of E F^2 / q.
    channels
        That its first weights read.
    end
        Its last layer.
    """

    branch: Branch
    values: Array
    common: list[Common]
    psi: Array
    kappa: float
    channels: int
    end: int


class Shared:
    """What channels have in common, found node by node from the last one back.

    Attributes
    ----------
    gains
        Of weighted layers, what the gradient at their input gains of it, over what it is.
    """

    def __init__(self, network: Network, known: dict[int, Bends]) -> None:
        self._network, self._known = network, known
        self._common: dict[int, list[Common]] = {}
        self._met: dict[int, list[_Met]] = {}
        self._crossed: dict[int, list[tuple[float, float, Array]]] = {}
        self._gained: dict[int, tuple[float, float]] = {}
        self._gates: dict[int, float] = {}
        self.gains: dict[int, float] = {}

    def gained(self, index: int, gain: float, piece: Gradient) -> None:
        """Take down what the gradient that comes back through a weighted layer gains in all."""
        self._gained[index] = gain * piece.kernel.second_moment, piece.kernel.log_scale

    def gate(self, index: int) -> float:
        """Return what an activation's slopes let through of the gains at its output, over what they let of all."""
        return self._gates.get(index, 1.0)

    def arrived(self, index: int, gradient: Gradient, signals: list[Signal], inside: bool) -> Gradient:
        """Return the gradient at a node with what its branches and shortcuts have in common.

        `inside` says that gains of single branches are followed through the node, an activation, by somebody else.
        """
        met, crossed = self._met.pop(index, []), self._crossed.pop(index, [])
        size, scale = gradient.kernel.second_moment, gradient.kernel.log_scale
        if not met or not size > 0.0:
            return gradient
        left, gains = [], []
        parts = [(part * math.exp(log_scale - scale), field) for part, log_scale, field in crossed]
        for part in met:
            gain, log_scale = self._gained.get(part.branch.weighted, (0.0, scale))
            gain *= math.exp(log_scale - scale)
            reach, field = part.branch.reach[part.branch.weighted], part.psi
            near = float(np.mean(reach)) ** 2 / float(np.mean(reach**2))
            left.append(Common(part.channels * gain * near / 2, scale, field, field))
            gains.append((gain, field**2))
        for one, other in combinations(met, 2):
            if one.common is other.common:
                reaches = [part.branch.reach[part.branch.weighted] for part in (one, other)]
                both = one.kappa * other.kappa * _between(one.common, one.values, other.values, scale)
                equal, apart = float(np.mean(reaches[0] * reaches[1])), float(reaches[0].mean() * reaches[1].mean())
                left.append(Common(both * apart, scale, one.psi, one.psi))
                parts.append((2 * both * equal / one.channels, one.psi**2))
        self._common.setdefault(index, []).extend(part for part in left if part.weight)
        whole = size + sum(part for part, _ in parts)
        slopes = signals[index].draw().slopes if isinstance(self._network.nodes[index].operation, Activation) else None
        if slopes is not None:
            through = parts if inside else parts + gains
            self._gates[index] = 1.0 + sum(part * (_let(field, slopes[_SOME]) - 1.0) for part, field in through) / whole
        return replace(gradient, kernel=gradient.kernel.scaled(whole / size))

    def back(self, index: int, gradient: Gradient, signals: list[Signal]) -> None:
        """Go back through a node, given the gradient at its output."""
        node, common = self._network.nodes[index], self._common.pop(index, [])
        if isinstance(node.operation, Activation) and common:
            slopes = signals[index].draw().slopes
            assert slopes is not None
            self._common.setdefault(node.inputs[0], []).extend(part.through(slopes[_SOME]) for part in common)
        elif isinstance(node.operation, Add) and gradient.kernel.second_moment > 0.0:
            common = [part for part in common if part.counts(gradient)]
            for term in node.inputs:
                if self._network.nodes[term].fan_in is None:
                    self._common.setdefault(term, []).extend(common)
                else:
                    self._meet(term, gradient, signals, common)
            for term in node.inputs:
                for met in self._met.get(term, []):
                    if met.common is common:
                        self._cross(met, term, gradient, signals)
        elif node.fan_in is not None and common:
            self._meet(index, gradient, signals, common)

    def _meet(self, end: int, gradient: Gradient, signals: list[Signal], common: list[Common]) -> None:
        """Take down that a branch ends at a weighted layer, and what its layers gain."""
        branch = Branch.to(self._network, end, signals)
        if branch is None:
            return
        values = signals[end].draw().values[_SOME]
        size = _root_square(values)
        if not size > 0.0:
            return
        values = values / size
        sums = _between(common, values, values, gradient.kernel.log_scale) / gradient.kernel.second_moment
        for layer, reach in branch.reach.items():
            operation = self._network.nodes[layer].operation
            if not (isinstance(operation, Conv2d) and operation.depthwise):
                share = float(np.mean(reach**2)) / float(np.mean(reach))
                self.gains[layer] = branch.growth[layer] ** 2 * sums * share / self._channels(layer)
        if signals[branch.start].known is None:
            psi, root = _psi(self._network, branch, signals)
            layer = branch.weighted
            kappa = branch.growth[layer] * size / root
            met = _Met(branch, values, common, psi, kappa, self._channels(layer), end)
            self._met.setdefault(branch.start, []).append(met)

    def _channels(self, layer: int) -> int:
        return self._network.nodes[self._network.nodes[layer].inputs[0]].shape[0]

    def _cross(self, met: _Met, start: int, gradient: Gradient, signals: list[Signal]) -> None:
        """Take down what gradients through a branch and through the shortcut around it have in common."""
        if gradient.drawn is None:
            return
        arriving = gradient.drawn()
        delta, values, psi = alike(arriving.values[_SOME], met.values, met.psi)
        # F knows nothing of x: of the gradients' products only what they differ by counts, and their mean is noise.
        near, others = _apart(delta * delta) * values, list[tuple[Array, Array]]()
        field = near * psi
        if len(delta) > 1:
            near, field, others = self._on_map(met, delta, values, psi, signals)
        rest = np.zeros_like(near)
        for part in met.common:
            one, other = part.sums(values)
            unit = part.weight * math.exp(part.log_scale - arriving.log_scale)
            rest, first_field, second_field = alike(rest, part.one, part.other)
            rest = rest + unit * (other * first_field + one * second_field)
        rest, near, field, psi = alike(rest, near, field, psi)
        field = field + rest * psi
        found = [Common(met.kappa, arriving.log_scale, *fields) for fields in [(near + rest, psi), *others]]
        self._common.setdefault(start, []).extend(found)
        size = 2 * met.kappa / met.channels * float(np.mean(field))
        self._crossed.setdefault(start, []).append((size, arriving.log_scale, field))

    def _on_map(
        self, met: _Met, delta: Array, values: Array, psi: Array, signals: list[Signal]
    ) -> tuple[Array, Array, list[tuple[Array, Array]]]:
        """Return of the term j = c of V what goes with psi at a place, all of it, and P and Q of what does not."""
        branch = met.branch
        kernel, size = signals[met.end].kernel, signals[met.end].kernel.size
        response = self._response(branch, signals)
        parts = response.parts.mean(axis=1)
        own = float(parts[:2, -2].sum())
        half = parts[:, :-2] / own
        middle = np.array([0.0, 1.0, 0.0])[:, None]
        by_place = np.concatenate([half, middle, half[:, ::-1]], axis=1).reshape(3, 2 * size[0] - 1, 2 * size[1] - 1)
        same = kernel.values[: kernel.layout.profiles].mean(axis=0) / kernel.second_moment
        correlation = by_offset(same, size)
        down, across = (_steps(rows) for rows in response.ways)
        maps = [field.reshape(*size, *field.shape[1:]) for field in (delta, values, psi)]
        gradient, added, slope = maps
        near, far, whole = (np.zeros_like(gradient) for _ in range(3))
        mean = slope.mean(axis=(0, 1, 2))
        reach = (len(down) // 2, len(across) // 2)
        around = [(reach[0],) * 2, (reach[1],) * 2, (0, 0), (0, 0)]
        whole_map = _size(self._network, branch.start)
        padded = np.pad(slope, around) if size == whole_map else np.pad(slope, around, mode="edge")
        for row in range(-min(reach[0], size[0] - 1), min(reach[0], size[0] - 1) + 1):
            for col in range(-min(reach[1], size[1] - 1), min(reach[1], size[1] - 1) + 1):
                ways = down[row + reach[0]] * across[col + reach[1]]
                # A cut-out has fewer pairs so far apart than the map, for its size.
                for step, side, cut in zip((row, col), whole_map, size, strict=True):
                    ways *= (1 - abs(step) / side) / (1 - abs(step) / cut)
                here, there = stepped(row, size[0]), stepped(col, size[1])
                p, b = (here[0], there[0]), (here[1], there[1])
                c = float(correlation[row + size[0] - 1, col + size[1] - 1])
                product = ways * _apart(gradient[p] * gradient[b])
                if 1.0 - c * c < _ONE:
                    near[p] += product * added[b]
                    continue
                opposite, equal, of_mean = by_place[:, row + size[0] - 1, col + size[1] - 1]
                to_b, to_p = (product * (added[one] - c * added[two]) / (1 - c * c) for one, two in ((b, p), (p, b)))
                near[p] += to_b + equal * to_p
                far[p] += opposite * to_p
                mirrored = padded[
                    reach[0] - row + p[0].start : reach[0] - row + p[0].stop,
                    reach[1] - col + p[1].start : reach[1] - col + p[1].stop,
                ]
                whole[p] += to_p * (opposite * mirrored + of_mean * mean)
        whole += near * slope
        smooth = _smoothed(slope, down, across)
        near, far, smooth, whole = (field.reshape(delta.shape) for field in (near, far, smooth, whole))
        return near, whole, [(far, smooth)]

    def _response(self, branch: Branch, signals: list[Signal]) -> Response:
        """Return the response of a branch's kernel to the input of its first weights."""
        network = self._network
        response: Response | None = None
        for index in branch.chain:
            node, (source,) = network.nodes[index], network.nodes[index].inputs
            before = signals[source]
            if response is None:
                if node.fan_in is not None:
                    response = first(node.operation, network.nodes[source].shape, before, signals[index])
            elif isinstance(node.operation, Activation):
                if index not in self._known:
                    function = activation(node.operation.function)
                    (self._known[index],) = bends(function, [before.kernel], before.kernel.layout, 1)
                found = self._known[index].of(len(self._known[index].q))
                if len(found.q) != response.parts.shape[1]:
                    count = min(len(found.q), response.parts.shape[1])
                    found, response = found.of(count), replace(response, parts=response.parts[:, :count])
                response = activated(response, found, before, signals[index])
            else:
                response = followed(node.operation, response, before, signals[index])
        assert response is not None
        return response


def _size(network: Network, index: int) -> Size:
    shape = network.nodes[index].shape
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def _starts(network: Network, index: int, signals: list[Signal]) -> bool:
    """Tell whether a node may be read by several, or is none that layers make."""
    several = len(network.consumers[index]) > 1 or isinstance(network.nodes[index].operation, Add)
    return several or signals[index].known is not None


def _growth(network: Network, index: int, signals: list[Signal]) -> float:
    """Return d log E phi^2 / d log q of an activation."""
    operation, sample = network.nodes[index].operation, signals[index].draw()
    assert isinstance(operation, Activation)
    if activation(operation.function).homogeneous:
        return 1.0
    assert sample.inputs is not None
    assert sample.slopes is not None
    square = float(np.mean(sample.values**2))
    return float(np.mean(sample.inputs * sample.slopes * sample.values)) / square if square > 0.0 else 0.0


def _psi(network: Network, branch: Branch, signals: list[Signal]) -> tuple[Array, float]:
    """Return half the slope of the square that a branch's first weights read, over its root, and the root."""
    values = signals[branch.start].draw().values[_SOME]
    root = _root_square(values)
    for index in branch.chain[: branch.chain.index(branch.weighted)]:
        if isinstance(network.nodes[index].operation, Activation):
            found = signals[index].draw()
            assert found.slopes is not None
            values = found.values[_SOME]
            root, values = _root_square(values), found.slopes[_SOME] * values
    return values / (root or 1.0), root or 1.0


def _between(common: list[Common], one: Array, other: Array, log_scale: float) -> float:
    """Return sum_ij one_i other_j E[delta_i delta_j] / n over different channels, in units of ``exp(log_scale)``."""
    total = 0.0
    for part in common:
        (a, b), (c, d) = part.sums(one), part.sums(other)
        total += part.weight * math.exp(part.log_scale - log_scale) * (a * d + b * c)
    return total


def _let(field: Array, slopes: Array) -> float:
    """Return the mean of a field behind squared slopes, over the product of means."""
    field, slopes = alike(field, slopes)
    apart = float(np.mean(field)) * float(np.mean(slopes**2))
    return float(np.mean(field * slopes**2)) / apart if apart else 1.0


def _apart(values: Array) -> Array:
    return np.asarray(values - np.mean(values))


def _root_square(values: Array) -> float:
    return math.sqrt(float(np.einsum("psc,psc->", values, values)) / values.size)


def _steps(ways: Array) -> Array:
    """Return the share of ways from the middle of a line by how far they lead."""
    middle = len(ways) // 2
    found = ways[:, middle]
    reached = int(np.abs(np.flatnonzero(found) - middle).max())
    return np.array(
        [found[middle + step] if 0 <= middle + step < len(found) else 0.0 for step in range(-reached, reached + 1)]
    )


def _smoothed(maps: Array, down: Array, across: Array) -> Array:
    """Average maps, shape (height, width, ...), over the ways from each place that stay on the map."""
    for axis, steps in ((0, down), (1, across)):
        size, reach = maps.shape[axis], len(steps) // 2
        apart = np.subtract.outer(np.arange(size), np.arange(size))
        matrix = np.where(abs(apart) <= reach, steps[np.clip(apart + reach, 0, 2 * reach)], 0.0)
        matrix /= matrix.sum(axis=1, keepdims=True)
        maps = np.moveaxis(np.tensordot(matrix, maps, axes=(1, axis)), 0, axis)
    return maps
