"""Chains of nodes that act on every channel by itself: found in a network, and run in one pass each way.

A link is a batch normalisation with the activation behind it; a chain is windows (a depthwise convolution, an average,
zero padding) between two links, either of which may be missing, or a link alone. A network's moments are the same with
chains as node by node, up to rounding; maps in between are not stored, and each is read while a cache holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import FORMULA, ActivationFunction, activation
from varprop.simulator.generated import activations as scalar
from varprop.simulator.montecarlo.call import Call
from varprop.simulator.montecarlo.chain_passes import (
    ADDED,
    CENTER,
    INNER,
    NORMAL,
    POWER,
    READ,
    VARIANCE,
    ChainPasses,
    Link,
    compiled_chain,
)
from varprop.simulator.montecarlo.convolution import window
from varprop.simulator.montecarlo.pointwise import Scalar
from varprop.simulator.montecarlo.pool import LINE, Pool
from varprop.simulator.montecarlo.signal import RELEASED, Exponents, Signal, settled
from varprop.simulator.montecarlo.windows import Geometry, Runs, runs
from varprop.simulator.network import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv2d,
    GlobalAveragePool,
    Network,
    ZeroPad,
)
from varprop.simulator.weight_law import bias_square

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]

Windows = Conv2d | AveragePool | GlobalAveragePool | ZeroPad

NO_RUNS = Runs(*np.empty((5, 0), np.uint64))
"""Stands for the table of windows where there are none."""


@dataclass(frozen=True)
class Normalisation:
    """A batch normalisation and the activation behind it, which may be missing: nodes, eps and function."""

    nodes: tuple[int, ...]
    eps: float
    function: ActivationFunction


@dataclass(frozen=True)
class Chain:
    """Indices of the node that is read and of windows, and the links before and behind these."""

    source: int
    head: Normalisation | None
    windows: int | None
    tail: Normalisation | None

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """The chain's own nodes, in their order."""
        head, tail = (link.nodes if link else () for link in (self.head, self.tail))
        return (*head, *(() if self.windows is None else (self.windows,)), *tail)

    @cached_property
    def passes(self) -> ChainPasses:
        """What runs it."""
        functions = [link.function.family for link in (self.head or self.tail, self.tail or self.head) if link]
        value, derivative = (_scalars(functions, which) for which in ("value", "derivative"))
        return compiled_chain(value, derivative, self.windows is not None)

    def fits(self, exponent: Exponents) -> bool:
        """Whether a source with these powers of two can go through: what is far too small needs more care."""
        return self._homogeneous or not (exponent < 0).any()

    @cached_property
    def _homogeneous(self) -> bool:
        return all(link is None or link.function.homogeneous for link in (self.head, self.tail))


def find_chains(network: Network, unseen: Set[int]) -> Mapping[int, Chain]:
    """Return the chains of a network by their first nodes; `unseen` are layers whose weights are not drawn."""
    found: dict[int, Chain] = {}
    taken: set[int] = set()
    for first, node in enumerate(network.nodes):
        if first in taken or len(node.inputs) != 1:
            continue
        head = _link(network, first)
        windows: int | None = _only_reader(network, head.nodes[-1]) if head else first
        if windows is not None and not _by_channel(network, windows, unseen):
            windows = None
        after = None if windows is None else _only_reader(network, windows)
        tail = None if after is None else _link(network, after)
        if windows is None:
            head, tail = None, head
        if head or tail:
            found[first] = Chain(node.inputs[0], head, windows, tail)
            taken.update(found[first].nodes)
    return found


def _only_reader(network: Network, index: int) -> int | None:
    """Return the only reader of a node's output, None if there are others or none."""
    consumers = network.consumers[index]
    return consumers[0] if len(consumers) == 1 else None


def _link(network: Network, index: int) -> Normalisation | None:
    """Return the link that begins at a node; of what a chain's last link gives, nobody asks for moments by channel."""
    operation = network.nodes[index].operation
    if not isinstance(operation, BatchNorm):
        return None
    nodes: tuple[int, ...] = (index,)
    function = activation("linear")
    after = _only_reader(network, index)
    if after is not None and isinstance(following := network.nodes[after].operation, Activation):
        found = activation(following.function)
        if found.family != FORMULA:
            nodes, function = (index, after), found
    asked = any(isinstance(network.nodes[reader].operation, BatchNorm) for reader in network.consumers[nodes[-1]])
    return None if asked else Normalisation(nodes, operation.eps, function)


def _by_channel(network: Network, index: int, unseen: Set[int]) -> bool:
    """Whether a node is a sum over windows of every channel by itself, and nothing else."""
    node = network.nodes[index]
    if isinstance(node.operation, Conv2d):
        plain = not bias_square(node, network.framework)
        return node.operation.depthwise and plain and index not in unseen
    return isinstance(node.operation, Windows)


