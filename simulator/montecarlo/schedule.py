"""Blocks of trials over threads: a given number of them, or rounds until every standard error is small enough."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from varprop.simulator.montecarlo.aggregate import TrialMoments, relative_error, trial_moments
from varprop.simulator.montecarlo.draws import Draws
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.trial import Plan, Records, run_trials

Array = NDArray[np.floating]
Progress = Callable[[int, int], None]

FIRST_ROUND = 32
"""Trials before the first look at standard errors, which are then known to one part in eight."""

GROWTH = (1.1, 4.0)
"""Least and largest factor from one look to the next."""


@dataclass
class Schedule:
    """What to run on how many threads, `size` trials at a time; the records of what is done.

    Rounds end at numbers of trials that the records alone decide, so that the result depends on neither.
    """

    plan: Plan
    data: Array
    seed: int
    dtype: DTypeLike
    threads: int
    size: int
    progress: Progress | None
    _done: dict[int, Records] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)

    @property
    def records(self) -> Records:
        """Return the records of the trials done, in their order; kept in one piece then, and not twice."""
        if len(self._done) > 1:
            moments, controls = zip(*(self._done[first] for first in sorted(self._done)), strict=True)
            self._done = {0: Records(np.concatenate(moments), np.concatenate(controls))}
        (whole,) = self._done.values()
        return whole

    @property
    def trial_moments(self) -> tuple[TrialMoments, TrialMoments]:
        """Return the moments of the trials done, (forward, backward)."""
        return trial_moments(*self.records, self.plan.columns)

    @property
    def count(self) -> int:
        """Number of trials done."""
        return sum(len(records.moments) for records in self._done.values())

    def run(self, trials: int, precision: float | None) -> None:
        """Run `trials` trials, or fewer if every relative standard error is at most `precision` before.

        A KeyboardInterrupt passes on once the blocks at work have ended and been kept.
        """
        # One BLAS thread a block: blocks are parallel already, and a product's rounding may depend on its threads.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(self.threads) as executor:
            stop, expected = trials if precision is None else min(FIRST_ROUND, trials), trials
            while True:
                self._round(executor, stop, expected)
                if precision is None or stop == trials:
                    return
                error = relative_error(*self.trial_moments)
                if error <= precision:
                    return
                needed = math.ceil(stop * (error / precision) ** 2)
                expected = min(trials, needed)
                low, high = (math.ceil(factor * stop) for factor in GROWTH)
                stop = min(trials, max(low, min(high, needed)))

    def _round(self, executor: ThreadPoolExecutor, stop: int, expected: int) -> None:
        futures: dict[Future[Records], int] = {}
        try:
            for first in range(self.count, stop, self.size):
                futures[executor.submit(self._block, first, stop)] = first
            for future in as_completed(futures):
                self._keep(future, futures[future])
                if self.progress is not None:
                    self.progress(self.count, max(stop, expected))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            for future, first in futures.items():
                if not future.cancelled() and future.exception() is None:
                    self._keep(future, first)
            raise

    def _keep(self, future: Future[Records], first: int) -> None:
        self._done[first] = future.result()

    def _block(self, first: int, stop: int) -> Records:
        if not hasattr(self._local, "pool"):
            self._local.pool = Pool(self.dtype)
        draws = Draws(self.seed, first, min(self.size, stop - first), self.dtype)
        return run_trials(self.plan, self.data, draws, self._local.pool)
