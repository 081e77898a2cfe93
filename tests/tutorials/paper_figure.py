"""A figure for a paper, from the gallery and one's own.  Run: python tests/tutorials/paper_figure.py

The first from a shell:

    varprop figure phase-diagram --out . --width column --figure-format pdf
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from varprop import Network, build, load_batch, predict
from varprop.figures.gallery.write import write_figures
from varprop.figures.save import save
from varprop.figures.style import WIDTHS, panels
from varprop.simulator.export import table_csv

# A figure of the gallery: picture, tidy table and provenance in three files of one name.
write_figures(["phase-diagram"], Path(), width="column")

# One's own: rows first, then a function that draws them, then the same three files.
depths = range(2, 41, 2)


def gradient(network: Network) -> float:
    """Log of the gradient's second moment at the input, over that at the logits."""
    batch = load_batch("gaussian", network.nodes[0].shape, batch=16, seed=0)
    return predict(network, batch).layers[0].backward.log_second_moment


rows = [
    {"init": init, "depth": depth, "log_gradient": gradient(build("mlp", depth=depth, width=128, init=init))}
    for init in ("he_normal", "glorot_normal")
    for depth in depths
]


def draw(width: float) -> Figure:
    """One panel, a line an initializer."""
    figure, (axis,) = panels(width, 1)
    for init in ("he_normal", "glorot_normal"):
        axis.plot(depths, [row["log_gradient"] for row in rows if row["init"] == init], label=init)
    axis.set_xlabel("depth (layers)")
    axis.set_ylabel("log of the input's gradient")
    axis.legend()
    return figure


command = ["python", "tests/tutorials/paper_figure.py"]
save(Path("gradients.pdf"), partial(draw, WIDTHS["column"]), table_csv(rows), command, {"width": 128, "seed": 0})
print(*sorted(path.name for path in Path().iterdir() if path.stem in ("gradients", "phase-diagram")))
