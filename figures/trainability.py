"""Which plain networks can be trained: accuracy over depth and weight variance, under six depth scales.

``python -m varprop.figures.trainability DATA_DIR`` trains the grid on CIFAR-10 (some minutes on two cores) and writes
``trainability.png``, ``.csv`` and ``.json`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from varprop.figures.save import save
from varprop.figures.style import WIDTHS
from varprop.simulator.activations import activation as activation_function
from varprop.simulator.export import table_csv
from varprop.simulator.mean_field import phase_diagram
from varprop.simulator.progress import progress_bar
from varprop.simulator.torch_backend.data import TrainingData, cifar10_data
from varprop.simulator.torch_backend.trainability import Point, separation, trainability

ACTIVATION, SIGMA_B2 = "tanh", 0.05
DEPTHS = (5, 10, 20, 35, 60)
SIGMA_W2 = (0.75, 1.0, 1.25, 1.5, 1.76, 2.25, 3.0, 4.0)
SIZE, IMAGES, STEPS = 8, 2000, 300


def trainability_map(points: Sequence[Point], activation: str, sigma_b2: float) -> Figure:
    """Draw accuracies as colours over weight variance and depth, and 6 xi_c as a line."""
    figure = Figure(figsize=(WIDTHS["column"], 2.8))
    axes = figure.subplots()
    variances, depths = (sorted({getattr(point, name) for point in points}) for name in ("sigma_w2", "depth"))
    accuracy = {(point.depth, point.sigma_w2): point.accuracy for point in points}
    values = np.array([[accuracy[depth, variance] for variance in variances] for depth in depths])
    mesh = axes.pcolormesh(variances, depths, values, shading="nearest", cmap="cividis")
    figure.colorbar(mesh, label="accuracy on the training images")
    fine = np.linspace(variances[0], variances[-1], 200)
    scales = phase_diagram(activation_function(activation), fine, [sigma_b2]).xi_c[:, 0]
    axes.plot(fine, 6 * scales, color="white", linewidth=1.2)
    axes.grid(visible=False)
    axes.set_xlabel("weight variance $\\sigma_w^2$ (times 1 / fan-in)")
    axes.set_ylabel("hidden layers; line: $6\\,\\xi_c$")
    axes.set_ylim(min(depths) / 2, max(depths) * 1.1)
    return figure


def main(data_dir: Path) -> None:
    """Train the grid and write figure, table and provenance."""
    everything = cifar10_data(data_dir, IMAGES)
    data = TrainingData(everything.train, None, everything.source)
    with progress_bar(False, "trainability", "networks") as progress:
        points = trainability(
            data,
            (3, SIZE, SIZE),
            DEPTHS,
            SIGMA_W2,
            activation=ACTIVATION,
            sigma_b2=SIGMA_B2,
            steps=STEPS,
            progress=progress,
        )
    save(
        Path(__file__).with_name("trainability.png"),
        partial(trainability_map, points, ACTIVATION, SIGMA_B2),
        table_csv([{**asdict(point), "within": point.within} for point in points]),
        ["python", "-m", "varprop.figures.trainability", "DATA_DIR"],
        {
            "activation": ACTIVATION,
            "sigma_b2": SIGMA_B2,
            "size": SIZE,
            "steps": STEPS,
            "data": data.describe(),
            "torch": torch.__version__,
            "separation": separation(points),
        },
    )
    print(f"networks within 6 xi_c beat those beyond in {separation(points):.1%} of pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
