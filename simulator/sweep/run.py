"""A sweep: what the store has, and the rest from the executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from pathlib import Path

from varprop.simulator.errors import UserError
from varprop.simulator.sweep.evaluate import Outcome, evaluate_all, failure
from varprop.simulator.sweep.executors import executor
from varprop.simulator.sweep.points import Point
from varprop.simulator.sweep.store import Store

Progress = Callable[[int, int], None]

_AHEAD = 4  # points handed over for each worker, so that none waits and few are lost
_RESTARTS = 3  # of a pool that lost a process without a point done in between, or of a point that a cluster lost


def sweep(
    points: Sequence[Point],
    *,
    store: Store | None = None,
    scheduler: str | None = None,
    workers: int = 1,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Return every point's outcome, without layers: those stay in the store.

    Parameters
    ----------
    points
        Any number; the result has their order.
    store
        Where outcomes are looked for, and kept as they come. Failed points are not kept.
    scheduler, workers, folder
        As for `executor`.
    progress
        Called as progress(done, points).

    Raises
    ------
    UserError
        Workers that die again and again.
    """
    found: dict[str, Outcome] = {}
    keys = [point.key for point in points]
    pending = dict(zip(keys, points, strict=True))
    for key in list(pending):
        if _known(key, store, found):
            del pending[key]
    # The longest first, so that none of them is left for the end.
    waiting = sorted(pending, key=lambda key: pending[key].settings.depth or 0, reverse=True)
    lost = 0
    while waiting and lost <= _RESTARTS:
        before = len(found)
        try:
            with executor(scheduler, workers, folder) as (pool, slots, most):
                _collect(pool, slots * _AHEAD, _dealt(waiting, most), pending, store, found, progress)
        except BrokenExecutor:
            lost = lost + 1 if len(found) == before else 1
            waiting = [key for key in waiting if key not in found]
        else:
            waiting = []
    if waiting:
        raise UserError("sweep", "workers that die", "memory for a point on each", "lower --workers or --batch")
    return [found[key] for key in keys]


def _dealt(keys: list[str], most: float) -> list[list[str]]:
    """Deal points to tasks, at most so many, each from the longest to the shortest."""
    count = int(min(len(keys), most))
    return [keys[first::count] for first in range(count)]


def _collect(
    pool: Executor,
    ahead: float,
    tasks: list[list[str]],
    pending: dict[str, Point],
    store: Store | None,
    found: dict[str, Outcome],
    progress: Progress | None,
) -> None:
    running: dict[Future[list[Outcome]], list[str]] = {}
    attempts: Counter[str] = Counter()

    def submit(keys: list[str]) -> None:
        running[pool.submit(evaluate_all, [pending[key] for key in keys])] = keys

    queue = iter(tasks)
    total = len(pending)
    start = total - sum(map(len, tasks)) - len(found)
    more = True
    while more or running:
        while more and len(running) < ahead:
            task = next(queue, None)
            if task is None:
                more = False
            elif keys := [key for key in task if not _known(key, store, found)]:  # another process may have done some
                submit(keys)
        done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), set())
        for future in done:
            keys = running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                raise error
            if error is not None and attempts[keys[0]] < _RESTARTS:
                # A point's own errors are outcomes: this is the cluster's, which lost a worker or a connection.
                attempts[keys[0]] += 1
                submit(keys)
                continue
            outcomes = future.result() if error is None else [failure(error)] * len(keys)
            for key, outcome in zip(keys, outcomes, strict=True):
                if store is not None and outcome.status != "failed":
                    store.put(key, outcome.to_bytes())
                found[key] = replace(outcome, layers=[])
        if progress is not None:
            progress(start + len(found), total)


def _known(key: str, store: Store | None, found: dict[str, Outcome]) -> bool:
    data = None if store is None else store.get(key)
    if data is not None:
        found[key] = replace(Outcome.from_bytes(data), layers=[])
    return key in found
