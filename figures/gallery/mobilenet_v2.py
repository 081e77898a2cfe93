"""One network, two frameworks: batch norm hides depthwise kernels that are too small, its eps and the gradient tell."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.propagate import Settings, prepare, propagate

SETTINGS: dict[str, Any] = {
    "network": "mobilenet_v2",
    "frameworks": ["torch", "keras"],
    "init": "glorot_normal",
    "size": 32,
    "batch": 64,
    "input": "gaussian",
    "trials": 30,
}


def compute(seed: int) -> Rows:
    """Return what every convolution, normalisation and gradient comes to, theory and Monte Carlo."""
    shared = {key: SETTINGS[key] for key in ("network", "init", "size", "batch", "input", "trials")}
    rows: Rows = []
    for framework in SETTINGS["frameworks"]:
        run = propagate(prepare(Settings(framework=framework, seed=seed, **shared)))
        for report in run.reports:
            number, depthwise = 0, False
            for node, moments in zip(run.network.nodes, report.layers, strict=True):
                if node.kind not in ("conv2d", "depthwise_conv2d", "batch_norm"):
                    continue
                if node.kind != "batch_norm":
                    number, depthwise = number + 1, node.kind == "depthwise_conv2d"
                rows.append(
                    {
                        "framework": framework,
                        "engine": report.engine,
                        "name": node.name,
                        "kind": node.kind,
                        "convolution": number,
                        "depthwise": depthwise,
                        "second_moment": moments.forward.second_moment,
                        "variance": moments.forward.variance,
                        "gradient": moments.backward.second_moment,
                    }
                )
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw second moments before normalisation, variances after it, and the gradient at the convolutions."""
    figure, axes = panels(width, 3, aspect=1.0)
    normalised = [row for row in rows if row["kind"] == "batch_norm"]
    convolutions = [row for row in rows if row["kind"] != "batch_norm"]
    subjects = (
        (convolutions, "second_moment", "$q$ of convolution's output"),
        (normalised, "variance", "variance after batch norm"),
        (convolutions, "gradient", "gradient's $g$ at convolution"),
    )
    for axis, (chosen, key, label) in zip(axes, subjects, strict=True):
        for framework, colour in zip(SETTINGS["frameworks"], COLOURS, strict=False):
            for depthwise, line, marker in ((True, "-", "o"), (False, ":", "s")):
                of = select(chosen, framework=framework, depthwise=depthwise)
                series = f"{framework}, {'depthwise' if depthwise else 'others'}"
                axis.plot(
                    *columns(select(of, engine="theory"), "convolution", key), color=colour, ls=line, label=series
                )
                drawn = columns(select(of, engine="monte-carlo"), "convolution", key)
                axis.plot(*drawn, color=colour, **{**POINTS, "marker": marker})
        if key != "variance":
            axis.set_yscale("log")
        axis.set_xlabel("convolution")
        axis.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4 if width > 5 else 2)
    return figure
