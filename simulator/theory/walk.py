"""Levels along a network without normalisation: where they come from, and what they do to second moments.

Chains of weighted layers and activations are followed, through paddings, poolings and flattening, and through sums of
terms that no activation has changed since their weights. Behind other sums, or a second activation, levels count as
known again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import bias_square
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Node,
    ZeroPad,
)
from varprop.simulator.theory.averaged import as_seen, averaged, size_in_range
from varprop.simulator.theory.bending import gained
from varprop.simulator.theory.duals import FAR
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.level_law import (
    Behind,
    Functions,
    Returned,
    arriving,
    back,
    before,
    mixed,
    passed,
    through_taps,
    untouched,
)
from varprop.simulator.theory.meeting import parted
from varprop.simulator.theory.mixture import passed_by_mixture
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.place import Place, behind_sum, behind_taps, behind_weights, first, levels_of
from varprop.simulator.theory.response import Bends, bends
from varprop.simulator.theory.shared import Shared
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_PROFILES = 8  # samples of a batch of images whose bends are looked at
_SOME = 1.2  # times as many layers behind, from one layer that is asked to the next

_Gains = tuple[int, object, tuple[tuple[int, float], ...]]
"""Layers behind, what they are like, and the last two that were asked, by their number, with the answer."""


def follow(network: Network, known: dict[int, Bends]) -> Walk | None:
    """Return how to follow levels, where they matter: without normalisation, and with an activation that bends.

    Half-lines bend where points of a map differ, but not at any one of them, unless shortcuts meet them again.
    """
    summed = any(isinstance(node.operation, Add) for node in network.nodes)
    bent = any(_bends(node, summed) for node in network.nodes)
    return Walk(network, known) if bent and not network.has_batch_norm else None


def _bends(node: Node, summed: bool) -> bool:
    if not isinstance(node.operation, Activation):
        return False
    function = activation(node.operation.function)
    _, left, right = function.germ_zero
    return not function.homogeneous or (left != right and (summed or node.shape[1:] not in ((), (1, 1))))


class Walk:
    """The places of all nodes, and gradients as functions of their levels.

    Parameters
    ----------
    network
        The network.
    known
        Bends of activations by node, to which those that are seen are added.
    """

    def __init__(self, network: Network, known: dict[int, Bends]) -> None:
        self._network, self._known = network, known
        self._places: list[Place | None] = []
        self._gains: dict[int, _Gains] = {}
        self.shared = Shared(network, known)
        self._found: list[list[tuple[float, Functions]]] = [[] for _ in network.nodes]

    def seen(self, index: int, inputs: list[Signal]) -> list[Signal]:
        """Return a node's inputs as its operation sees them in a draw."""
        place = self._activated(index)
        if place is None:
            return inputs
        (signal,) = inputs
        return [replace(signal, kernel=as_seen(signal.kernel, place))]

    def _activated(self, index: int) -> Place | None:
        """Return the place before an activation, if that is the first since the last weights."""
        node = self._network.nodes[index]
        place = self._places[node.inputs[0]] if isinstance(node.operation, Activation) else None
        return None if place is None or place.passage is not None else place

    def forward(self, index: int, signal: Signal, inputs: list[Signal], seen: list[Signal]) -> Signal:
        """Return a node's signal, given its inputs, as they are `seen`, and what it would be if levels were known."""
        node = self._network.nodes[index]
        found: Place | None = None
        if signal.known is None and signal.kernel.second_moment > 0.0:
            source, place, activated = inputs[0], self._places[node.inputs[0]], self._activated(index)
            match node.operation:
                case Conv2d(depthwise=True):
                    if place is not None:
                        found = behind_taps(place, signal, self._weighted(node, signal))
                case Conv2d() | Linear() as operation:
                    weighted = self._weighted(node, signal)
                    if place is None:
                        found = first(signal, source, weighted)
                    else:
                        found = behind_weights(place, operation, signal, source, weighted)
                case Activation(function=name) if activated is not None:
                    kernels = source.kernel, seen[0].kernel
                    signal, found = self._through(activation(name), index, signal, kernels, activated)
                case Add():
                    found = self._met(node, signal, inputs)
                case ZeroPad() if place is not None:
                    found = place.on(signal.kernel.size)
                case Flatten() if place is not None:
                    found = replace(place, step=None)
                # The levels of means that no activation has seen yet are others.
                case AveragePool() | MaxPool() as pool if place is not None and place.passage is not None:
                    found = place.on(signal.kernel.size, pool.stride)
                case GlobalAveragePool() if place is not None and place.passage is not None:
                    found = place.on((1, 1))
        self._places.append(found)
        return signal

    def _through(
        self,
        function: ActivationFunction,
        index: int,
        signal: Signal,
        kernels: tuple[PairKernel, PairKernel],
        place: Place,
    ) -> tuple[Signal, Place | None]:
        """Return an activation's output and its place; None where levels that a draw may have are too large for it.

        `kernels` are those of its input, and of this as it is seen.
        """
        before, seen = kernels
        points = function, size_in_range(before), place.law.levels
        try:
            if place.own is None:
                passage = passed(*points, place.fixed, place.channels)
            else:
                passage = passed_by_mixture(*points, place.own)
        except UserError:
            return signal, None
        unfixed = passed(*points, 0.0, place.channels) if place.fixed > 0.0 else passage
        found = place.behind(passage, unfixed, signal)
        if not function.homogeneous and abs(np.log(before.second_moment) + before.log_scale) >= FAR:
            return signal, found
        (self._known[index],) = bends(function, [seen], seen.layout, _PROFILES)
        return averaged(function, signal, before, found, self._known[index])

    def _met(self, node: Node, signal: Signal, inputs: list[Signal]) -> Place | None:
        """Return the place behind a sum of two terms that are Gaussian given what came before."""
        known = [self._places[source] for source in node.inputs]
        terms = [place for place in known if place is not None and place.passage is None]
        if len(terms) != 2 or len(known) != 2:
            return None
        sizes = [term.kernel.second_moment * np.exp(term.kernel.log_scale - signal.kernel.log_scale) for term in inputs]
        share = float(sizes[0] / sum(sizes))
        first, second = node.inputs
        return behind_sum((terms[0], terms[1]), (share, 1.0 - share), self._joint(first, second), signal)

    def _joint(self, first: int, second: int) -> Array:
        """Joint law of the levels at two nodes."""
        one, other = self._ways(first), self._ways(second)
        for index, way in one.items():
            if index in other:
                place = self._places[index]
                assert place is not None
                return np.asarray(way.T @ (place.law.masses[:, None] * other[index]))
        laws = [place.law.masses for place in (self._places[first], self._places[second]) if place is not None]
        return np.outer(*laws)

    def _ways(self, index: int) -> dict[int, Array]:
        """Law of the levels at a node given those at nodes that single paths lead from, the nearest first."""
        place = self._places[index]
        assert place is not None
        ways, way = {index: np.eye(len(place.law.logs))}, np.eye(len(place.law.logs))
        while place is not None and len(self._network.nodes[index].inputs) == 1:
            way = way if place.step is None else place.step.plain @ way
            (index,) = self._network.nodes[index].inputs
            place = self._places[index]
            if place is not None:
                ways[index] = way
        return ways

    def _weighted(self, node: Node, signal: Signal) -> float:
        """Share of a layer's second moment that the bias does not make."""
        return max(1.0 - bias_square(node, self._network.framework) / size_in_range(signal.kernel), 0.0)

    def arrived(self, index: int, gradient: Gradient, signals: list[Signal]) -> Gradient:
        """Return the gradient at a node, given the sum of what comes back to it."""
        place = self._places[index]
        return self.shared.arrived(index, gradient, signals, place is not None and place.passage is not None)

    def backward(
        self, index: int, gradients: list[Gradient], signals: list[Signal], arrived: list[Gradient]
    ) -> list[Gradient]:
        """Return the gradients at a node's inputs, given what they would be if levels were known.

        `gradients` are those of the last node and all before it down to this one.
        """
        place, node = self._places[index], self._network.nodes[index]
        self.shared.back(index, gradients[-1], signals)
        if isinstance(node.operation, Activation):
            arrived = [replace(arrived[0], kernel=arrived[0].kernel.scaled(self.shared.gate(index)))]
        elif isinstance(node.operation, Add):
            self._through_sum(index, arrived)
            return arrived
        if place is None or not arrived[0].kernel.second_moment > 0.0:
            return arrived
        (piece,), (source,) = arrived, node.inputs
        if self._places[source] is None:
            if node.fan_in is None or signals[source].known is not None:
                return arrived
            more = self._more(index, signals, gradients, piece)
            return [replace(piece, kernel=piece.kernel.scaled(1.0 + more))]
        if place.step is not None:
            return [self._through_weights(index, gradients, signals, piece)]
        if isinstance(node.operation, Activation):
            return [self._through_activation(index, gradients[-1], signals[source], piece)]
        self._found[source].extend(self._found[index])
        return arrived

    def _through_sum(self, index: int, arrived: list[Gradient]) -> None:
        """Let terms know what comes back through a sum; activations, that it knows nothing of their levels."""
        place, found = self._places[index], self._total(index)
        for term, (source, piece) in enumerate(zip(self._network.nodes[index].inputs, arrived, strict=True)):
            known = self._places[source]
            if known is not None and known.passage is not None:
                self._keep(source, piece, untouched(known.law))
            elif place is not None and place.meeting is not None and isinstance(found, Returned):
                self._keep(source, piece, parted(place.meeting, term, found))

    def _through_weights(
        self, index: int, gradients: list[Gradient], signals: list[Signal], piece: Gradient
    ) -> Gradient:
        node, place, signal = self._network.nodes[index], self._places[index], signals[index]
        (source,) = node.inputs
        known = self._places[source]
        assert place is not None
        assert place.step is not None
        assert known is not None
        assert node.fan_in is not None
        assert signal.weighted is not None
        found = self._total(index)
        returned = found if isinstance(found, Returned) else arriving(place.law)
        if isinstance(node.operation, Conv2d) and node.operation.depthwise:
            behind = through_taps(place.step, returned)
        else:
            isometric = signal.weighted.law.matrix is not None and signal.width <= node.fan_in
            # Weights that are shared by the positions of a map know all of them.
            more = 0.0 if isometric else self._more(index, signals, gradients, piece)
            own = 0.0 if isinstance(node.operation, Conv2d) else returned.excess
            returned = replace(returned, excess=own + more * node.fan_in * returned.square)
            behind = back(place.step, returned, node.fan_in, isometric)
        if known.passage is not None:
            self._keep(source, piece, behind)
            return piece
        returned, gain = before(known.law, known.made, behind)
        self._keep(source, piece, returned)
        return replace(piece, kernel=piece.kernel.scaled(gain))

    def _through_activation(self, index: int, gradient: Gradient, source: Signal, piece: Gradient) -> Gradient:
        place = self._places[index]
        assert place is not None
        assert place.passage is not None
        assert place.unfixed is not None
        found = self._total(index)
        behind = found if isinstance(found, Behind) else untouched(place.law)
        returned, gain = before(place.law, place.passage, behind)
        self._keep(self._network.nodes[index].inputs[0], piece, returned)
        known = float(place.law.spread(levels_of(source.kernel), gradient.kernel.diagonal) @ place.unfixed.slope)
        return replace(piece, kernel=piece.kernel.scaled(gain / known)) if known > 0.0 else piece

    def _more(self, index: int, signals: list[Signal], gradients: list[Gradient], piece: Gradient) -> float:
        """Return what the gradient at the input of weights gains because what comes later knows them."""
        more = self.shared.gains.get(index, 0.0)
        if isinstance(self._network.nodes[index].operation, Conv2d):
            more += self._bent(index, signals, gradients, piece)
        self.shared.gained(index, more, piece)
        return more

    def _bent(self, index: int, signals: list[Signal], gradients: list[Gradient], piece: Gradient) -> float:
        """Return what slopes behind a convolution and along shortcuts make of it.

        That takes a look at all layers behind, and changes slowly from one layer to the next of its kind: of many only
        some are asked, and the others continue the line through the last two.
        """
        node, later = self._network.nodes[index], self._later(index)
        kind = self._network.nodes[node.inputs[0]].shape, node.operation
        count, like, points = (0, None, ()) if later is None else self._gains.get(later, (0, None, ()))
        if like != kind:
            count, points = 0, ()
        count += 1
        if len(points) < 2 or count >= _SOME * points[-1][0]:
            found = gained(self._network, index, signals, gradients, piece, self._known) - 1.0
            points = (*points[-1:], (count, found))
        self._gains[index] = (count, kind, points)
        (last, known), (earlier, other) = points[-1], points[0]
        return known + (known - other) * (count - last) / max(last - earlier, 1)

    def _later(self, index: int) -> int | None:
        """Return the weighted layer that alone reads what a node becomes."""
        while len(self._network.consumers[index]) == 1:
            (index,) = self._network.consumers[index]
            if self._network.nodes[index].fan_in is not None:
                return index
        return None

    def _keep(self, index: int, piece: Gradient, found: Functions) -> None:
        if piece.kernel.second_moment > 0.0:
            self._found[index].append((size_in_range(piece.kernel), found))

    def _total(self, index: int) -> Functions | None:
        """Return what all consumers of a node make together."""
        return mixed(self._found[index]) if self._found[index] else None
