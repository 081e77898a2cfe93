"""Weights before batch norm only turn: norms grow without decay, and settle with it, whatever their start."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.weight_decay import Sgd, angular_update, equilibrium_squared_norm, motion

SETTINGS: dict[str, Any] = {
    "lr": 0.1,
    "decays": [0.0, 0.002],
    "starts": [0.1, 1.0, 10.0],
    "gradient": 0.02,
    "dimension": 64,
    "steps": 6000,
    "every": 100,
}


def compute(seed: int) -> Rows:
    """Return squared norms and angles a step, from the recurrence and from a simulated descent.

    The descent's gradients are random vectors across w of squared norm G / |w|^2, as a scale-invariant loss has them
    where noise rules.
    """
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for decay in SETTINGS["decays"]:
        sgd = Sgd(SETTINGS["lr"], decay)
        for start in SETTINGS["starts"]:
            law = motion(sgd, start, SETTINGS["gradient"], SETTINGS["steps"])
            norms, angles = _descend(sgd, start, rng)
            for step in range(SETTINGS["every"], SETTINGS["steps"] + 1, SETTINGS["every"]):
                point = {"decay": decay, "start": start, "step": step}
                theory = {"squared_norm": float(law.squared_norm[step]), "angle": float(law.angle[step - 1])}
                rows.append({**point, "series": "recurrence", **theory})
                drawn = {"squared_norm": float(norms[step]), "angle": float(angles[step - 1])}
                rows.append({**point, "series": "descent", **drawn})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw squared norms and angles against steps, with the equilibria of decay."""
    figure, axes = panels(width, 2)
    for axis, key, label in zip(axes, ("squared_norm", "angle"), (r"$|w|^2$", "angle a step (radians)"), strict=True):
        for start, colour in zip(SETTINGS["starts"], COLOURS, strict=False):
            for decay, line in zip(SETTINGS["decays"], ("--", "-"), strict=True):
                of = select(rows, decay=decay, start=start)
                name = rf"$|w_0|^2$ = {start:g}" if decay else None
                theory = columns(select(of, series="recurrence"), "step", key)
                axis.plot(*theory, color=colour, ls=line, label=name)
                x, y = columns(select(of, series="descent"), "step", key)
                axis.plot(x[2::6], y[2::6], color=colour, **POINTS)
        sgd = Sgd(SETTINGS["lr"], SETTINGS["decays"][-1])
        level = equilibrium_squared_norm(sgd, SETTINGS["gradient"]) if key == "squared_norm" else angular_update(sgd)
        axis.axhline(level, color="0.4", ls=":", label="equilibrium")
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    axes[0].plot([], [], color="0.4", ls="--", label="without decay")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5 if width > 5 else 2)
    return figure


def _descend(sgd: Sgd, start: float, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    w = rng.standard_normal(SETTINGS["dimension"])
    w *= np.sqrt(start / (w @ w))
    norms, angles = [start], []
    for _ in range(SETTINGS["steps"]):
        noise = rng.standard_normal(len(w))
        noise -= w * (w @ noise) / (w @ w)
        gradient = noise * np.sqrt(SETTINGS["gradient"] / (w @ w) / (noise @ noise))
        after = w - sgd.lr * (gradient + sgd.weight_decay * w)
        cosine = (w @ after) / np.sqrt((w @ w) * (after @ after))
        angles.append(float(np.arccos(min(cosine, 1.0))))
        w = after
        norms.append(float(w @ w))
    return norms, angles
