"""Where an assumption fails or a number ends, in words at the layer where it happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from varprop.simulator.network import BatchNorm, Network
from varprop.simulator.report import Moments
from varprop.simulator.theory.kurtosis import output_kurtosis
from varprop.simulator.theory.signal import Signal

GAUSSIAN = 0.5
"""Excess kurtosis from which on an output is called not Gaussian."""

EPS_FELT = 0.99
"""Second moment after a normalisation below which its eps is called felt."""

FEW = 32
"""Values a channel below which a normalisation ties each to the others: it takes 2 / 32 of a gradient's directions."""

SPREAD = 0.5
"""Deviation of a log second moment from which on its mean is not typical: it is e^(1/8), 13%, above the median."""

DEAD, BEYOND_FLOAT32 = math.log(1e-30), math.log(3.4e38)
"""Logs of second moments below which a signal is dead, and above which single precision overflows."""


def notes(
    network: Network, signals: list[Signal], forward: Sequence[Moments], backward: Sequence[Moments]
) -> list[tuple[str, ...]]:
    """Return what there is to say at every node.

    What lasts (a dead signal, a spread) is said where it begins: at nodes none of whose inputs has it; of the gradient,
    none of whose readers.
    """
    found: list[list[str]] = [[] for _ in network.nodes]
    for index, node in enumerate(network.nodes):
        kurtosis = output_kurtosis(network, index, signals)
        if kurtosis is not None and abs(kurtosis - 3) > GAUSSIAN:
            found[index].append(f"fan {node.fan_in}: not Gaussian, kurtosis {kurtosis:.1f}")
        if isinstance(node.operation, BatchNorm):
            values = signals[index].kernel.layout.batch * math.prod(node.shape[1:])
            found[index] += _normalisation(node.operation, signals[index], values)
    for rows, sources, symbol, what in (
        (forward, [node.inputs for node in network.nodes], "q", "output"),
        (backward, network.consumers, "g", "gradient"),
    ):
        for holds, words in _ENDINGS:
            state = [holds(row) for row in rows]
            for index, came_from in enumerate(sources):
                if state[index] and not any(state[i] for i in came_from):
                    spread = rows[index].log_second_moment_sd or 0.0
                    found[index].append(
                        words.format(
                            what=what, q=symbol, sd=spread, mean=spread**2 / 2, width=network.nodes[index].shape[0]
                        )
                    )
    return [tuple(lines) for lines in found]


def _normalisation(operation: BatchNorm, signal: Signal, values: int) -> list[str]:
    assert signal.law is not None
    law, found = signal.law, []
    if law.ratio < EPS_FELT:
        plain = law.mean / (law.mean + operation.eps) if law.mean > 0 else 0.0
        found.append(
            f"eps {operation.eps:g} is felt: E[v/(v + eps)] = {law.ratio:.3g} over channels of variance v, not 1; "
            f"E[v]/(E[v] + eps) = {plain:.3g}"
        )
    if values < FEW:
        found.append(f"normalised over {values} values a channel, which ties them and their gradients to one another")
    return found


def _spreads(row: Moments) -> bool:
    return row.log_second_moment_sd is not None and row.log_second_moment_sd > SPREAD


_ENDINGS: tuple[tuple[Callable[[Moments], bool], str], ...] = (
    (lambda row: row.log_second_moment == -math.inf, "{what} exactly zero"),
    (lambda row: -math.inf < row.log_second_moment < DEAD, "dead: second moment of the {what} below 1e-30"),
    (lambda row: row.log_second_moment > BEYOND_FLOAT32, "second moment of the {what} beyond single precision"),
    (
        _spreads,
        "width {width}: log {q} spreads by {sd:.2g} over draws, the mean is e^{mean:.2g} times the typical value",
    ),
)
