"""Some trials at once: draw the weights, run the batch forward and random cotangents back, record every node's moments.

Trials of one block share every call into compiled code, so that small networks are not all overhead. No number of one
trial depends on the others of its block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.draws import COTANGENT, Draws, Parameters
from varprop.simulator.montecarlo.operations import Call, backward, forward, reads_output, reads_source
from varprop.simulator.montecarlo.signal import Exponents, Pool, Signal, add_in_place, measure
from varprop.simulator.montecarlo.weightless import Unseen
from varprop.simulator.network import BatchNorm, Conv2d, Input, Linear, Network
from varprop.simulator.weight_law import weight_law

Array = NDArray[np.floating]

MEAN, SECOND_MOMENT, VARIANCE, EXPONENT = range(4)


@dataclass(frozen=True)
class Plan:
    """What to run, and which of its layers act without weights (see `unseen_layers`)."""

    network: Network
    unseen: frozenset[int]

    @cached_property
    def kept(self) -> tuple[bool, ...]:
        """Whether a node's output is read on the way back: then by itself or by later nodes, so until its own turn."""
        nodes = self.network.nodes
        return tuple(
            reads_output(node.operation)
            or any(
                reads_source(nodes[consumer].operation)
                or (consumer in self.unseen and isinstance(nodes[consumer].operation, Linear))
                for consumer in consumers
            )
            for node, consumers in zip(nodes, self.network.consumers, strict=True)
        )

    @cached_property
    def normalised(self) -> tuple[bool, ...]:
        """Whether a batch normalisation needs the moments of every channel of a node's output."""
        nodes = self.network.nodes
        return tuple(
            any(isinstance(nodes[consumer].operation, BatchNorm) for consumer in consumers)
            for consumers in self.network.consumers
        )


def run_trials(plan: Plan, data: Array, draws: Draws, pool: Pool) -> NDArray[np.float64]:
    """Return the moments of several draws of the weights.

    Parameters
    ----------
    plan
        What to run.
    data
        The batch, of shape (*input shape, batch), in the pool's type.
    draws
        The trials' random numbers.
    pool
        The thread's memory.

    Returns
    -------
    ndarray
        Shape (trials, 2, nodes, 4): forward and backward; mean, second moment, variance, exponent. The mean is
        to be multiplied by 2**exponent, the second moment and the variance by 4**exponent.
    """
    network, trials = plan.network, draws.count
    record = np.zeros((trials, 2, len(network), 4))
    kept = plan.kept
    unread = [len(consumers) for consumers in network.consumers]
    calls: list[Call] = []
    for index, node in enumerate(network.nodes):
        call = Call([calls[source].output for source in node.inputs], _drawn(plan, index, draws, pool), pool)
        out = pool.take((trials, *node.shape, data.shape[-1]))
        if isinstance(node.operation, Input):
            out[...] = data
            exponent = np.zeros(trials, np.int64)
        else:
            exponent = forward(node.operation, call, out)
        call.output = measure(out, exponent, plan.normalised[index])
        calls.append(call)
        _write(record[:, 0, index], call.output)
        for source in node.inputs:
            unread[source] -= 1
        for done in {index, *node.inputs}:
            if unread[done] == 0 and not kept[done]:
                calls[done].output.release(pool)

    last = len(network) - 1
    out = pool.take(calls[last].output.values.shape)
    draws.normals(last, COTANGENT, out)
    gradients: dict[int, tuple[Array, Exponents]] = {last: (out, np.zeros(trials, np.int64))}
    for index in reversed(range(len(network))):
        node, call = network.nodes[index], calls[index]
        if index in gradients:  # a node that leads nowhere has gradient 0, as recorded
            gradient = measure(*gradients.pop(index), isinstance(node.operation, BatchNorm))
            _write(record[:, 1, index], gradient)
            for source in node.inputs:
                out = pool.take(calls[source].output.values.shape)
                exponent = backward(node.operation, call, gradient, out)
                if source in gradients:
                    total, total_exponent = gradients[source]
                    gradients[source] = total, add_in_place(total, total_exponent, out, exponent)
                    pool.give(out)
                else:
                    gradients[source] = out, exponent
            gradient.release(pool)
        if kept[index]:
            call.output.release(pool)
        if isinstance(call.drawn, Parameters):
            pool.give(call.drawn.weight)
        call.drawn = None
    return record


def _drawn(plan: Plan, index: int, draws: Draws, pool: Pool) -> Parameters | Unseen | None:
    node, framework = plan.network.nodes[index], plan.network.framework
    if not isinstance(node.operation, Conv2d | Linear):
        return None
    if index in plan.unseen:
        return Unseen(weight_law(node, framework).std, draws.bias(index, node, framework), draws, index, pool)
    return draws.parameters(index, node, framework, pool.take)


def _write(record: NDArray[np.float64], signal: Signal) -> None:
    record[:, :EXPONENT], record[:, EXPONENT] = signal.summary, signal.exponent
