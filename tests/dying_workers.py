"""Points of a sweep that kill their worker; a module of its own, because workers import it by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from varprop.simulator.sweep.evaluate import Outcome, evaluate_all
from varprop.simulator.sweep.points import Point

MARK = "VARPROP_TEST_MARK"
"""Names the variable with the path that `dies_once` leaves behind."""


def dies_once(points: Sequence[Point]) -> list[Outcome]:
    """Kill the worker unless another one has died before."""
    mark = Path(os.environ[MARK])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate_all(points)


def dies(points: Sequence[Point]) -> list[Outcome]:
    """Kill the worker."""
    os.kill(os.getpid(), signal.SIGKILL)
    return evaluate_all(points)
