"""One use of an operation in a block of trials: what rules of operations work with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.draws import Parameters
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.signal import Signal
from varprop.simulator.montecarlo.weightless import Unseen

Array = NDArray[np.floating]


@dataclass(slots=True)
class Call:
    """One use of an operation in a trial: what it reads forward, what it gave, and what both ways work with."""

    sources: list[Signal]
    drawn: Parameters | Unseen | None
    """Weights (or, unseen, what stands for them) and bias, None where the operation has none."""
    source_shape: tuple[int, ...]
    """Shape of the values of the first input."""
    by_channel: bool
    """Whether the output's moments are asked for by channel."""
    pool: Pool
    output: Signal = field(init=False)
    """Set after the forward pass."""
    passed: Signal | None = None
    """Gradient with respect to a source that is not stored, known by its moments alone."""

    @property
    def source(self) -> Signal:
        """The first input: the only one, but for sums."""
        return self.sources[0]

    @property
    def parameters(self) -> Parameters | Unseen:
        """Weights and bias of an operation that has them."""
        assert self.drawn is not None
        return self.drawn


def in_place_of(gradient: Signal, values: Array, pool: Pool) -> Signal:
    """Return the gradient that took the place of another."""
    gradient.release(pool)
    return Signal(values, gradient.exponent)
