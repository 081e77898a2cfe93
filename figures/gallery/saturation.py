"""Sigmoid and tanh layers when weights are too small, right and too large: densities by depth, signal and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, TALLEST
from varprop.simulator.activations import activation
from varprop.simulator.gain import gain
from varprop.simulator.propagate import Settings, prepare, propagate

SETTINGS: dict[str, Any] = {
    "network": "mlp",
    "framework": "torch",
    "activations": ["sigmoid", "tanh"],
    "factors": {"too small": 0.2, "right": 1.0, "too large": 5.0},
    "width": 256,
    "depth": 16,
    "batch": 16,
    "trials": 100,
    "levels": 41,
}
_RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


def compute(seed: int) -> Rows:
    """Return densities of activations layer by layer, and second moments from theory and Monte Carlo.

    "Right" is the deviation 1 / (sd(phi) sqrt(fan_in)), which gives layers of variance one at N(0, 1); a density is
    that of phi(z) for Gaussian z, whose second moment is theory's.
    """
    rows: Rows = []
    for name in SETTINGS["activations"]:
        right = gain(activation(name), 1.0).gain_variance / math.sqrt(SETTINGS["width"])
        for label, factor in SETTINGS["factors"].items():
            shared = {key: SETTINGS[key] for key in ("framework", "depth", "width", "batch", "trials")}
            init = f"random_normal(std={factor * right!r})"
            run = propagate(prepare(Settings("mlp", activation=name, init=init, seed=seed, **shared)))
            assert run.theory is not None
            assert run.monte_carlo is not None
            series = {"activation": name, "weights": label}
            layers = [index for index, node in enumerate(run.network.nodes) if node.kind == "linear"]
            for number, index in enumerate(layers, 1):
                for report in run.reports:
                    for direction in ("forward", "backward"):
                        moments = getattr(report.layers[index], direction)
                        point = {"layer": number, "engine": report.engine, "direction": direction}
                        rows.append({"panel": "moments", **series, **point, "value": moments.second_moment})
                if index != layers[-1]:
                    q = run.theory.layers[index].forward.second_moment
                    levels, density = _density(name, q)
                    rows += [
                        {"panel": "density", **series, "layer": number, "level": a, "value": d}
                        for a, d in zip(levels.tolist(), density.tolist(), strict=True)
                    ]
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw a map of densities for each activation and scale, and forward and backward second moments below."""
    names, scales = SETTINGS["activations"], list(SETTINGS["factors"])
    wide = width > 5
    figure = Figure(figsize=(width, 0.62 * width if wide else TALLEST))
    maps: list[list[Any]] = [[f"{name} {scale}" for scale in scales] for name in names]
    if wide:
        rows_of_panels = [[*line, f"{name} moments"] for line, name in zip(maps, names, strict=True)]
        grid = figure.subplot_mosaic(rows_of_panels, width_ratios=[1, 1, 1, 1.6])
    else:
        rows_of_panels = [list(line) for line in zip(*maps, strict=True)] + [[f"{name} moments"] * 2 for name in names]
        grid = figure.subplot_mosaic(rows_of_panels)
    for name in names:
        for scale in scales:
            axis = grid[f"{name} {scale}"]
            chosen = select(rows, panel="density", activation=name, weights=scale)
            layers, levels = (sorted({row[key] for row in chosen}) for key in ("layer", "level"))
            image = np.array([row["value"] for row in chosen]).reshape(len(layers), len(levels)).T
            # Each layer by its own peak: at 1 the whole range of a saturated or linear layer is seen alike.
            image = image / image.max(axis=0)
            axis.pcolormesh(layers, levels, image, cmap="Blues", vmin=0, vmax=1, shading="nearest", rasterized=True)
            axis.set_title(f"{name}, {scale}")
            axis.grid(visible=False)
            axis.set_xlabel("layer")
            if scale == scales[0] or not wide:
                axis.set_ylabel("activation")
        axis = grid[f"{name} moments"]
        for scale, colour in zip(scales, COLOURS, strict=False):
            for direction, line, marker in (("forward", "-", "o"), ("backward", "--", "s")):
                chosen = select(rows, panel="moments", activation=name, weights=scale, direction=direction)
                label = scale if direction == "forward" else None
                axis.plot(
                    *columns(select(chosen, engine="theory"), "layer", "value"), color=colour, ls=line, label=label
                )
                drawn = columns(select(chosen, engine="monte-carlo"), "layer", "value")
                axis.plot(*drawn, color=colour, **{**POINTS, "marker": marker})
        axis.set_yscale("log")
        axis.set_title(f"{name}: $q$ (full), $g$ (dashed)")
        axis.set_xlabel("layer")
    grid[f"{names[0]} moments"].legend(loc="lower right")
    return figure


def _density(name: str, q: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density of phi(z), z ~ N(0, q), averaged over each of equal cells of phi's range."""
    low, high = _RANGES[name]
    edges = np.linspace(low, high, SETTINGS["levels"] + 1)
    inside = edges[1:-1]
    z = np.log(inside / (1 - inside)) if name == "sigmoid" else np.arctanh(inside)
    below = np.array([0.0, *(0.5 * math.erfc(-value / math.sqrt(2 * q)) for value in z), 1.0])
    return (edges[1:] + edges[:-1]) / 2, np.diff(below) / np.diff(edges)
