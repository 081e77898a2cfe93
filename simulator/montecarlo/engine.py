"""Trials over threads: the engine's face."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Literal

import numpy as np
from numba.core import event
from numpy.typing import NDArray

from varprop.simulator.checks import check_batch
from varprop.simulator.errors import UserError
from varprop.simulator.jit import CompilationWatch
from varprop.simulator.montecarlo.aggregate import TrialMoments, relative_error, summarize
from varprop.simulator.montecarlo.memory import BUDGET, block_bytes, refuse_what_does_not_fit
from varprop.simulator.montecarlo.schedule import Schedule
from varprop.simulator.montecarlo.trial import Plan
from varprop.simulator.montecarlo.weightless import unseen_layers
from varprop.simulator.network import Network
from varprop.simulator.report import Batch, Report

Precision = Literal["float32", "float64"]
Progress = Callable[[int, int], None]

WORD = 2**32

LEAST_KEPT = 2
"""Trials without which there is no standard error."""

BLOCK = 2**19
"""Numbers that a map of a block should hold: then the calls into compiled code cost less than their work."""

MOST_TRIALS = 128
"""Largest number of trials in a block."""


def simulate(
    network: Network,
    batch: Batch,
    *,
    trials: int,
    seed: int,
    threads: int | None = None,
    dtype: Precision = "float32",
    weightless: bool = True,
    precision: float | None = None,
    keep_interrupted: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure every node's moments over random draws of the weights.

    The batch is held fixed. Every trial draws weights and biases, and an i.i.d. N(0, 1) cotangent at the network's
    output that goes back to the input (gradients with respect to outputs; a derivative at a kink is the left one).
    Sums over more than a few hundred numbers are in float64 whatever `dtype`.

    Parameters
    ----------
    network
        What to run.
    batch
        What to feed it.
    trials
        Number of independent draws; the largest number where `precision` is given.
    seed
        From 0 to 2**64 - 1. With a larger `trials` the first trials stay the same.
    threads
        Trials at a time (default: the cores this process may use). The result does not depend on it, bit for bit.
    dtype
        Type of weights and maps. Powers of two are carried beside the maps, so that depth alone does not leave its
        range; only sums of very different magnitudes and activations that are not homogeneous feel it.
    weightless
        Let layers of independent Gaussian weights act without being drawn where that is cheaper: the law of all that is
        measured is the same, the draws are others.
    precision
        Stop when the standard error of every node's second moment, forward and backward, is at most this share of it.
    keep_interrupted
        On a KeyboardInterrupt, report the trials that are done (if at least two) in place of passing it on.
    progress
        Called as progress(done, expected number of trials) after every block of trials, from the calling thread.

    Returns
    -------
    Report
        With standard errors over trials. Means, not the statistics of logs, are taken with control variates, which
        move no expectation and make errors smaller. `settings` says how many trials ran, whether they were interrupted,
        and the largest relative standard error. See `Moments` for None; mean and deviation of a log are None too where
        a trial's second moment is exactly zero.

    Raises
    ------
    UserError
        A count or the seed out of range, a batch that does not fit the network, a normalisation over a single value,
        a trial that does not fit the machine's memory.
    """
    schedule = _schedule(network, batch, trials, seed, threads, dtype, weightless, progress)
    interrupted = False
    try:
        schedule.run(trials, precision)
    except KeyboardInterrupt:
        if not keep_interrupted or schedule.count < LEAST_KEPT:
            raise
        interrupted = True
    forward, backward = schedule.trial_moments
    settings: dict[str, object] = {
        "trials": schedule.count,
        "interrupted": interrupted,
        "relative_error": relative_error(forward, backward) if schedule.count > 1 else None,
        "seed": seed,
        "precision": dtype,
        "batch": len(batch.data),
        "input": batch.source,
    }
    return Report("monte-carlo", network, summarize(forward, backward, schedule.plan.unseen), settings)


def simulate_trials(
    network: Network,
    batch: Batch,
    *,
    trials: int,
    seed: int,
    threads: int | None = None,
    dtype: Precision = "float32",
    weightless: bool = True,
    progress: Progress | None = None,
) -> tuple[TrialMoments, TrialMoments]:
    """Return the moments of every single trial, (forward, backward); everything else as in `simulate`."""
    schedule = _schedule(network, batch, trials, seed, threads, dtype, weightless, progress)
    schedule.run(trials, None)
    return schedule.trial_moments


def _schedule(
    network: Network,
    batch: Batch,
    trials: int,
    seed: int,
    threads: int | None,
    dtype: Precision,
    weightless: bool,
    progress: Progress | None,
) -> Schedule:
    threads = _usable_cores() if threads is None else threads
    _check_range("trials", trials, 1, WORD - 1)
    _check_range("threads", threads, 1, 4096)
    _check_range("seed", seed, 0, WORD**2 - 1)
    data = _lay_out(network, batch, dtype)
    plan = Plan(network, unseen_layers(network, len(batch.data)) if weightless else frozenset())
    item = np.dtype(dtype).itemsize
    refuse_what_does_not_fit(plan, len(batch.data), item)
    threads = min(threads, trials, max(1, BUDGET // block_bytes(plan, len(batch.data), 1, item)))
    size = min(_block_size(plan, len(batch.data), threads, item), -(-trials // (4 * threads)))
    return Schedule(plan, data, seed, dtype, threads, size, progress)


def _block_size(plan: Plan, batch: int, threads: int, item: int) -> int:
    """Return how many trials to run at once: maps of about `BLOCK` numbers, as far as the budget goes."""
    maps = [batch * math.prod(node.shape) for node in plan.network.nodes]
    fitting = BUDGET // (threads * block_bytes(plan, batch, 1, item))
    return max(1, min(MOST_TRIALS, BLOCK * len(maps) // sum(maps), fitting))


def compile_kernels(network: Network, dtype: Precision = "float32", announce: Callable[[], None] | None = None) -> None:
    """Compile, or load from the cache on disk, everything that `simulate` will call for this network.

    Parameters
    ----------
    network
        Its operations decide what is compiled: one trial of two samples runs.
    dtype
        As for `simulate`.
    announce
        Called once, before the first compilation, if the cache lacks something.
    """
    shape = network.nodes[0].shape
    samples = np.linspace(-1.0, 1.0, 2 * math.prod(shape)).reshape(2, *shape)
    with event.install_listener("numba:compile", CompilationWatch(announce or (lambda: None))):
        simulate_trials(network, Batch(samples, "ramp", False), trials=1, seed=0, threads=1, dtype=dtype)


def _lay_out(network: Network, batch: Batch, dtype: Precision) -> NDArray[np.floating]:
    """Return the batch with the sample as its last axis, as all maps have it."""
    check_batch(network, batch)
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(np.moveaxis(batch.data, 0, -1), dtype=dtype)
    if not np.isfinite(data).all():
        raise UserError("batch", "NaN or infinity", f"finite numbers within {dtype}")
    return data


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(what, value, f"a whole number from {low} to {high}")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
