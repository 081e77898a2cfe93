"""The main job: a network, a batch, and the engines that answer for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from varprop.simulator.architectures import FRAMEWORKS, build
from varprop.simulator.architectures import NAMES as NETWORKS
from varprop.simulator.compare import Comparison, compare
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import Network
from varprop.simulator.report import Batch, Report
from varprop.simulator.torch_backend import require_torch

ENGINES = {
    "theory": "closed-form recurrences",
    "monte-carlo": "weights drawn many times",
    "torch": "the same by torch, an independent second measurement",
}
"""Engines by the name that the command line knows, and one line on each."""

DEFAULT_ENGINES = ("theory", "monte-carlo")

LARGEST_BATCH = 65_536
MOST_TRIALS = 10_000_000
LARGEST_RUN = 2**33
"""Numbers that the outputs of one pass over the batch may hold, all layers together."""

Progress = Callable[[int, int], None]
"""Called with the number of trials done and the number of trials."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One point of a comparison: what to build, what to feed, how to look.

    None means the network's own default. `below` and `above` are second moments that draws may end beyond
    (`varprop.simulator.bands.ends`), `profile` asks theory for every position of the maps.
    """

    network: str
    framework: str | None = None
    depth: int | None = None
    width: int | None = None
    activation: str | None = None
    init: str | None = None
    norm: str | None = None
    input: str = "gaussian"
    size: int | None = None
    batch: int = 64
    trials: int = 100
    precision: float | None = None
    """Stop Monte Carlo when every standard error is at most this share of its second moment; `trials` at most."""
    seed: int = 0
    below: float | None = None
    above: float | None = None
    profile: bool = False
    engines: tuple[str, ...] = DEFAULT_ENGINES


@dataclass(frozen=True)
class Problem:
    """Settings turned into a network and its batch: all that can be wrong with the user's input has been refused."""

    settings: Settings
    network: Network
    batch: Batch


@dataclass(frozen=True)
class Run:
    """What the engines answered at one point."""

    settings: Settings
    network: Network
    theory: Report | None
    monte_carlo: Report | None
    torch: Report | None = None

    @cached_property
    def reports(self) -> tuple[Report, ...]:
        """The engines' reports, theory first."""
        return tuple(report for report in (self.theory, self.monte_carlo, self.torch) if report is not None)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Theory held against Monte Carlo; None unless both ran."""
        return compare(self.theory, self.monte_carlo) if self.theory and self.monte_carlo else None

    @cached_property
    def torch_comparison(self) -> Comparison | None:
        """Theory held against torch; None unless both ran."""
        return compare(self.theory, self.torch) if self.theory and self.torch else None

    @property
    def interrupted(self) -> bool:
        """Whether Monte Carlo was stopped before its end, with what it had kept."""
        return self.monte_carlo is not None and bool(self.monte_carlo.settings["interrupted"])

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Theory held against every engine that measured."""
        return tuple(found for found in (self.comparison, self.torch_comparison) if found is not None)


def prepare(settings: Settings, data_dir: Path | None = None) -> Problem:
    """Build the network and draw its batch.

    Parameters
    ----------
    settings
        `network` is a family's name or the path of a ``.toml`` file.
    data_dir
        Folder of the data set, for ``cifar10``.

    Raises
    ------
    UserError
        Any setting that cannot be used.
    """
    for engine in settings.engines:
        if engine not in ENGINES:
            raise did_you_mean("--engine", engine, list(ENGINES))
    if "torch" in settings.engines:
        require_torch()
    if settings.profile and "theory" not in settings.engines:
        raise UserError("--profile", f"--engine {','.join(settings.engines)}", "theory, which tells positions apart")
    _between("--batch", settings.batch, 1, LARGEST_BATCH)
    _between("--trials", settings.trials, 2, MOST_TRIALS)
    _between("--seed", settings.seed, 0, 2**63 - 1)
    for option, threshold in (("--below", settings.below), ("--above", settings.above)):
        if threshold is not None and not 0 < threshold < math.inf:
            raise UserError(option, threshold, "a second moment above 0")
    network = build_network(settings)
    if "theory" in settings.engines:
        from varprop.simulator.theory.engine import check_theory

        check_theory(network)
    elements = settings.batch * sum(_elements(node.shape) for node in network.nodes)
    if elements > LARGEST_RUN:
        raise UserError(
            "network size times --batch", f"{elements:,} outputs", f"at most {LARGEST_RUN:,}", "lower --batch or --size"
        )
    batch = load_batch(settings.input, network.nodes[0].shape, settings.batch, settings.seed, data_dir)
    return Problem(settings, network, batch)


def propagate(
    problem: Problem,
    threads: int | None = None,
    progress: Progress | None = None,
    *,
    keep_interrupted: bool = False,
    remarks: bool = True,
) -> Run:
    """Run the engines that the settings ask for.

    Parameters
    ----------
    problem
        From `prepare`.
    threads
        Of the Monte Carlo engine; the result does not depend on them. Default: all cores.
    progress
        Called after every trial, or every few.
    keep_interrupted
        Whether a KeyboardInterrupt leaves the Monte Carlo trials that are done, and `Run.interrupted`.
    remarks
        Whether theory says where its assumptions fail.
    """
    settings, network, batch = problem.settings, problem.network, problem.batch
    theory = monte_carlo = torch = None
    if "theory" in settings.engines:
        from varprop.simulator.theory import predict

        theory = predict(network, batch, profile=settings.profile, remarks=remarks)
    if "monte-carlo" in settings.engines:
        from varprop.simulator.montecarlo import simulate

        monte_carlo = simulate(
            network,
            batch,
            trials=settings.trials,
            seed=settings.seed,
            threads=threads,
            precision=settings.precision,
            keep_interrupted=keep_interrupted,
            progress=progress,
        )
    if "torch" in settings.engines and not (monte_carlo and monte_carlo.settings["interrupted"]):
        from varprop.simulator.torch_backend.engine import measure

        torch = measure(network, batch, trials=settings.trials, seed=settings.seed, progress=progress)
    return Run(settings, network, theory, monte_carlo, torch)


def build_network(settings: Settings) -> Network:
    """Build the network that the settings name: a family, or a ``.toml`` file.

    Raises
    ------
    UserError
        Any setting that cannot be used.
    """
    framework = None if settings.framework is None else FRAMEWORKS.get(settings.framework)
    if settings.framework is not None and framework is None:
        raise did_you_mean("--framework", settings.framework, list(FRAMEWORKS))
    if settings.network.endswith(".toml"):
        from varprop.simulator.toml_network import load

        for option in ("depth", "width", "activation", "init", "norm", "size"):
            value = getattr(settings, option)
            if value is not None:
                raise UserError(f"--{option}", value, "no such option for a network file", "set it in the file")
        return load(Path(settings.network), framework)
    if settings.network not in NETWORKS:
        near = did_you_mean("network", settings.network, list(NETWORKS))
        raise UserError(near.what, near.got, f"{near.expected}, or a file that ends in .toml", near.do)
    images = settings.input != "gaussian" and settings.network == "mlp" and settings.size is None
    return build(
        settings.network,
        framework=framework or "torch",
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        norm=settings.norm,
        init=settings.init,
        size=32 if images else settings.size,
    )


def _between(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(what, value, f"a whole number from {least} to {most:,}")


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
