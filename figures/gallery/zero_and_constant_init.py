"""Two small convolutions from zero, constant and drawn weights: the loss that stays at ln 3, the variances that stay 0.

The figure shows the trainings that are kept in ``figures/results``. To train them anew, minutes on two cores:
``python -m varprop.figures.gallery.zero_and_constant_init``.
"""

from __future__ import annotations

import csv
import math
from typing import Any

from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.results import FOLDER, write_result
from varprop.figures.style import COLOURS, panels

SETTINGS: dict[str, Any] = {"image": "one of N(0, 1) pixels, 3 x 224 x 224, class 2 everywhere", "seed": 0}
_RESULT = FOLDER / "zero-and-constant-init.csv"
_LOOPS = {"cleared": "-", "added up": "--"}


def compute(seed: int) -> Rows:
    """Return loss, and mean and variance of each convolution's weights, step by step; nothing is trained."""
    with _RESULT.open() as table:
        return [{**row, "step": int(row["step"]), "value": float(row["value"])} for row in csv.DictReader(table)]


def draw(rows: Rows, width: float) -> Figure:
    """Draw the loss with its plateau, and both convolutions' variances, in both loops."""
    figure, axes = panels(width, 3, aspect=1.0)
    starts = list(dict.fromkeys(row["start"] for row in rows))
    for axis, series in zip(axes, ("loss", "conv1 variance", "conv2 variance"), strict=True):
        for start, colour in zip(starts, COLOURS, strict=False):
            for loop, line in _LOOPS.items():
                chosen = select(rows, start=start, loop=loop, series=series)
                axis.plot(*columns(chosen, "step", "value"), color=colour, ls=line, label=f"{start}, {loop}")
        axis.set_xlabel("step")
        axis.set_ylabel(series.replace(" variance", "'s weights, variance"))
    axes[0].axhline(math.log(3), color="0.4", ls=":", label="ln 3")
    for axis in axes[1:]:
        axis.set_yscale("symlog", linthresh=1e-9)
        axis.set_ylim(bottom=-2e-10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3 if width > 5 else 1)
    return figure


def main() -> None:
    """Train the four starts in both loops and keep their traces."""
    from varprop.simulator.experiments.trained.runs import Options
    from varprop.simulator.experiments.trained.zero_and_constant_init import train
    from varprop.simulator.progress import progress_bar

    with progress_bar(False, "zero-and-constant-init", "steps") as progress:
        traces: Any = train(Options(None, False, 1, SETTINGS["seed"], "cpu", None, progress)).data["traces"]
    rows = [
        {"start": trace["start"], "loop": trace["loop"], "series": series, "step": step, "value": value}
        for trace in traces
        for series, values in _series(trace).items()
        for step, value in enumerate(values)
    ]
    write_result(_RESULT, rows, ["python", "-m", "varprop.figures.gallery.zero_and_constant_init"], SETTINGS)


def _series(trace: dict[str, Any]) -> dict[str, list[float]]:
    found = {"loss": trace["loss"]}
    for layer, pairs in trace["weights"].items():
        found[f"{layer} mean"], found[f"{layer} variance"] = (list(values) for values in zip(*pairs, strict=True))
    return found


if __name__ == "__main__":
    main()
