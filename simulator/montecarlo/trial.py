"""Some trials at once: draw the weights, run the batch forward and random cotangents back, record every node's moments.

Trials of one block share every call into compiled code, so that small networks are not all overhead. No number of one
trial depends on the others of its block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.call import Call
from varprop.simulator.montecarlo.chain import Chain, ChainRun, find_chains, run_chain
from varprop.simulator.montecarlo.controls import COUNT, LayerControls, layer_controls
from varprop.simulator.montecarlo.draws import COTANGENT, Draws, Parameters
from varprop.simulator.montecarlo.normalisation import standardized
from varprop.simulator.montecarlo.operations import backward, forward, reads_source, takes_unstored
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.signal import Signal, add_in_place, measured
from varprop.simulator.montecarlo.weightless import Unseen
from varprop.simulator.network import BatchNorm, Conv2d, Input, Linear, Network
from varprop.simulator.weight_law import weight_law

Array = NDArray[np.floating]

MEAN, SECOND_MOMENT, VARIANCE, EXPONENT = range(4)

Columns = tuple[tuple[int, ...], ...]
"""For every node, which control variates go with its moments."""


class Records(NamedTuple):
    """What trials recorded.

    `moments` has shape (trials, 2, nodes, 4): forward and backward; mean, second moment, variance, exponent. The mean
    is to be multiplied by 2**exponent, the second moment and the variance by 4**exponent. `controls`, of shape
    (trials, any number), are the control variates; see `Plan.columns`.
    """

    moments: NDArray[np.float64]
    controls: NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What to run, and which of its layers act without weights (see `unseen_layers`)."""

    network: Network
    unseen: frozenset[int]

    @cached_property
    def kept(self) -> tuple[bool, ...]:
        """Whether a node's output is read on the way back, by later nodes or, without weights, by the node itself."""
        nodes = self.network.nodes
        return tuple(
            index in self.unseen
            or any(
                reads_source(nodes[consumer].operation)
                or (consumer in self.unseen and isinstance(nodes[consumer].operation, Linear))
                for consumer in consumers
            )
            for index, consumers in enumerate(self.network.consumers)
        )

    @cached_property
    def unstored(self) -> tuple[bool, ...]:
        """Whether a node is a batch normalisation whose output is made again wherever it is read, never stored."""
        nodes = self.network.nodes
        return tuple(
            isinstance(node.operation, BatchNorm)
            and len(consumers) == 1
            and takes_unstored(nodes[consumers[0]].operation)
            for node, consumers in zip(nodes, self.network.consumers, strict=True)
        )

    @cached_property
    def chains(self) -> Mapping[int, Chain]:
        """Chains of nodes that run together, by their first nodes."""
        return find_chains(self.network, self.unseen)

    @cached_property
    def measured_later(self) -> Mapping[int, Chain]:
        """Nodes whose moments are taken by the only one that reads them: a chain that begins with normalisation."""
        nodes, consumers = self.network.nodes, self.network.consumers
        return {
            chain.source: chain
            for first, chain in self.chains.items()
            if len(consumers[chain.source]) == 1 and isinstance(nodes[first].operation, BatchNorm)
        }

    @cached_property
    def controls(self) -> Mapping[int, LayerControls]:
        """Control variates of the layers that have them."""
        return layer_controls(self.network, self.unseen)

    @cached_property
    def columns(self) -> tuple[Columns, Columns]:
        """Which control variates go with a node's moments, forward and backward; the first is the cotangent's."""
        own = {index: 1 + COUNT * place for place, index in enumerate(self.controls)}
        nodes = range(len(self.network))
        forward = tuple((own[i],) if i in own else () for i in nodes)
        backward = tuple((0, *range(own[i] + 1, own[i] + COUNT)) if i in own else (0,) for i in nodes)
        return forward, backward

    @cached_property
    def normalised(self) -> tuple[bool, ...]:
        """Whether a batch normalisation needs the moments of every channel of a node's output."""
        nodes = self.network.nodes
        return tuple(
            any(isinstance(nodes[consumer].operation, BatchNorm) for consumer in consumers)
            for consumers in self.network.consumers
        )


