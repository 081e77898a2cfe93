"""Which plain networks can be trained: accuracy over depth and weight variance, under six depth scales.

The figure shows the grid that is kept in ``figures/results``. To train it anew on CIFAR-10, some minutes on two cores:
``python -m varprop.figures.gallery.trainability DATA_DIR``.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.results import FOLDER, write_result
from varprop.figures.style import panels
from varprop.simulator.activations import activation
from varprop.simulator.mean_field import TRAINABLE, phase_diagram

SETTINGS: dict[str, Any] = {
    "activation": "tanh",
    "sigma_b2": 0.05,
    "depths": [5, 10, 20, 35, 60],
    "sigma_w2": [0.75, 1.0, 1.25, 1.5, 1.76, 2.25, 3.0, 4.0],
    "size": 8,
    "images": 2000,
    "steps": 300,
}
_RESULT = FOLDER / "trainability.csv"


def compute(seed: int) -> Rows:
    """Return the trained grid, and 6 xi_c along it; nothing is trained, and nothing drawn at random."""
    with _RESULT.open() as table:
        grid = [{key: row[key] for key in ("depth", "sigma_w2", "accuracy")} for row in csv.DictReader(table)]
    rows: Rows = [{"panel": "grid", **{key: float(value) for key, value in row.items()}} for row in grid]
    return rows + _scales({row["sigma_w2"] for row in rows})


def draw(rows: Rows, width: float) -> Figure:
    """Draw accuracies as colours over weight variance and depth, and 6 xi_c as a line."""
    figure, (axis,) = panels(width, 1)
    grid = select(rows, panel="grid")
    variances, depths = (sorted({row[key] for row in grid}) for key in ("sigma_w2", "depth"))
    accuracy = {(row["depth"], row["sigma_w2"]): row["accuracy"] for row in grid}
    values = np.array([[accuracy[depth, variance] for variance in variances] for depth in depths])
    mesh = axis.pcolormesh(variances, depths, values, shading="nearest", cmap="cividis")
    figure.colorbar(mesh, label="accuracy on the training images")
    axis.plot(*columns(select(rows, panel="scale"), "sigma_w2", "depth"), color="white")
    axis.grid(visible=False)
    axis.set_xlabel(r"weight variance $\sigma_w^2$ (times 1 / fan-in)")
    axis.set_ylabel("hidden layers; line: $6\\,\\xi_c$")
    axis.set_ylim(min(depths) / 2, max(depths) * 1.1)
    return figure


def _scales(variances: set[float]) -> Rows:
    fine = np.linspace(min(variances), max(variances), 200)
    found = phase_diagram(activation(SETTINGS["activation"]), fine, [SETTINGS["sigma_b2"]]).xi_c[:, 0]
    return [
        {"panel": "scale", "sigma_w2": float(w), "depth": TRAINABLE * float(xi)}
        for w, xi in zip(fine, found, strict=True)
        if np.isfinite(xi)
    ]


def main(data_dir: Path) -> None:
    """Train the grid and keep it."""
    from varprop.simulator.progress import progress_bar
    from varprop.simulator.torch_backend.data import TrainingData, cifar10_data
    from varprop.simulator.torch_backend.trainability import separation, trainability

    of = SETTINGS
    everything = cifar10_data(data_dir, of["images"])
    data = TrainingData(everything.train, None, everything.source)
    with progress_bar(False, "trainability", "networks") as progress:
        points = trainability(
            data,
            (3, of["size"], of["size"]),
            of["depths"],
            of["sigma_w2"],
            activation=of["activation"],
            sigma_b2=of["sigma_b2"],
            steps=of["steps"],
            progress=progress,
        )
    write_result(
        _RESULT,
        [{**asdict(point), "within": point.within} for point in points],
        ["python", "-m", "varprop.figures.gallery.trainability", "DATA_DIR"],
        {**of, "data": data.describe(), "separation": separation(points)},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
