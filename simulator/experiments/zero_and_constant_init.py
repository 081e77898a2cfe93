"""Two 3x3 convolutions 3 -> 3 with batch normalisation and ReLU, one image, class 2 at every pixel.

What a start at zero or at a constant can learn follows from the network alone (`varprop.simulator.degenerate`). The
article's loop never clears its gradients: PyTorch then adds them up, and a step goes along the sum of all so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from varprop.simulator.architectures import build
from varprop.simulator.degenerate import DegenerateStart, analyse_start
from varprop.simulator.experiments.outcome import Outcome, Row, Section
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network

LEARNING_RATE, MOMENTUM, STEPS = 0.01, 0.1, 40
SIZE = 224
TARGETS = (0, 0, 1)
"""Class 2 at every pixel: the loss treats the other two channels alike."""


@dataclass(frozen=True, slots=True)
class Start:
    """One of the article's runs: how its network starts, and what was reported."""

    name: str
    init: str
    layers: int
    reported: str

    @property
    def network(self) -> Network:
        """The run's network; a single convolution is bare."""
        init = parse_initializer(self.init)
        if self.layers == 1:
            return build("two_layer", init=init, size=SIZE, depth=1, norm="none", activation="linear")
        return build("two_layer", init=init, size=SIZE)


STARTS = (
    Start("zero", "zeros", 2, "loss stays near 1.10, all four weight traces stay 0"),
    Start("zero, one bare conv", "zeros", 1, "a gradient does flow"),
    Start("constant 5", "constant(5)", 2, "trains; both variances grow, means stay around 5"),
    Start("kaiming normal", "he_normal", 2, "smoother and lower loss than constant 5"),
)


def predict(seed: int, progress: Callable[[int, int], None] | None) -> Outcome:
    """Tell of the four starts what training can do, and hold the signals at the start against a run."""
    found = {start: analyse_start(start.network, TARGETS) for start in STARTS}
    sections = [
        Section("runs", "before any training, for any image", [_run_row(*pair) for pair in found.items()], digits=7),
        Section("layers", "weight gradients that are exactly zero, and filters that differ", _layer_rows(found)),
        Section("signals", "one draw: second moments forward, and of the gradient", _signal_rows(seed, progress)),
        Section("loops", f"both loops under a gradient that stays the same, {STEPS} steps", _loop_rows()),
    ]
    data = {"plateau": found[STARTS[0]].plateau, "classes": found[STARTS[0]].classes}
    return Outcome("zero-and-constant-init", sections, _verdict(found), data)


def displacement(steps: int, *, cleared: bool) -> float:
    """Return how far gradient descent goes in `steps` steps under a constant gradient, in units of it.

    Momentum's buffer is v' = mu v + a, where a is the gradient, or the sum of all gradients so far.

    Examples
    --------
    >>> displacement(1, cleared=True), displacement(1, cleared=False)
    (0.01, 0.01)
    """
    number = np.arange(1, steps + 1)
    applied = np.ones(steps) if cleared else number.astype(np.float64)
    # Each push goes on in all later steps, weakened by mu a step.
    weight = (1 - MOMENTUM ** (steps - number + 1)) / (1 - MOMENTUM)
    return float(LEARNING_RATE * np.sum(applied * weight))


def _run_row(start: Start, found: DegenerateStart) -> Row:
    return {
        "start": start.name,
        "loss at the start": found.starting_loss,
        "plateau": found.plateau,
        "trains": "yes" if found.moves else "never",
        "the article reports": start.reported,
    }


def _layer_rows(found: dict[Start, DegenerateStart]) -> list[Row]:
    return [
        {
            "start": start.name,
            "layer": layer.name,
            "weights": layer.weights,
            "zero gradients": layer.zero_gradients,
            "first step that moves one": layer.first_step,
            "filters": layer.channels,
            "distinct at the start": layer.distinct_at_start,
            "in training": layer.distinct_in_training,
            "why zero": "; ".join(layer.reasons),
        }
        for start, run in found.items()
        for layer in run.layers
    ]


def _signal_rows(seed: int, progress: Callable[[int, int], None] | None) -> list[Row]:
    rows: list[Row] = []
    for start in STARTS:
        network = start.network
        batch = load_batch("gaussian", network.nodes[0].shape, 1, seed)
        report = simulate(network, batch, trials=2, seed=seed, progress=progress)
        rows += [
            {
                "start": start.name,
                "layer": node.name,
                "second moment": layer.forward.second_moment,
                "of the gradient": layer.backward.second_moment,
            }
            for node, layer in zip(network.nodes, report.layers, strict=True)
            if node.fan_in is not None
        ]
    return rows


def _loop_rows() -> list[Row]:
    cleared, added = (displacement(STEPS, cleared=choice) for choice in (True, False))
    return [
        {"loop": "gradients cleared", "moves by lr times gradient times": cleared / LEARNING_RATE, "over cleared": 1.0},
        {
            "loop": "gradients added up (the article's)",
            "moves by lr times gradient times": added / LEARNING_RATE,
            "over cleared": added / cleared,
        },
    ]


def _verdict(found: dict[Start, DegenerateStart]) -> Sequence[str]:
    zero, bare, constant, kaiming = (found[start] for start in STARTS)
    dead = sum(layer.zero_gradients for layer in zero.layers)
    ratio = displacement(STEPS, cleared=False) / displacement(STEPS, cleared=True)
    lines = []
    if zero.plateau is not None:
        lines.append(
            f"zero: all {dead} weight gradients are exactly zero at every step, in either loop, so that the loss stays "
            f"at ln {zero.classes} = {zero.plateau:.7f}"
        )
    if bare.moves and bare.starting_loss is not None:
        lines.append(
            f"zero with one bare convolution: its input is the image and nothing stands behind it, so the first step "
            f"moves it; the loss starts at ln {bare.classes} = {bare.starting_loss:.4f} and leaves it"
        )
    counts = " and ".join(f"{layer.distinct_in_training} of {layer.channels}" for layer in constant.layers)
    others = " and ".join(f"{layer.distinct_in_training} of {layer.channels}" for layer in kaiming.layers)
    late = [layer.name for layer in constant.layers if layer.first_step and layer.first_step > 1]
    lines.append(
        f"constant 5: it trains, but with {counts} distinct filters in the two layers however long it runs (kaiming: "
        f"{others})" + (f"; the first step leaves {' and '.join(late)} where it was" if late else "")
    )
    lines.append(
        f"gradients that are not cleared add up: {STEPS} steps go {ratio:.0f} times as far at first, and later the "
        f"sum acts as friction-free momentum; what is exactly zero stays zero in both loops"
    )
    return lines
