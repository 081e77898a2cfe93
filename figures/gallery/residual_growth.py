"""Residual sums: doubling without normalisation, one unit a block with it, bounded when branches are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.theory import predict

SETTINGS: dict[str, Any] = {
    "framework": "torch",
    "width": 256,
    "blocks": 16,
    "branch": "linear, relu, linear",
    "batch": 64,
    "trials": 30,
    "variants": ["plain", "batch norm", "scaled"],
}


def compute(seed: int) -> Rows:
    """Return second moments after every block, forward and backward, theory and Monte Carlo."""
    rows: Rows = []
    for variant in SETTINGS["variants"]:
        network = _residual(variant)
        batch = load_batch("gaussian", network.nodes[0].shape, SETTINGS["batch"], seed)
        for report in (predict(network, batch), simulate(network, batch, trials=SETTINGS["trials"], seed=seed)):
            blocks = [m for node, m in zip(network.nodes, report.layers, strict=True) if node.kind in ("input", "add")]
            end = blocks[-1].backward.second_moment
            for number, moments in enumerate(blocks):
                row = {"variant": variant, "engine": report.engine, "block": number}
                rows.append({**row, "direction": "forward", "value": moments.forward.second_moment})
                rows.append({**row, "direction": "backward", "value": moments.backward.second_moment / end})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw both directions, with the laws 2^l, 1 + l and (1 + 1/L)^l."""
    figure, axes = panels(width, 2)
    count = SETTINGS["blocks"]
    blocks = np.arange(count + 1)
    laws = {"plain": 2.0**blocks, "batch norm": 1.0 + blocks, "scaled": (1 + 1 / count) ** blocks}
    formulas = {"plain": r"$2^\ell$", "batch norm": r"$1 + \ell$", "scaled": r"$(1 + 1/L)^\ell$"}
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for (variant, law), colour in zip(laws.items(), COLOURS, strict=False):
            chosen = select(rows, variant=variant, direction=direction)
            axis.plot(
                *columns(select(chosen, engine="theory"), "block", "value"),
                color=colour,
                label=f"{variant}: {formulas[variant]}",
            )
            axis.plot(*columns(select(chosen, engine="monte-carlo"), "block", "value"), color=colour, **POINTS)
            if direction == "forward":
                axis.plot(blocks, law, color="0.3", ls=":", lw=0.8, zorder=4)
        axis.set_yscale("log")
        axis.set_xlabel("block")
    axes[0].set_ylabel("second moment $q$ after the block")
    axes[1].set_ylabel("gradient's $g$ there / at the last block")
    axes[0].legend(loc="upper left")
    return figure


def _residual(variant: str) -> Network:
    he, plain = parse_initializer("he_normal"), parse_initializer("lecun_normal")
    if variant == "scaled":
        plain = parse_initializer(f"he_normal(gain={SETTINGS['blocks'] ** -0.5!r})")
    width = SETTINGS["width"]
    net = NetworkBuilder(variant, SETTINGS["framework"], (width,))
    for block in range(SETTINGS["blocks"]):
        trunk = net.last
        net.linear(width, he, name=f"block{block + 1}.linear1")
        net.activation("relu", name=f"block{block + 1}.act")
        net.linear(width, plain, name=f"block{block + 1}.linear2")
        if variant == "batch norm":
            net.batch_norm(name=f"block{block + 1}.bn")
        net.add((trunk, net.last), name=f"block{block + 1}.add")
    return net.build()
