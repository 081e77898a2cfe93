"""What a block of trials needs in memory, worked out before it runs.

The pool of a thread keeps memory for as many arrays as were ever out together: lasting ones of each size, others of
the largest size; what is huge it does not keep. Here the requests of `run_trials` are gone through without arrays.
"""

from __future__ import annotations

import math
import os
from collections import Counter

from varprop.simulator.errors import UserError
from varprop.simulator.limits import weight_count
from varprop.simulator.montecarlo.chain import Chain
from varprop.simulator.montecarlo.convolution import piece_rows, pointwise
from varprop.simulator.montecarlo.operations import overwrites
from varprop.simulator.montecarlo.pool import HUGE
from varprop.simulator.montecarlo.trial import Plan
from varprop.simulator.network import Conv2d, Linear
from varprop.simulator.weight_law import bias_square

Sized = tuple[int, int]
Groups = list[list[Sized]]

DOUBLE = 8

OBJECTS = 2500
"""Bytes of Python's own objects that a node keeps from its turn forward to its turn back."""

PASSING = -1
"""Stands for the size of all arrays that do not last."""

SHARE = 0.8
"""Of the machine's memory that the arrays of all threads may take."""

BUDGET = 3 * 2**30
"""Bytes beyond which fewer trials run at once; a single trial may need more."""


class Ledger:
    """Counts arrays that are out, given by their number of elements and bytes an element."""

    def __init__(self) -> None:
        self._out: Counter[int] = Counter()
        self._most: Counter[int] = Counter()
        self._largest = 0
        self._huge = 0
        self._most_huge = 0

    def take(self, *arrays: Sized, lasting: bool = False) -> None:
        """Note that arrays are handed out."""
        for size in map(math.prod, arrays):
            if size > HUGE:
                self._huge += size
                self._most_huge = max(self._most_huge, self._huge)
                continue
            kind = size if lasting else PASSING
            self._out[kind] += 1
            self._most[kind] = max(self._most[kind], self._out[kind])
            if not lasting:
                self._largest = max(self._largest, size)

    def give(self, *arrays: Sized, lasting: bool = False) -> None:
        """Note that arrays came back."""
        for size in map(math.prod, arrays):
            if size > HUGE:
                self._huge -= size
            else:
                self._out[size if lasting else PASSING] -= 1

    def use(self, groups: Groups) -> None:
        """Hand out the arrays of a group together and take them back, one group after the other."""
        for arrays in groups:
            self.take(*arrays)
            self.give(*arrays)

    @property
    def bytes(self) -> int:
        """The largest sum: what is not huge stays with the pool."""
        own = sum(size * count for size, count in self._most.items() if size != PASSING)
        return self._most_huge + own + self._largest * self._most[PASSING]


def block_bytes(plan: Plan, batch: int, trials: int, item: int) -> int:
    """Return the bytes that one block takes.

    Parameters
    ----------
    plan
        What is to run.
    batch, trials
        Samples, and trials in the block.
    item
        Bytes of one number: 4 or 8.
    """
    nodes, consumers, kept = plan.network.nodes, plan.network.consumers, plan.kept
    sizes = [trials * batch * math.prod(node.shape) for node in nodes]
    stored = [0 if unstored else size for size, unstored in zip(sizes, plan.unstored, strict=True)]
    layers = [_layer_arrays(plan, index, batch, trials, item) for index in range(len(nodes))]
    within = {node: chain for chain in plan.chains.values() for node in chain.nodes}
    ledger = Ledger()
    unread = [len(found) for found in consumers]
    for index, node in enumerate(nodes):
        lasting, forward, _ = layers[index]
        ledger.take(*lasting, lasting=True)
        chain = within.get(index)
        if stored[index] and (chain is None or index in (chain.windows, chain.nodes[-1])):
            ledger.take((stored[index], item), lasting=kept[index])
        ledger.use(forward)
        if chain is not None and index == chain.nodes[-1]:
            ledger.use([[_chain_rows(plan, chain, batch, item)]])
        if chain is not None and index != chain.nodes[-1]:
            continue
        for source in (chain.source,) if chain else node.inputs:
            unread[source] -= 1
        for done in {index, *((chain.source,) if chain else node.inputs)}:
            if unread[done] == 0 and not kept[done] and stored[done]:
                ledger.give((stored[done], item))

    gradients = {len(nodes) - 1}
    ledger.take((sizes[-1], item))
    for index in reversed(range(len(nodes))):
        lasting, _, backward = layers[index]
        chain = within.get(index)
        if index in gradients and chain is not None:
            rows, source = _chain_rows(plan, chain, batch, item), chain.source
            ledger.take(rows)
            if chain.windows is not None:
                ledger.take((sizes[source], item))
                ledger.give((sizes[index], item))
            ledger.give(rows)
            _add(ledger, gradients, source, (sizes[source], item))
        elif index in gradients:
            inputs = nodes[index].inputs
            for source in inputs[:-1]:
                ledger.take((sizes[index], item))
                _add(ledger, gradients, source, (sizes[source], item))
            if not inputs:
                ledger.give((sizes[index], item))
                continue
            source = inputs[-1]
            if not overwrites(nodes[index].operation):
                ledger.take((sizes[source], item))
                ledger.use(backward)
                ledger.give((sizes[index], item))
            elif plan.unstored[source]:
                (source,) = nodes[source].inputs
            _add(ledger, gradients, source, (sizes[source], item))
        ledger.give(*lasting, lasting=True)
        if kept[index] and stored[index]:
            ledger.give((stored[index], item), lasting=True)
    # What chains read they measure themselves, in memory of their links.
    linked_nodes = {*plan.measured_later, *(chain.windows for chain in plan.chains.values())}
    asked = sum(node.shape[0] for i, node in enumerate(nodes) if plan.normalised[i] and i not in linked_nodes)
    scaled = sum(node.shape[0] for i, node in enumerate(nodes) if plan.unstored[i] and i not in within)
    linked = sum(nodes[i].shape[0] for chain in plan.chains.values() for i in (chain.source, _between(chain)))
    return ledger.bytes + OBJECTS * len(nodes) + DOUBLE * trials * (2 * asked + scaled + 3 * linked)


