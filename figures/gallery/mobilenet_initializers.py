"""One MobileNetV2, four initializers in Keras: what differs at the start, beside the accuracies that were published."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, panels
from varprop.simulator.experiments.batchnorm_and_l2 import LEARNING_RATE
from varprop.simulator.experiments.mobilenet_initializers import PUBLISHED
from varprop.simulator.propagate import prepare, propagate
from varprop.simulator.scale_invariance import effective_learning_rates
from varprop.simulator.weight_decay import Sgd

SETTINGS: dict[str, Any] = {"size": 64, "batch": 32, "input": "gaussian", "lr": LEARNING_RATE}


def compute(seed: int) -> Rows:
    """Return the gradient and the effective learning rate at every convolution from theory, and what was published."""
    rows: Rows = []
    for run in PUBLISHED:
        shared = {key: SETTINGS[key] for key in ("size", "batch", "input")}
        found = propagate(prepare(run.settings(seed, engines=("theory",), **shared)))
        assert found.theory is not None
        rates = effective_learning_rates(found.network, Sgd(SETTINGS["lr"]))
        for number, rate in enumerate(rates, 1):
            gradient = found.theory.layers[rate.index].backward.second_moment
            point = {"run": run.init, "convolution": number, "name": rate.name, "kind": rate.kind}
            rows.append({"panel": "layers", **point, "gradient": gradient, "effective_lr": rate.effective_lr})
        accuracies = {"train": run.train_accuracy, "validation": run.validation_accuracy}
        rows += [{"panel": "published", "run": run.init, "kind": k, "accuracy": v} for k, v in accuracies.items()]
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw gradients and effective learning rates of depthwise and other layers, and the published accuracies."""
    figure, (gradients, rates, published) = panels(width, 3, aspect=1.05)
    for number, (run, colour) in enumerate(zip(PUBLISHED, COLOURS, strict=False)):
        layers = select(rows, panel="layers", run=run.init)
        for axis, key in ((gradients, "gradient"), (rates, "effective_lr")):
            for kind, line in (("depthwise_conv2d", "-"), ("conv2d", ":")):
                x, y = columns(select(layers, kind=kind), "convolution", key)
                label = f"{run.init}, {run.activation}" if line == "-" else None
                axis.plot(x, y, color=colour, ls=line, lw=0.9, label=label)
        for shift, kind, alpha in ((-0.2, "train", 0.4), (0.2, "validation", 1.0)):
            (row,) = select(rows, panel="published", run=run.init, kind=kind)
            published.bar(number + shift, row["accuracy"], 0.36, color=colour, alpha=alpha)
    for axis in (gradients, rates):
        axis.set_yscale("log")
        axis.set_xlabel("convolution")
    gradients.set_ylabel("gradient's $g$ at the start")
    rates.set_ylabel("effective learning rate $\\eta / |w|^2$")
    published.set_xticks(range(len(PUBLISHED)), [run.init for run in PUBLISHED], rotation=30, ha="right")
    published.set_ylim(0.5, 1.0)
    published.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    published.set_ylabel("published accuracy")
    published.set_title("training pale, validation full", fontsize=6)
    gradients.set_title("depthwise full, others dotted", fontsize=6)
    figure.legend(*gradients.get_legend_handles_labels(), loc="outside upper center", ncols=4 if width > 5 else 2)
    return figure
