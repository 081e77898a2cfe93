"""One trial: draw the weights, run the batch forward and a random cotangent back, record every node's moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.draws import Draws
from varprop.simulator.montecarlo.operations import Call, backward, forward, reads_output, reads_source
from varprop.simulator.montecarlo.signal import Pool, Signal, add_in_place, measure
from varprop.simulator.network import Conv2d, Input, Linear, Network

Array = NDArray[np.floating]

MEAN, SECOND_MOMENT, VARIANCE, EXPONENT = range(4)


def run_trial(network: Network, data: Array, draws: Draws, pool: Pool) -> NDArray[np.float64]:
    """Return the moments of one draw of the weights.

    Parameters
    ----------
    network
        What to run.
    data
        The batch, of shape (*input shape, batch), in the pool's type.
    draws
        The trial's random numbers.
    pool
        The thread's memory.

    Returns
    -------
    ndarray
        Shape (2, nodes, 4): forward and backward; mean, second moment, variance, exponent. The mean is
        to be multiplied by 2**exponent, the second moment and the variance by 4**exponent.
    """
    record = np.zeros((2, len(network), 4))
    kept = [_kept(network, index) for index in range(len(network))]
    unread = [len(consumers) for consumers in network.consumers]
    calls: list[Call] = []
    for index, node in enumerate(network.nodes):
        has_weights = isinstance(node.operation, Conv2d | Linear)
        drawn = draws.parameters(index, node, network.framework) if has_weights else None
        call = Call([calls[source].output for source in node.inputs], drawn, pool)
        out = pool.take((*node.shape, data.shape[-1]))
        if isinstance(node.operation, Input):
            out[...] = data
            exponent = 0
        else:
            exponent = forward(node.operation, call, out)
        call.output = measure(out, exponent)
        calls.append(call)
        record[0, index] = _row(call.output)
        for source in node.inputs:
            unread[source] -= 1
        for done in {index, *node.inputs}:
            if unread[done] == 0 and not kept[done]:
                pool.give(calls[done].output.values)

    last = len(network) - 1
    cotangent = pool.take(calls[last].output.values.shape)
    draws.cotangent(last, cotangent)
    gradients: dict[int, tuple[Array, int]] = {last: (cotangent, 0)}
    for index in reversed(range(len(network))):
        if index in gradients:  # a node that leads nowhere has gradient 0, as recorded
            gradient = measure(*gradients.pop(index))
            record[1, index] = _row(gradient)
            node, call = network.nodes[index], calls[index]
            for source in node.inputs:
                out = pool.take(calls[source].output.values.shape)
                exponent = backward(node.operation, call, gradient, out)
                if source in gradients:
                    total, total_exponent = gradients[source]
                    gradients[source] = total, add_in_place(total, total_exponent, out, exponent)
                    pool.give(out)
                else:
                    gradients[source] = out, exponent
            pool.give(gradient.values)
        if kept[index]:
            pool.give(calls[index].output.values)
    return record


def _kept(network: Network, index: int) -> bool:
    """Whether a node's output is read on the way back: then by itself or by later nodes, so until its own turn."""
    return reads_output(network.nodes[index].operation) or any(
        reads_source(network.nodes[consumer].operation) for consumer in network.consumers[index]
    )


def _row(signal: Signal) -> tuple[float, float, float, int]:
    return float(signal.mean.mean()), signal.second_moment, float(signal.variance.mean()), signal.exponent
