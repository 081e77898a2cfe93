"""MobileNetV2 with batch normalisation, with l2 on every kernel, and with both: ten printed weights, explained.

Without batch normalisation the signal dies on its way: no gradient of the data reaches a kernel, and l2 alone moves
the weights. With it the weights' scale is free, and l2 sets how fast they turn (`varprop.simulator.weight_decay`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.architectures import build
from varprop.simulator.experiments.outcome import Outcome, Row, Section
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network
from varprop.simulator.report import Moments, Report
from varprop.simulator.scale_invariance import effective_learning_rates
from varprop.simulator.theory import predict as predict_moments
from varprop.simulator.weight_decay import (
    Sgd,
    angular_update,
    keras_l2,
    pure_decay,
    relaxation_steps,
    squared_norm_after,
)

LEARNING_RATE, BATCH_SIZE, IMAGES, L2 = 0.1, 32, 50_000, 0.001
EPOCH = math.ceil(IMAGES / BATCH_SIZE)
STEPS = 9 * EPOCH
"""From the start of epoch 1 to the start of epoch 10."""
SIZE, IMAGES_SEEN, TRIALS = 224, 4, 3
STEM = "stem.conv"
SOFTMAX = 0.3
"""Root mean square of softmax minus one-hot over ten classes at equal logits: sqrt((.9^2 + 9 * .1^2) / 10)."""
SGD = Sgd(LEARNING_RATE, keras_l2(L2))


@dataclass(frozen=True)
class Printed:
    """The ten weights of the stem that the article prints of one run, at the start of epochs 1 and 10."""

    run: str
    accuracy: str
    first: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def before(self) -> NDArray[np.float64]:
        return np.array(self.first)

    @property
    def after(self) -> NDArray[np.float64]:
        return np.array(self.last)

    @property
    def memory(self) -> tuple[float, float]:
        """Projection of the last weights on the first, in units of the first, and its standard error.

        The error takes what is not along the first weights as noise of equal size in all directions.
        """
        square = float(self.before @ self.before)
        share = float(self.after @ self.before) / square
        rest = self.after - share * self.before
        return share, math.sqrt(float(rest @ rest) / (len(self.first) - 1) / square)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


BN, DECAY, BOTH = PRINTED = (
    Printed(
        "BN only",
        "rises",
        _numbers(
            "-.02620085 .10190549 -.11347758 -.120565 .10449789 .09324147 -.02767587 .03863515 .12804998 .10915002"
        ),
        _numbers(
            "-.17744583 .17197324 -.25094765 -.4260909 -.2861711 .12653658 -.18487974 .10149723 -.08124655 .30025354"
        ),
    ),
    Printed(
        "L2 only",
        "does not rise",
        _numbers(
            ".13498078 -.12406565 .05617869 .1112484 .0101945 -.09676153 .05650736 .03752249 -.01030101 .08091953"
        ),
        _numbers(
            ".00809666 -.00744193 .00336981 .00667309 .0006115 -.00580412 .00338953 .00225074 -.00061789 .00485385"
        ),
    ),
    Printed(
        "BN and L2",
        "rises",
        _numbers(
            ".08555499 .12598534 -.03244241 .11502795 .05982415 .11824064 .13084657 .08825392 .02584527 -.0615561"
        ),
        _numbers(
            "-.12869535 -.09060557 .01533028 -.05165869 -.00263854 -.06649228 -.02129784 .09801372 .12735689 .0331211"
        ),
    ),
)


def predict(seed: int, progress: Callable[[int, int], None] | None) -> Outcome:
    """Predict the death of the run without BN, its weights to the last digit, and the motion of the runs with BN."""
    factor = pure_decay(SGD, STEPS)
    predicted = factor * DECAY.before
    network = _network("none")
    batch = load_batch("photo", network.nodes[0].shape, IMAGES_SEEN, seed)
    theory = predict_moments(network, batch)
    measured = simulate(network, batch, trials=TRIALS, seed=seed, progress=progress)
    gradients = _gradient_rows(theory)
    memories = _memory_rows(factor)
    norms = _norm_rows()
    sections = [
        Section("weights", "L2 only: ten weights of the stem at the start of epoch 10", _weight_rows(predicted), 8),
        Section(
            "signal", f"L2 only: {SIZE}x{SIZE} images, pixels in [0, 1], second moments", _signal_rows(theory, measured)
        ),
        Section(
            "gradients",
            "L2 only: largest possible root mean square of the data's gradient at the start, over that of the decay",
            gradients,
        ),
        Section("motion", "BN and L2: weights whose scale is free", _motion_rows(), 6),
        Section("memory", "what is left of the first weights after nine epochs: projection on them", memories),
        Section("norms", "mean square of a stem weight, from the ten that are printed", norms),
    ]
    data = {"predicted_weights": [float(weight) for weight in predicted], "decay_factor": factor}
    return Outcome("batchnorm-and-l2", sections, _verdict(predicted, theory, gradients, memories, norms), data)


def _network(norm: str) -> Network:
    return build("mobilenet_v2", framework="keras", init=parse_initializer("default"), norm=norm, size=SIZE)


def _weight_rows(predicted: NDArray[np.float64]) -> list[Row]:
    return [
        {
            "epoch 1, printed": float(before),
            "epoch 10, predicted": float(weight),
            "epoch 10, printed": float(after),
            "difference": float(weight - after),
        }
        for before, weight, after in zip(DECAY.before, predicted, DECAY.after, strict=True)
    ]


def _signal_rows(theory: Report, measured: Report) -> list[Row]:
    rows: list[Row] = []
    nodes = theory.network.nodes
    weighted = [index for index, node in enumerate(nodes) if node.fan_in is not None]
    for index in [0, *weighted[:: len(weighted) // 6], weighted[-1]]:
        forward, back = (getattr(theory.layers[index], way) for way in ("forward", "backward"))
        seen = measured.layers[index]
        rows.append(
            {
                "layer": nodes[index].name,
                "q theory": forward.second_moment,
                "typical q, theory": _typical(forward),
                "typical q, Monte Carlo": _typical(seen.forward),
                "g theory": back.second_moment,
                "typical g, Monte Carlo": _typical(seen.backward),
            }
        )
    return rows


def _typical(moments: Moments) -> float | None:
    """Return the geometric mean over draws: a mean of log-normal draws is carried by rare ones."""
    log = moments.log_second_moment_mean
    return None if log is None else math.exp(log)


def _gradient_rows(theory: Report) -> list[Row]:
    """Bound the gradient of every kernel at uniform logits, by the Cauchy-Schwarz inequality over positions."""
    rows: list[Row] = []
    nodes = theory.network.nodes
    for index, node in enumerate(nodes):
        if node.fan_in is None:
            continue
        positions = math.prod(node.shape[1:])
        g = theory.layers[index].backward.second_moment
        q = theory.layers[node.inputs[0]].forward.second_moment
        data = SOFTMAX * positions * math.sqrt(g * q)
        decay = SGD.weight_decay * weight_law(node, theory.network.framework).second_moment ** 0.5
        rows.append({"layer": node.name, "data at most": data, "decay": decay, "data / decay": data / decay})
    return rows


def _motion_rows() -> list[Row]:
    rates = {row.name: row.effective_lr for row in effective_learning_rates(_network("batch"), SGD)}
    return [
        {"quantity": "weight decay, 2 x l2", "value": SGD.weight_decay},
        {"quantity": "steps from epoch 1 to epoch 10", "value": float(STEPS)},
        {"quantity": "steps to equilibrium, 1 / (4 lr wd)", "value": relaxation_steps(SGD)},
        {"quantity": "turn per step at equilibrium, degrees", "value": math.degrees(angular_update(SGD))},
        {"quantity": "effective learning rate of the stem at the start, lr / |w|^2", "value": rates[STEM]},
        {"quantity": "effective learning rate of block1.depthwise", "value": rates["block1.depthwise"]},
        {"quantity": "effective learning rate of head.conv", "value": rates["head.conv"]},
    ]


def _memory_rows(factor: float) -> list[Row]:
    """Hold the printed weights against E w_t = (1 - lr wd)^t w_0: gradients are orthogonal to w, whichever way it goes.

    That the gradients are uncorrelated with the first weights, once w has turned away from them, is an assumption.
    """
    rows: list[Row] = []
    for run in PRINTED:
        share, error = run.memory
        expected = 1.0 if run is BN else factor
        z = None if run is DECAY else (share - expected) / error
        rows.append({"run": run.run, "predicted": expected, "printed": share, "standard error": error, "z": z})
    return rows


def _norm_rows() -> list[Row]:
    """Predict the norm of the run with both from the growth without L2: both give the gradient's size.

    Ten Gaussian weights give the log of their variance with the deviation sqrt(2 / 10).
    """
    stem = next(node for node in _network("batch").nodes if node.name == STEM)
    start = weight_law(stem, "keras").variance
    last = {run.run: float(np.mean(run.after**2)) for run in PRINTED}
    growth = last[BN.run] / start
    gradient = (growth**2 - 1) / (2 * LEARNING_RATE**2 * STEPS)
    both = start * float(squared_norm_after(SGD, 1.0, gradient, STEPS))
    error = math.sqrt(2 / len(BN.last)) * math.sqrt(2)
    return [
        {
            "run": BN.run,
            "epoch 1, law": start,
            "epoch 10, predicted": None,
            "epoch 10, printed": last[BN.run],
            "z": None,
        },
        {
            "run": DECAY.run,
            "epoch 1, law": start,
            "epoch 10, predicted": start * pure_decay(SGD, STEPS) ** 2,
            "epoch 10, printed": last[DECAY.run],
            "z": None,
        },
        {
            "run": BOTH.run,
            "epoch 1, law": start,
            "epoch 10, predicted": both,
            "epoch 10, printed": last[BOTH.run],
            "z": math.log(last[BOTH.run] / both) / error,
        },
    ]


def _verdict(
    predicted: NDArray[np.float64],
    theory: Report,
    gradients: Sequence[Row],
    memories: Sequence[Row],
    norms: Sequence[Row],
) -> Sequence[str]:
    worst = float(np.max(np.abs(predicted - DECAY.after)))
    factor = pure_decay(SGD, STEPS)
    logits = math.sqrt(theory.layers[-1].forward.second_moment)
    share = max(float(row["data / decay"] or 0.0) for row in gradients)
    lines = [
        f"L2 only: without BN the signal dies, the logits at the start are {logits:.1e}; the data's gradient of any "
        f"kernel is at most {share:.0e} of its decay: only the classifier's bias learns, and accuracy cannot rise",
        f"L2 only: pure decay (1 - 2 x {L2:g} x {LEARNING_RATE:g})^{STEPS} = {factor:.7f} gives the ten printed "
        f"weights within {worst:.1e}"
        + (", the last printed digit" if worst < 1e-8 else ": NOT the last printed digit"),
    ]
    for row in memories:
        if row["z"] is not None:
            lines.append(
                f"{row['run']}: the first weights' share in the last is {row['printed']:.2f} +- "
                f"{row['standard error']:.2f}, predicted {row['predicted']:.2f} (z = {row['z']:.1f})"
            )
    lines.append(
        "BN and L2: l2 leaves the function of given weights alone, as the article argues, but sets how fast it "
        f"changes: after {relaxation_steps(SGD):.0f} steps ({relaxation_steps(SGD) / EPOCH:.1f} epochs) every step "
        f"turns w by {math.degrees(angular_update(SGD)):.2f} degrees, whatever the gradient"
    )
    both = norms[-1]
    lines.append(
        f"BN and L2: from the growth without L2 the mean square of a weight at epoch 10 should be "
        f"{both['epoch 10, predicted']:.4f}; the ten printed weights have {both['epoch 10, printed']:.4f} "
        f"(z = {both['z']:.1f})"
    )
    return lines
