"""Ordered and chaotic phases of wide tanh nets, and the depth scales beyond which a net cannot be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, panels
from varprop.simulator.activations import activation
from varprop.simulator.mean_field import phase_diagram

SETTINGS: dict[str, Any] = {
    "activation": "tanh",
    "sigma_w2": [0.5, 4.0, 141],
    "sigma_b2": [0.0, 0.3, 61],
    "cuts": [0.0, 0.05, 0.3],
}


def compute(seed: int) -> Rows:
    """Return chi and the depth scales over the grid, and the critical line; nothing is drawn at random."""
    w, b = (np.linspace(*SETTINGS[key]) for key in ("sigma_w2", "sigma_b2"))
    found = phase_diagram(activation(SETTINGS["activation"]), w, b)
    rows: Rows = [
        {
            "panel": "grid",
            "sigma_w2": float(w[i]),
            "sigma_b2": float(b[j]),
            **{name: _number(getattr(found, name)[i, j]) for name in ("q_star", "c_star", "chi", "xi_q", "xi_c")},
        }
        for i in range(len(w))
        for j in range(len(b))
    ]
    critical = zip(b, found.critical_sigma_w2, strict=True)
    return rows + [{"panel": "critical", "sigma_w2": _number(x), "sigma_b2": float(y)} for y, x in critical]


def draw(rows: Rows, width: float) -> Figure:
    """Draw 6 xi_c over the plane with the edge of chaos, and both depth scales along lines of constant sigma_b^2."""
    figure, (plane, cuts) = panels(width, 2)
    grid = select(rows, panel="grid")
    w, b = (sorted({row[key] for row in grid}) for key in ("sigma_w2", "sigma_b2"))
    (xi,) = columns(grid, "xi_c")
    trainable = 6 * np.where(np.isfinite(xi), xi, np.inf).reshape(len(w), len(b)).T
    norm = LogNorm(10, 1000)
    # Without biases the ordered phase has no signal left to tell apart: that line is left out.
    image = plane.pcolormesh(w, b[1:], np.clip(trainable[1:], 10, 1000), norm=norm, cmap="Blues", rasterized=True)
    edge = columns(select(rows, panel="critical"), "sigma_w2", "sigma_b2")
    plane.plot(*edge, color=COLOURS[1])
    plane.set_xlim(w[0], w[-1])
    plane.grid(visible=False)
    plane.set_xlabel(r"$\sigma_w^2$")
    plane.set_ylabel(r"$\sigma_b^2$")
    plane.text(0.8, 0.8 * b[-1], "ordered")
    low, high = (edge[0][len(b) // 2], b[len(b) // 2]), (2.6, 0.72 * b[-1])
    plane.annotate("edge of chaos", low, high, color=COLOURS[1], arrowprops={"arrowstyle": "-", "color": COLOURS[1]})
    plane.text(3.0, 0.15 * b[-1], "chaotic")
    figure.colorbar(image, ax=plane, label=r"trainable depth $6\,\xi_c$", extend="both")
    for level, colour in zip(SETTINGS["cuts"], (COLOURS[0], COLOURS[2], COLOURS[3]), strict=True):
        nearest = min(b, key=lambda value: abs(value - level))
        x, of_c, of_q = columns(select(grid, sigma_b2=nearest), "sigma_w2", "xi_c", "xi_q")
        cuts.plot(x, of_c, color=colour, label=rf"$\xi_c$, $\sigma_b^2$ = {level:g}")
        cuts.plot(x, of_q, color=colour, ls="--")
    cuts.plot([], [], color="0.4", ls="--", label=r"$\xi_q$")
    cuts.set_yscale("log")
    cuts.set_ylim(0.08, 300)  # room for the legend below the curves
    cuts.set_xlabel(r"$\sigma_w^2$")
    cuts.set_ylabel("depth scale (layers)")
    cuts.legend(loc="lower center", ncols=2)
    return figure


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
