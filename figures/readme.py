"""README's picture and its generated block: ``python -m varprop.figures.readme``, from the repository's root.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is replaced by what a run gives; nothing in it
is typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varprop.figures.propagation import save_propagation
from varprop.simulator.bands import BAND, log_quantile
from varprop.simulator.compare import ROUNDING, Agreement, Comparison, summarise
from varprop.simulator.errors import UserError
from varprop.simulator.files import write_whole
from varprop.simulator.montecarlo.aggregate import summarize
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.network import BatchNorm
from varprop.simulator.propagate import Run, Settings, prepare
from varprop.simulator.report import Report
from varprop.simulator.theory import predict

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path("figures/mobilenet_v2.png")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What theory is meant to keep within, as shares: medians, worst and accumulated differences, and draws in band."""

    forward_median: float = 0.003
    forward_worst: float = 0.02
    step_median: float = 0.01
    step_worst: float = 0.05
    accumulated: float = 0.1
    band: float = 0.05


BOUNDS = Bounds()

_IMAGES = "a few images stand for the batch: on CIFAR-10 ten of 64 leave 5% to 8% of the accumulated gradient"
_LEVELS = "sizes of single draws, which nothing brings together here, differ by factors"
_CHOICE = "pieces of 11 images stand for the batch, and others, chosen as well, moved the gradient at the stem by 10%"


def _cause(settings: Settings) -> str:
    """Return why theory misses bounds, as far as is known."""
    if settings.norm == "none":
        return _LEVELS
    if settings.input == "gaussian":
        return "not known"
    if settings.network == "mobilenet_v2":
        return _IMAGES
    return _CHOICE


def _mobilenet(framework: str, init: str, source: str, **more: object) -> Settings:
    options: dict[str, Any] = {"trials": 200, **more}
    return Settings("mobilenet_v2", framework=framework, init=init, input=source, **options)


def _resnet(framework: str, source: str, **more: object) -> Settings:
    options: dict[str, Any] = {"trials": 200, **more}
    return Settings("resnet", framework=framework, init="he_normal", input=source, **options)


def _plain(network: str, framework: str, init: str, activation: str, trials: int) -> Settings:
    return Settings(network, framework=framework, init=init, activation=activation, input="gaussian", trials=trials)


_LARGE: dict[str, Any] = {"size": 96, "batch": 16, "trials": 60}

ROWS = [
    _mobilenet("torch", "he_normal", "gaussian"),
    _mobilenet("keras", "he_normal", "gaussian"),
    _mobilenet("torch", "he_normal", "photo"),
    _mobilenet("keras", "he_normal", "photo"),
    *(_mobilenet(framework, "glorot_normal", "gaussian") for framework in ("torch", "keras")),
    *(_mobilenet(framework, "random_normal", "gaussian") for framework in ("torch", "keras")),
    *(
        _mobilenet(framework, "lecun_normal", source, activation="selu")
        for source in ("gaussian", "photo")
        for framework in ("torch", "keras")
    ),
    *(_mobilenet(framework, "he_normal", "gaussian", **_LARGE) for framework in ("torch", "keras")),
    _mobilenet("torch", "he_normal", "photo", **{**_LARGE, "trials": 240}),
    *(_resnet(framework, source) for source in ("gaussian", "photo") for framework in ("torch", "keras")),
    *(_resnet("torch", source, **{**_LARGE, "trials": 40}) for source in ("gaussian", "photo")),
    *(_mobilenet(framework, "he_normal", "gaussian", norm="none", trials=800) for framework in ("torch", "keras")),
    _plain("plain_conv", "keras", "glorot_normal", "tanh", 200),
    _plain("mlp", "torch", "lecun_normal", "selu", 2000),
    _plain("mlp", "keras", "glorot_uniform", "tanh", 2000),
]


@dataclass(frozen=True)
class Measured:
    """A run, and the log of every node's forward second moment in each of its trials, shape (trials, nodes)."""

    run: Run
    logs: Array


def measure(settings: Settings) -> Measured:
    """Run both engines, keeping what single trials gave."""
    problem = prepare(settings)
    network, batch = problem.network, problem.batch
    theory = predict(network, batch)
    forward, backward = simulate_trials(network, batch, trials=settings.trials, seed=settings.seed)
    settled = {"trials": settings.trials, "seed": settings.seed, "input": batch.source, "batch": len(batch.data)}
    report = Report("monte-carlo", network, summarize(forward, backward), settled)
    return Measured(Run(settings, network, theory, report), forward.log_second_moment)


