"""How long a sweep will take: a few of its points are run, cut short, and the others cost what those like them do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import astuple, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from varprop.simulator.errors import UserError
from varprop.simulator.limits import weight_count
from varprop.simulator.propagate import build_network
from varprop.simulator.sweep.evaluate import evaluate, trained
from varprop.simulator.sweep.executors import executor
from varprop.simulator.sweep.points import Point

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_SAMPLES = 16  # points run, each for an equal share of the work
_PATIENCE = 10.0  # seconds after which no further one is waited for
_SHALLOW = 12
_FEW_TRIALS = 4
_FEW_STEPS = 32
_ROUGHLY = np.array([3e-3, 1e-10, 3e-4, 1e-10])  # seconds a unit of each kind of work, to choose the points by
_START = 10  # nodes that what is done once a point costs as much as
_KINDS = ((0,), (1,), (2, 3))  # columns of work: of theory, Monte Carlo and training


def estimate(points: Sequence[Point], workers: int) -> float:
    """Return about how many seconds the points take on so many processes.

    Notes
    -----
    Points are put in an order in which neighbours are alike, and so many run as stand for equal shares of the work
    (systematic sampling with probability proportional to size), as many at a time as the sweep runs. They are cut
    short: theory's work grows with the depth, a Monte Carlo's with trials times products, a training's with steps times
    nodes and with products. Rates are fitted to seconds, relative to each; a point is as far from the fit as the
    nearest that was run.
    """
    work = np.array([_work(point) for point in points])
    order = np.array(
        sorted(np.flatnonzero(work.any(axis=1)).tolist(), key=lambda index: _place(points[index])), np.intp
    )
    if not len(order):
        return 0.0
    chosen = chosen_places(work[order] @ _ROUGHLY, _SAMPLES)
    short = [_short(points[int(order[place])]) for place in chosen]
    seconds = _measured(short, workers)
    known = [number for number, found in enumerate(seconds) if found is not None]
    each = extrapolated(
        work[order],
        chosen[known],
        np.array([_work(short[number]) for number in known]),
        np.array([seconds[number] for number in known], np.float64),
    )
    return float(max(each.sum() / min(workers, len(points)), each.max()))


def chosen_places(size: Array, count: int) -> Ints:
    """Return which of some points stand for equal shares of their size, and what lies around them."""
    end = np.cumsum(size)
    return np.unique(np.searchsorted(end, (np.arange(count) + 0.5) / count * end[-1]))


def extrapolated(work: Array, places: Ints, short: Array, seconds: Array) -> Array:
    """Return the seconds of every point.

    Parameters
    ----------
    work
        Of all points, shape (points, columns).
    places, short, seconds
        Of those that were run which ones they are, their work cut short, and their time by kind of work.
    """
    nearest = places[np.abs(np.arange(len(work))[:, None] - places).argmin(axis=1)]
    number = np.searchsorted(places, nearest)
    total = np.zeros(len(work))
    for kind, columns in enumerate(_KINDS):
        asked, found = short[:, columns], seconds[:, kind]
        live = asked.any(axis=1)
        if not live.any():
            continue
        rates, _ = nnls(asked[live] / found[live, None], np.ones(int(live.sum())))
        fitted = asked @ rates
        off = np.divide(found, fitted, out=np.ones_like(found), where=fitted > 0)
        total += work[:, columns] @ rates * off[number]
    return total


def _measured(points: Sequence[Point], workers: int) -> list[tuple[float, ...] | None]:
    """Return the seconds of each point by kind of work, None of those that patience did not last for."""
    # Any part of this order is spread evenly.
    order = np.argsort(np.arange(len(points)) * (5**0.5 - 1) / 2 % 1.0)
    with executor(None, min(workers, len(points)), None) as (pool, *_):
        running: dict[int, Future[tuple[float, ...]]] = {int(i): pool.submit(_timed, points[i]) for i in order}
        running[int(order[0])].result()
        end = time.monotonic() + _PATIENCE
        found: list[tuple[float, ...] | None] = [None] * len(points)
        for index, future in running.items():
            if not future.done() and time.monotonic() > end and future.cancel():
                continue
            found[index] = future.result()
    return found


def _timed(point: Point) -> tuple[float, ...]:
    """Return the seconds of theory, of the Monte Carlo and of training, zero where there is none."""
    engines = point.settings.engines
    theory, drawn = (
        replace(point, settings=replace(point.settings, engines=(engine,)), training=None)
        for engine in ("theory", "monte-carlo")
    )
    return (
        _second_run(evaluate, theory) if "theory" in engines else 0.0,
        _second_run(evaluate, drawn) if "monte-carlo" in engines else 0.0,
        _second_run(trained, point) if point.training is not None else 0.0,
    )


def _second_run(run: Callable[[Point], object], point: Point) -> float:
    run(point)  # imports, compilation and tables, which other points share
    begun = time.perf_counter()
    run(point)
    return time.perf_counter() - begun


def _place(point: Point) -> tuple[str, int]:
    """Return a key of which points next to each other are alike."""
    settings = point.settings
    return str(astuple(replace(settings, depth=None, seed=0))), settings.depth or 0


def _short(point: Point) -> Point:
    settings = point.settings
    training = point.training and replace(point.training, steps=min(point.training.steps or _FEW_STEPS, _FEW_STEPS))
    depth = settings.depth and min(settings.depth, _SHALLOW)
    return replace(
        point,
        settings=replace(settings, depth=depth, trials=min(settings.trials, _FEW_TRIALS)),
        training=training,
    )


def _work(point: Point) -> Array:
    """Return nodes, products of all trials, and of training nodes times steps, and products.

    All are zero where no network comes of the settings.
    """
    settings = point.settings
    try:
        network = build_network(settings)
    except UserError:
        return np.zeros(len(_ROUGHLY))
    products = sum(weight_count(node) * float(np.prod(node.shape[1:])) for node in network.nodes)
    theory = _START + len(network) if "theory" in settings.engines else 0
    trials = settings.trials * settings.batch if "monte-carlo" in settings.engines else 0
    steps, passes = (0.0, 0.0) if point.training is None else point.training.work(settings.batch)
    return np.array([theory, trials * products, steps * len(network), passes * products], np.float64)