def _between(chain: Chain) -> int:
    """Return the node that a chain's second half starts from."""
    return chain.source if chain.windows is None else chain.windows


def _chain_rows(plan: Plan, chain: Chain, batch: int, item: int) -> Sized:
    """Return what a chain uses in passing, each way."""
    shapes = (plan.network.nodes[index].shape for index in (chain.source, _between(chain)))
    return 3 * max(batch * math.prod(shape[1:]) for shape in shapes), item


def _add(ledger: Ledger, gradients: set[int], index: int, array: Sized) -> None:
    """Note a gradient that came back to a node: it stays, or it is added to what is there."""
    if index in gradients:
        ledger.give(array)
    gradients.add(index)


def _layer_arrays(plan: Plan, index: int, batch: int, trials: int, item: int) -> tuple[list[Sized], Groups, Groups]:
    """Return what a node holds from its turn forward to its turn back, and what it uses in passing, each way.

    Arrays in passing come in groups that are out together.
    """
    node = plan.network.nodes[index]
    operation, outputs = node.operation, trials * batch * math.prod(node.shape)
    if not isinstance(operation, Conv2d | Linear):
        return [], [], []
    groups = operation.groups if isinstance(operation, Conv2d) else 1
    lines = node.fan_in or 0
    columns = outputs // node.shape[0]
    if index in plan.unseen:
        inputs = columns * groups * lines
        windows = [(inputs, item)] if isinstance(operation, Conv2d) else []
        if columns == trials:
            own = [(outputs, item)] if bias_square(node, plan.network.framework) else []
            return [*own, *windows], [], [windows]
        back = [[*windows, (inputs, item)]]
        # Matrices of several columns are copied to float64, two at a time.
        back += [[*windows, *[(numbers, DOUBLE)] * 2] for numbers in (inputs, outputs)]
        return [(outputs, item), *windows], [[(inputs, DOUBLE)]], back
    pieces: Groups = []
    if isinstance(operation, Conv2d) and not operation.depthwise and not pointwise(operation):
        _, height, width = node.shape
        step = min(height, piece_rows(lines, width, batch))
        pieces = [[(lines * rows * width * batch, item)] for rows in {step, height % step} if rows]
    return [(trials * weight_count(node), item)], pieces, pieces


def refuse_what_does_not_fit(plan: Plan, batch: int, item: int) -> None:
    """Raise UserError if one trial needs more memory than the machine has, with the batch that would fit."""
    limit = int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    needed = block_bytes(plan, batch, 1, item)
    if needed <= limit:
        return
    fits = batch
    while fits > 1 and block_bytes(plan, fits, 1, item) > limit:
        fits //= 2
    fitting = block_bytes(plan, fits, 1, item) <= limit
    raise UserError(
        "Monte Carlo's memory",
        f"{needed / 2**30:.1f} GiB for one trial at batch {batch}",
        f"at most {limit / 2**30:.1f} GiB",
        f"--batch {fits} fits" if fitting else "lower --size, --width or --depth",
    )
