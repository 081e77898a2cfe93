"""How long a sweep will take: a linear model of a point's work, fitted to a few points that are run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from varprop.simulator.errors import UserError
from varprop.simulator.limits import weight_count
from varprop.simulator.propagate import build_network
from varprop.simulator.sweep.evaluate import evaluate, trained
from varprop.simulator.sweep.points import Point

_SAMPLES = 6  # points run, evenly over the range of work
_PATIENCE = 10.0  # seconds after which no further one is begun
_CUT = 16  # rows and columns of a map that theory works on
_FEW_TRIALS = 4
_FEW_STEPS = 32


def estimate(points: Sequence[Point], workers: int) -> float:
    """Return about how many seconds the points take on so many processes.

    Notes
    -----
    Theory's work grows with the number of nodes and, in a map, with the square of the number of positions it looks at;
    a Monte Carlo trial's, and a training's, with the number of products; a training step has its price for each node,
    too. The fit is to seconds per point, relative to each.
    """
    work = np.array([_work(point) for point in points])
    usable = [int(i) for i in np.argsort(work.sum(axis=1)) if work[i].any()]
    if not usable:
        return 0.0
    chosen = [usable[place] for place in sorted({round(x) for x in np.linspace(0, len(usable) - 1, _SAMPLES)})]
    evaluate(_short(points[chosen[0]]))  # imports, compilation and tables
    rows, seconds, start = [], [], time.monotonic()
    for index in chosen:
        short = _short(points[index])
        untrained = replace(short, training=None)
        begun = time.monotonic()
        evaluate(untrained)
        seconds.append(time.monotonic() - begun)
        rows.append(_work(untrained))
        if short.training is not None:  # by itself: beside theory's time it may be lost in the noise
            begun = time.monotonic()
            trained(short)
            seconds.append(time.monotonic() - begun)
            rows.append(_work(short) - _work(untrained))
        if time.monotonic() - start > _PATIENCE:
            break
    scale = 1 / np.array(seconds)
    rates, _ = nnls(np.array(rows) * scale[:, None], np.ones(len(rows)))
    each = work @ rates
    return float(max(each.sum() / min(workers, len(points)), each.max()))


def _short(point: Point) -> Point:
    settings = point.settings
    training = point.training and replace(point.training, steps=min(point.training.steps or _FEW_STEPS, _FEW_STEPS))
    return replace(point, settings=replace(settings, trials=min(settings.trials, _FEW_TRIALS)), training=training)


def _work(point: Point) -> NDArray[np.float64]:
    """Return nodes, squared positions, products of all trials, and of training nodes times steps, and products.

    All are zero where no network comes of the settings.
    """
    settings = point.settings
    try:
        network = build_network(settings)
    except UserError:
        return np.zeros(5)
    maps = [node.shape[1:] for node in network.nodes if len(node.shape) == 3]
    positions = sum((min(height, _CUT) * min(width, _CUT)) ** 2 for height, width in maps)
    products = sum(weight_count(node) * float(np.prod(node.shape[1:])) for node in network.nodes)
    trials = settings.trials * settings.batch if "monte-carlo" in settings.engines else 0
    steps, passes = (0.0, 0.0) if point.training is None else point.training.work(settings.batch)
    nodes = len(network)
    return np.array([nodes, positions, trials * products, steps * nodes, passes * products], np.float64)