@dataclass(frozen=True, slots=True)
class ChainRun:
    """One use of a chain in a block of trials; `exponents` are those of what is read, and of both links' outputs."""

    chain: Chain
    source: Array
    head: Link
    taps: Array
    geometry: Geometry | None
    between: Array
    tail: Link
    exponents: tuple[Exponents, Exponents, Exponents]

    def backward(self, gradient: Signal, pool: Pool) -> tuple[dict[int, Signal], Signal]:
        """Return the gradients with respect to the nodes' outputs, their moments alone, and that to what was read.

        The gradient with respect to the chain's output is used up.
        """
        chain, x, z = self.chain, self.source, self.between
        trials, channels = x.shape[:2]
        head, tail = (link._replace(sums=np.empty((3, trials, 3))) for link in (self.head, self.tail))
        edge, rows = np.empty((trials, 3)), _rows(pool, x, z)
        out = gradient.values if chain.windows is None else pool.take(x.shape)
        chain.passes.backward(
            trials,
            channels,
            x.reshape(-1),
            head,
            self.taps,
            _table(self.geometry, x.shape[-1], True),
            z.shape[1] // channels,
            z.reshape(-1),
            tail,
            gradient.values.reshape(-1),
            rows,
            out.reshape(-1),
            edge,
        )
        pool.give(rows)
        start, middle, end = self.exponents
        inside = gradient.exponent + (end - middle)
        found = _signals(chain.tail, tail, gradient.exponent)
        if chain.windows is not None:
            gradient.release(pool)
            found[chain.windows] = Signal(RELEASED, inside, tail.sums[READ] if chain.tail else edge)
            found |= _signals(chain.head, head, inside)
        summary = head.sums[READ] if chain.head else tail.sums[READ] if chain.windows is None else edge
        return found, settled(Signal(out, inside + (middle - start), summary))


def run_chain(
    chain: Chain, network: Network, calls: Mapping[int, Call], lasting: Sequence[bool], pool: Pool
) -> tuple[dict[int, Signal], ChainRun]:
    """Run forward; return the outputs of the nodes, and of what is read where its moments are taken only here.

    `calls` has the call of what is read and of the windows; `lasting` says which nodes' outputs wait for the way back.
    """
    source, nodes = calls[chain.source].output, network.nodes
    x, batch = source.values, source.values.shape[-1]
    head, middle = _start(chain.head, source)
    taps, geometry, between = np.empty(0, pool.dtype), None, source
    if chain.windows is not None:
        z = pool.take((len(x), *nodes[chain.windows].shape, batch), lasting=lasting[chain.windows])
        between = Signal(z, middle)
        operation = nodes[chain.windows].operation
        assert isinstance(operation, Windows)
        weights, geometry = window(operation, calls[chain.windows], z.shape)
        taps = weights.reshape(-1)
    tail, end = _start(chain.tail, between)
    z = out = between.values
    last = chain.nodes[-1]
    if chain.tail:
        out = pool.take((len(x), *nodes[last].shape, batch), lasting=lasting[last])
    rows, channels = _rows(pool, x, z), x.shape[1]
    chain.passes.forward(
        len(x),
        channels,
        x.reshape(-1),
        head,
        taps,
        _table(geometry, batch, False),
        z.shape[1] // channels,
        z.reshape(-1),
        tail,
        out.reshape(-1),
        rows,
    )
    pool.give(rows)
    found = _signals(chain.head, head, middle) | _signals(chain.tail, tail, end)
    if chain.windows is not None:
        found[chain.windows] = _read(z, middle, tail)
    if not source.summary.size:
        found[chain.source] = _read(x, source.exponent, head if chain.head else tail)
    found[last].values = out
    found[last] = settled(found[last])
    return found, ChainRun(chain, x, head, taps, geometry, z, tail, (source.exponent, middle, end))


def _start(link: Normalisation | None, source: Signal) -> tuple[Link, Exponents]:
    """Return a link to be run, or one that is not there, and the exponents of what it gives."""
    trials, channels = source.values.shape[:2]
    exponent, number = source.exponent, source.values.dtype.type
    rows, units, sums = np.empty((3, trials, channels)), np.empty((3, trials)), np.empty((3, trials, 3))
    if link is None:
        return Link(False, False, number(0), units, rows, sums), exponent
    known = bool(source.mean.size)
    if known:
        rows[CENTER], rows[VARIANCE] = source.mean, source.variance
    given = exponent
    if exponent.any():
        inside, after = normalised_exponents(link.eps, exponent)
        given = exponent + after
        units[INNER], units[ADDED] = np.ldexp(1.0, 2 * inside), np.ldexp(link.eps, 2 * after)
        units[POWER] = np.ldexp(1.0, 2 * given)
    else:
        units[INNER], units[ADDED], units[POWER] = 1.0, link.eps, 1.0
    return Link(True, known, number(link.function.parameter), units, rows, sums), given


def normalised_exponents(eps: float, exponent: Exponents) -> tuple[Exponents, Exponents]:
    """Return the power of two for a source's deviation in 1 / sqrt(variance + eps), and the one in front of that.

    See `pointwise.deviations`.
    """
    if eps == 0.0:
        return np.zeros_like(exponent), -exponent
    return np.minimum(exponent, 0), -np.maximum(exponent, 0)


def _signals(link: Normalisation | None, run: Link, exponent: Exponents) -> dict[int, Signal]:
    """Return what a link's nodes give, known by its moments alone."""
    if link is None:
        return {}
    return {node: Signal(RELEASED, exponent, run.sums[place]) for place, node in enumerate(link.nodes, NORMAL)}


def _read(values: Array, exponent: Exponents, reader: Link) -> Signal:
    """Return what a link reads, with the moments that it took."""
    return Signal(values, exponent, reader.sums[READ], reader.rows[CENTER], reader.rows[VARIANCE])


def _scalars(families: Sequence[str], which: str) -> tuple[Scalar, ...]:
    return tuple(getattr(scalar, f"{family}_{which}") for family in families)


def _table(geometry: Geometry | None, batch: int, back: bool) -> Runs:
    return NO_RUNS if geometry is None else runs(geometry, batch, back)


def _rows(pool: Pool, *maps: Array) -> Array:
    """Return memory for three rows, each large enough for a channel of any of the maps."""
    line = LINE // pool.dtype.itemsize
    longest = max(values.size // (len(values) * values.shape[1]) for values in maps)
    return pool.take((3, -(-longest // line) * line))
