"""What every engine returns: moments of each node, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Network

Profile = tuple[tuple[float, ...], ...]
"""Rows of a map: the second moment at each position over its average."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one node's output, or of the gradient with respect to it.

    Averages run over weight draws, batch, channels and positions. `log_second_moment` is the natural
    log of the second moment and stays finite where the second moment leaves float range; -inf for an exact
    zero. Fields that an engine does not know are None.
    """

    mean: float
    second_moment: float
    variance: float | None
    """Per channel over batch and positions at fixed weights, averaged over channels and draws, as BN sees it."""
    log_second_moment: float
    log_second_moment_mean: float | None
    """Mean over draws of the log of the second moment over batch, channels and positions."""
    log_second_moment_sd: float | None
    standard_error: float | None = None
    """Of `second_moment`, over independent draws (Monte Carlo only)."""
    trials: int | None = None
    profile: Profile | None = None
    """Where asked for, and known (theory only)."""


@dataclass(frozen=True, slots=True)
class LayerMoments:
    """One node's row of a report."""

    forward: Moments
    backward: Moments
    notes: tuple[str, ...] = ()
    """Assumptions that fail at this layer, in words."""
    weightless: bool = False
    """Whether the layer acted without its weights being drawn (Monte Carlo only)."""


@dataclass(frozen=True)
class Report:
    """One engine's answer for one network: a row per node, in the network's order."""

    engine: str
    network: Network
    layers: tuple[LayerMoments, ...]
    settings: dict[str, object] = field(default_factory=dict)
    """What the engine was told (trials, seed, batch, ...), for provenance."""

    def _repr_html_(self) -> str:
        from varprop.simulator.notebook import report_html

        return report_html(self)


@dataclass(frozen=True)
class Batch:
    """The fixed batch that theory is conditioned on and Monte Carlo feeds.

    `data` has shape (batch, *input shape), float64. `exchangeable` says that samples and positions are i.i.d. draws,
    so that theory may average the batch's kernel over samples.
    """

    data: NDArray[np.float64]
    source: str
    exchangeable: bool