def accuracy_table(measured: Sequence[Measured], causes: Sequence[str] | None = None) -> str:
    """Return README's table of differences between theory and Monte Carlo, a row a run.

    `worst` includes the run's noise. `accumulated` is the largest difference of the gradient's second moment at any
    weighted layer. `in band` is the share of trials whose forward second moment lies between the
    predicted 10% and 90% quantiles: the median over layers, but for those that a normalisation leaves no spread. The
    noise is the median over layers of the Monte Carlo's own relative standard error.
    """
    lines = [
        "| network | framework | init, activation | input | forward q: median, worst | backward step: median, worst "
        "| accumulated | in band | noise of q, g | a bound missed, and why |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (run, logs), cause in zip(
        ((each.run, each.logs) for each in measured), causes or ["not known"] * len(measured), strict=True
    ):
        if run.comparison is None or run.monte_carlo is None or run.theory is None:
            raise ValueError("accuracy needs both engines")
        found: Comparison = run.comparison
        forward, steps = list(found.forward), [step.agreement for step in found.steps]
        accumulated = _worst([found.backward[step.to] for step in found.steps])
        band = in_band(run.theory, logs)
        settings = run.settings
        size = " x ".join(map(str, next(iter(run.network.nodes)).shape[-2:]))
        cells = [
            settings.network + (", norm none" if settings.norm == "none" else ""),
            str(run.network.framework),
            ", ".join(name for name in (settings.init, settings.activation) if name),
            f"{settings.input} {size}" + (f", batch {settings.batch}" if settings.batch != 64 else ""),
            _two(forward),
            _two(steps),
            _percent(accumulated),
            _percent(band).lstrip("+"),
            ", ".join(_noise(run.monte_carlo, direction) for direction in ("forward", "backward")),
            _verdict(forward, steps, accumulated, band, cause),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict(
    forward: Sequence[Agreement], steps: Sequence[Agreement], accumulated: float, band: float | None, cause: str
) -> str:
    """Say which bounds a run misses, and why."""
    measured = {
        "forward median": (summarise(forward).median or 0.0, BOUNDS.forward_median),
        "forward worst": (_worst(forward), BOUNDS.forward_worst),
        "step median": (summarise(steps).median or 0.0, BOUNDS.step_median),
        "step worst": (_worst(steps), BOUNDS.step_worst),
        "accumulated": (accumulated, BOUNDS.accumulated),
        "in band": (0.0 if band is None else band - (BAND[1] - BAND[0]), BOUNDS.band),
    }
    missed = [name for name, (value, bound) in measured.items() if abs(value) > bound]
    return f"{', '.join(missed)}: {cause}" if missed else ""


def _worst(agreements: Sequence[Agreement]) -> float:
    """Return the largest difference, sampling noise included."""
    return max((row.relative for row in agreements if row.relative is not None), key=abs, default=0.0)


def in_band(theory: Report, logs: Array) -> float | None:
    """Return the share of trials within the predicted band, at the median layer; None if no band is known.

    Left out are layers that do not vary: the data, and what a normalisation has brought to one.

    Parameters
    ----------
    theory
        The prediction.
    logs
        Of the forward second moments, shape (trials, nodes).
    """
    shares = []
    for node, layer, found in zip(theory.network.nodes[1:], theory.layers[1:], logs.T[1:], strict=True):
        low, high = (log_quantile(layer.forward, probability) for probability in BAND)
        varies = not isinstance(node.operation, BatchNorm) and np.ptp(found) > ROUNDING
        if varies and low is not None and high is not None:
            shares.append(float(np.mean((low <= found) & (found <= high))))
    return median(shares) if shares else None


def fill(text: str, name: str, block: str) -> str:
    """Return a document with the named block replaced.

    Raises
    ------
    UserError
        The document has no such block, or several.
    """
    pattern = re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda match: f"{match[1]}{block}\n{match[2]}", text)
    if count != 1:
        raise UserError("README block", f"{count} of {name!r}", "exactly one")
    return filled


def main() -> None:
    """Run what README reports, draw its picture and fill in its table."""
    measured = list(map(measure, ROWS))
    save_propagation(ROOT / PICTURE, [each.run for each in measured[:2]], ["python", "-m", "varprop.figures.readme"])
    readme = ROOT / "README.md"
    table = accuracy_table(measured, list(map(_cause, ROWS)))
    write_whole(readme, fill(readme.read_text(), "accuracy", table))


def _two(agreements: Sequence[Agreement]) -> str:
    return f"{_percent(summarise(agreements).median).lstrip('+')}, {_percent(_worst(agreements))}"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:+.2f}%" if abs(ratio) < 0.0995 else f"{100 * ratio:+.0f}%"


def _noise(report: Report, direction: str) -> str:
    rows = [getattr(layer, direction) for layer in report.layers]
    errors = [row.standard_error / row.second_moment for row in rows if row.standard_error and row.second_moment]
    return f"{100 * median(errors):.2f}%"


if __name__ == "__main__":
    main()
