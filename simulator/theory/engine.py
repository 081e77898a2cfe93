"""Theory's walk over the network: forward through every node, then back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from varprop.simulator.checks import check_batch
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import bias_law, weight_law
from varprop.simulator.network import Flatten, Network, Shape
from varprop.simulator.report import Batch, LayerMoments, Moments, Profile, Report
from varprop.simulator.theory.backward import pull_back
from varprop.simulator.theory.bending import gained
from varprop.simulator.theory.finite_width import log_laws
from varprop.simulator.theory.fluctuations import LogLaw, narrow
from varprop.simulator.theory.forward import propagate
from varprop.simulator.theory.gradient import Gradient, total, untied
from varprop.simulator.theory.known import channel_variance, draws_weights, evaluate
from varprop.simulator.theory.notes import notes
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.profiles import profile as profile_of
from varprop.simulator.theory.profiles import relative
from varprop.simulator.theory.response import Bends
from varprop.simulator.theory.signal import Signal, key_of
from varprop.simulator.theory.start import cotangent, known_signal, nothing, start
from varprop.simulator.theory.walk import Walk, follow

Array = NDArray[np.float64]


def predict(network: Network, batch: Batch, *, profile: bool = False, remarks: bool = True) -> Report:
    """Predict the moments of every node, forward and backward, for the given batch.

    The batch is fixed; averages run over weight draws. The cotangent at the output is i.i.d. N(0, 1).

    Parameters
    ----------
    network
        What to propagate through.
    batch
        Data of shape (batch, *input shape).
    profile
        Whether to tell the positions of maps apart (`Moments.profile`).
    remarks
        Whether to say where assumptions fail (`LayerMoments.notes`).

    Returns
    -------
    Report
        A row per node.

    Raises
    ------
    UserError
        A batch that does not fit, a normalisation over a single value, or weights or biases whose mean is not zero
        (`check_theory`).
    """
    check_batch(network, batch)
    check_theory(network)
    # Kernels are small: a second thread costs more than it brings.
    with _threads().limit(limits=1, user_api="blas"):
        bends: dict[int, Bends] = {}
        walk = follow(network, bends)
        signals = _forward(network, batch, walk)
        gradients = _backward(network, signals, walk, bends)
        forward, backward = log_laws(network, signals, gradients)
    rows = [
        _moments(signal.kernel, signal.edges, float(signal.mean.mean()), spread, _common(signal))
        if signal.known is None
        else _known_moments(signal.known)
        for signal, spread in zip(signals, forward, strict=True)
    ]
    back = [
        _moments(gradient.kernel, gradient.edges, 0.0, spread)
        for gradient, spread in zip(gradients, backward, strict=True)
    ]
    if profile:
        shapes = [node.shape for node in network.nodes]
        maps = [_profile(signal, shape) for signal, shape in zip(signals, shapes, strict=True)]
        maps_back = [_profile(gradient, shape) for gradient, shape in zip(gradients, shapes, strict=True)]
        rows = [replace(row, profile=one) for row, one in zip(rows, maps, strict=True)]
        back = [replace(row, profile=one) for row, one in zip(back, maps_back, strict=True)]
    said = notes(network, signals, rows, back) if remarks else [()] * len(network)
    return Report(
        "theory", network, tuple(map(LayerMoments, rows, back, said)), {"input": batch.source, "batch": len(batch.data)}
    )


@cache
def _threads() -> ThreadpoolController:
    """Libraries with threads of their own, looked up once: that takes as long as a layer."""
    return ThreadpoolController()


def check_theory(network: Network) -> None:
    """Refuse weights and biases with a mean: every recurrence here rests on their signs being a coin's throw.

    Raises
    ------
    UserError
        A layer's weights or biases are drawn around, or are, a constant other than zero.
    """
    for node in network.nodes:
        if node.fan_in is None:
            continue
        for what, law in (
            ("weights", weight_law(node, network.framework)),
            ("biases", bias_law(node, network.framework)),
        ):
            if law is not None and law.mean != 0.0:
                raise UserError(
                    f"theory, {node.name}: initializer",
                    f"{what} whose mean is not zero",
                    f"{what} drawn around zero",
                    "use `varprop propagate --engine monte-carlo`, which takes any",
                )


def _forward(network: Network, batch: Batch, walk: Walk | None) -> list[Signal]:
    how = start(batch, network)
    signals: list[Signal] = []
    for node, alone in zip(network.nodes, narrow(network), strict=True):
        inputs = [signals[i] for i in node.inputs]
        seen = inputs if walk is None else walk.seen(len(signals), inputs)
        known = [signal.known for signal in inputs if signal.known is not None]
        if len(known) < len(inputs) or draws_weights(node.operation):
            signal = propagate(node.operation, node, network, seen)
            signal = replace(signal, strays=signal.strays.merged(node.name, signal.kernel)) if alone else signal
        else:
            values = evaluate(node.operation, *known) if known else batch.data
            signal = known_signal(values, node.operation, inputs, how, network.has_batch_norm)
        signals.append(signal if walk is None else walk.forward(len(signals), signal, inputs, seen))
    return signals


def _backward(network: Network, signals: list[Signal], walk: Walk | None, bends: dict[int, Bends]) -> list[Gradient]:
    arriving: list[list[Gradient]] = [[] for _ in network.nodes]
    exits: list[list[frozenset[int]]] = [[] for _ in network.nodes]
    arriving[-1].append(untied(cotangent(signals[-1]), key_of("cotangent")))
    exits[-1].append(network.exits[-1])
    found: list[Gradient] = []
    for index in range(len(network) - 1, -1, -1):
        node = network.nodes[index]
        gradient = total(arriving[index], exits[index]) if arriving[index] else nothing(signals[index])
        if walk is not None:
            gradient = walk.arrived(index, gradient, signals)
        found.append(gradient)
        if not node.inputs:
            break
        readers = network.consumers[index]
        law = signals[readers[0]].law if len(readers) == 1 else None
        back = pull_back(node.operation, gradient, [signals[i] for i in node.inputs], signals[index], law)
        if walk is not None:
            back = walk.backward(index, found, signals, back)
        if node.fan_in is not None and signals[node.inputs[0]].known is not None:
            more = gained(network, index, signals, found, back[0], bends)
            more += 0.0 if walk is None else walk.shared.gains.get(index, 0.0)
            back = [replace(back[0], kernel=back[0].kernel.scaled(more))]
        for source, piece in zip(node.inputs, back, strict=True):
            # The weights behind a flattening are others at every position.
            fresh = node.fan_in is not None or isinstance(node.operation, Flatten)
            arriving[source].append(untied(piece, key_of(f"{node.name} back")) if fresh else piece)
            exits[source].append(frozenset([index]) if node.fan_in is not None else network.exits[index])
    return found[::-1]


def _profile(of: Signal | Gradient, shape: Shape) -> Profile | None:
    if isinstance(of, Signal) and of.known is not None:
        return relative(np.mean(of.known**2, axis=(0, 1))) if len(shape) == 3 else None
    return profile_of(of.kernel, of.amplitude, shape)


def _known_moments(values: Array) -> Moments:
    square = float(np.mean(values**2))
    log = float(np.log(square)) if square > 0 else -np.inf
    return Moments(float(values.mean()), square, float(channel_variance(values).mean()), log, log, 0.0)


def _common(signal: Signal) -> float:
    """Mean product of all pairs of points of a map relative to the kernel's."""
    return 1.0 if signal.amplitude is None else float(signal.common_root.mean()) ** 2


def _moments(kernel: PairKernel, edges: float, mean: float, law: LogLaw | None, common: float | None = None) -> Moments:
    q = kernel.second_moment * edges
    variance = max(q - kernel.pair_mean * (edges if common is None else common), 0.0)
    log = float(np.log(q)) + kernel.log_scale if q > 0 else -np.inf
    with np.errstate(over="ignore", under="ignore"):
        mean = mean * float(np.exp(kernel.log_scale / 2)) if mean else 0.0
        second_moment, variance = float(np.exp(log)), variance * float(np.exp(kernel.log_scale))
    if law is None:
        return Moments(mean, second_moment, variance, log, None, None)
    return Moments(mean, second_moment, variance, log, log - law.deficit, float(np.sqrt(law.variance)))
