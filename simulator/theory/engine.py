"""Theory's walk over the network: forward through every node, then back."""

from __future__ import annotations

import numpy as np

from varprop.simulator.network import Input, Network
from varprop.simulator.report import Batch, LayerMoments, Moments, Report
from varprop.simulator.theory.backward import Gradient, pull_back, total
from varprop.simulator.theory.forward import Signal, propagate
from varprop.simulator.theory.start import cotangent, input_signal


def predict(network: Network, batch: Batch) -> Report:
    sizes = [n.shape[1] * n.shape[2] for n in network.nodes[1:] if len(n.shape) == 3]
    signals: list[Signal] = []
    for node in network.nodes:
        if isinstance(node.operation, Input):
            signals.append(input_signal(batch, points=max(sizes, default=1)))
        else:
            signals.append(propagate(node.operation, node, network, [signals[i] for i in node.inputs]))
    arriving: list[list[Gradient]] = [[] for _ in network.nodes]
    gradients: list[Gradient] = [None] * len(network)
    arriving[-1].append(Gradient(cotangent(signals[-1])))
    for index in range(len(network) - 1, -1, -1):
        node, signal = network.nodes[index], signals[index]
        gradient = total(arriving[index])
        gradients[index] = gradient
        if not node.inputs:
            break
        readers = network.consumers[index]
        law = signals[readers[0]].law if len(readers) == 1 else None
        back = pull_back(node.operation, gradient, [signals[i] for i in node.inputs], signal, law)
        for source, g in zip(node.inputs, back, strict=True):
            arriving[source].append(g)
    rows = []
    for s, g in zip(signals, gradients, strict=True):
        rows.append(LayerMoments(_f(s.kernel, float(s.mean.mean())), _f(g.kernel, 0.0)))
    return Report("theory", network, tuple(rows))


def _f(k, mean):
    q = k.second_moment
    log = np.log(q) + k.log_scale if q > 0 else -np.inf
    c = k.second_moment - k.pair_mean
    return Moments(mean, float(np.exp(log)), float(c * np.exp(k.log_scale)), log, None, None)
