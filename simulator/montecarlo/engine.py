"""Trials over threads: the engine's face."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal

import numpy as np
from numba.core import event
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from varprop.simulator.checks import check_batch
from varprop.simulator.errors import UserError
from varprop.simulator.jit import CompilationWatch
from varprop.simulator.limits import weight_count
from varprop.simulator.montecarlo.aggregate import TrialMoments, summarize, trial_moments
from varprop.simulator.montecarlo.draws import Draws
from varprop.simulator.montecarlo.signal import Pool
from varprop.simulator.montecarlo.trial import Plan, run_trials
from varprop.simulator.montecarlo.weightless import unseen_layers
from varprop.simulator.network import Network
from varprop.simulator.report import Batch, Report

Precision = Literal["float32", "float64"]
Progress = Callable[[int, int], None]

WORD = 2**32

BLOCK = 2**16
"""Numbers that a map of a block should hold: then the calls into compiled code cost less than their work."""

MOST_TRIALS = 64
"""Largest number of trials in a block."""

MEMORY = 2**29
"""Numbers that all blocks at work may hold (2 GB in float32); a single trial may be larger."""


def simulate(
    network: Network,
    batch: Batch,
    *,
    trials: int,
    seed: int,
    threads: int | None = None,
    dtype: Precision = "float32",
    weightless: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Measure every node's moments over random draws of the weights.

    The batch is held fixed. Every trial draws weights and biases, and an i.i.d. N(0, 1) cotangent at the network's
    output that goes back to the input (gradients with respect to outputs; a derivative at a kink is the left one).
    Sums are in float64 whatever `dtype`.

    Parameters
    ----------
    network
        What to run.
    batch
        What to feed it.
    trials
        Number of independent draws.
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
    progress
        Called as progress(done, trials) after every block of trials, from the calling thread.

    Returns
    -------
    Report
        With standard errors over trials. See `Moments` for None; mean and deviation of a log are None too where
        a trial's second moment is exactly zero.

    Raises
    ------
    UserError
        A count or the seed out of range, a batch that does not fit the network, a normalisation over a single value.
    """
    forward, backward = simulate_trials(
        network,
        batch,
        trials=trials,
        seed=seed,
        threads=threads,
        dtype=dtype,
        weightless=weightless,
        progress=progress,
    )
    settings: dict[str, object] = {
        "trials": trials,
        "seed": seed,
        "precision": dtype,
        "batch": len(batch.data),
        "input": batch.source,
    }
    unseen = unseen_layers(network, len(batch.data)) if weightless else frozenset()
    return Report("monte-carlo", network, summarize(forward, backward, unseen), settings)


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
    threads = _usable_cores() if threads is None else threads
    _check_range("trials", trials, 1, WORD - 1)
    _check_range("threads", threads, 1, 4096)
    _check_range("seed", seed, 0, WORD**2 - 1)
    data = _lay_out(network, batch, dtype)
    plan = Plan(network, unseen_layers(network, len(batch.data)) if weightless else frozenset())
    records = np.empty((trials, 2, len(network), 4))
    local = threading.local()

    def run(first: int) -> int:
        if not hasattr(local, "pool"):
            local.pool = Pool(dtype)
        count = min(size, trials - first)
        records[first : first + count] = run_trials(plan, data, Draws(seed, first, count, dtype), local.pool)
        return count

    size = min(_block_size(plan, len(batch.data), threads), -(-trials // (4 * threads)))
    # One BLAS thread a block: blocks are parallel already, and a product's rounding may depend on its threads.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(threads, trials)) as executor:
        futures = [executor.submit(run, first) for first in range(0, trials, size)]
        done = 0
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress is not None:
                    progress(done, trials)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return trial_moments(records)


def _block_size(plan: Plan, batch: int, threads: int) -> int:
    """Return how many trials to run at once: maps of about `BLOCK` numbers, as far as `MEMORY` goes."""
    nodes = plan.network.nodes
    maps = [batch * math.prod(node.shape) for node in nodes]
    weights = [0 if index in plan.unseen else weight_count(node) for index, node in enumerate(nodes)]
    fitting = MEMORY // (threads * (2 * sum(maps) + sum(weights)))
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