def run_trials(plan: Plan, data: Array, draws: Draws, pool: Pool) -> Records:
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
    """
    network, trials, batch = plan.network, draws.count, data.shape[-1]
    record = np.zeros((trials, 2, len(network), 4))
    controls = np.empty((trials, 1 + COUNT * len(plan.controls)))
    kept = plan.kept
    unread = [len(consumers) for consumers in network.consumers]
    calls: dict[int, Call] = {}
    runs: dict[int, ChainRun] = {}
    for index, node in enumerate(network.nodes):
        if index in calls:  # went with the chain that it belongs to
            continue
        chain = plan.chains.get(index)
        if chain is None or not chain.fits(calls[chain.source].output.exponent):
            sources = [calls[source].output for source in node.inputs]
            call = calls[index] = _call(plan, index, sources, draws, pool, controls, batch)
            call.output = _output(plan, index, call, data)
            later = plan.measured_later.get(index)
            if call.output.summary.size or later is None or not later.fits(call.output.exponent):
                call.output = measured(call.output, call.by_channel)
                _write(record[:, 0, index], call.output)
            ends = index
        else:
            for member in chain.nodes:
                calls[member] = _call(plan, member, [], draws, pool, controls, batch)
            found, runs[chain.nodes[-1]] = run_chain(chain, network, calls, kept, pool)
            for member, output in found.items():
                calls[member].output = output
                _write(record[:, 0, member], output)
            ends = chain.nodes[-1]
        for source in node.inputs:
            unread[source] -= 1
        for done in {ends, *node.inputs}:
            if unread[done] == 0 and not kept[done]:
                calls[done].output.release(pool)

    last = len(network) - 1
    out = pool.take((trials, *network.nodes[last].shape, batch))
    draws.normals(last, COTANGENT, out)
    gradients = {last: measured(Signal(out, np.zeros(trials, np.int64)))}
    controls[:, 0] = gradients[last].summary[:, 1] - 1
    for index in reversed(range(len(network))):
        node, call = network.nodes[index], calls[index]
        if index in gradients:  # a node that leads nowhere has gradient 0, as recorded
            if index in runs:
                found, back = runs[index].backward(gradients.pop(index), pool)
                for member, signal in found.items():
                    _write(record[:, 1, member], signal)
                _accumulate(gradients, runs[index].chain.source, back, pool)
            else:
                _send_back(plan, index, call, gradients, record[:, 1])
        if kept[index]:
            call.output.release(pool)
        if isinstance(call.drawn, Parameters):
            pool.give(call.drawn.weight)
        call.drawn = None
    return Records(record, controls)


def _call(
    plan: Plan, index: int, sources: list[Signal], draws: Draws, pool: Pool, controls: NDArray[np.float64], batch: int
) -> Call:
    """Return the use of a node, with what it draws; write its controls."""
    nodes = plan.network.nodes
    shape = (draws.count, *nodes[nodes[index].inputs[0] if nodes[index].inputs else index].shape, batch)
    call = Call(sources, _drawn(plan, index, draws, pool), shape, plan.normalised[index], pool)
    if index in plan.controls and isinstance(call.drawn, Parameters):
        (first,) = plan.columns[0][index]
        controls[:, first : first + COUNT] = plan.controls[index].of(call.drawn.weight)
    return call


def _send_back(plan: Plan, index: int, call: Call, gradients: dict[int, Signal], record: NDArray[np.float64]) -> None:
    """Send a node's gradient, all of which has come back, on to its inputs; `record` has a row for every node."""
    network, pool = plan.network, call.pool
    node = network.nodes[index]
    gradient = measured(gradients.pop(index))
    _write(record[:, index], gradient)
    if not node.inputs:
        gradient.release(pool)
        return
    for source in node.inputs[:-1]:  # of a sum: all inputs have one gradient
        _accumulate(gradients, source, gradient.copy(pool), pool)
    source = node.inputs[-1]
    back = backward(node.operation, call, gradient)
    if call.passed is not None:
        _write(record[:, source], call.passed)
        (source,) = network.nodes[source].inputs
    _accumulate(gradients, source, back, pool)


def _output(plan: Plan, index: int, call: Call, data: Array) -> Signal:
    node = plan.network.nodes[index]
    if plan.unstored[index] and isinstance(node.operation, BatchNorm):
        return standardized(node.operation, call)
    out = call.pool.take((call.source_shape[0], *node.shape, data.shape[-1]), lasting=plan.kept[index])
    if isinstance(node.operation, Input):
        out[...] = data
        return Signal(out, np.zeros(len(out), np.int64))
    return forward(node.operation, call, out)


def _accumulate(gradients: dict[int, Signal], index: int, term: Signal, pool: Pool) -> None:
    """Add a gradient to what has come back to a node so far."""
    if index not in gradients:
        gradients[index] = term
        return
    gradients[index] = add_in_place(gradients[index], term.values, term.exponent)
    pool.give(term.values)


def _drawn(plan: Plan, index: int, draws: Draws, pool: Pool) -> Parameters | Unseen | None:
    node, framework = plan.network.nodes[index], plan.network.framework
    if not isinstance(node.operation, Conv2d | Linear):
        return None
    if index in plan.unseen:
        return Unseen(weight_law(node, framework).std, draws.bias(index, node, framework), draws, index, pool)
    return draws.parameters(index, node, framework, lambda shape: pool.take(shape, lasting=True))


def _write(record: NDArray[np.float64], signal: Signal) -> None:
    record[:, :EXPONENT], record[:, EXPONENT] = signal.summary, signal.exponent
