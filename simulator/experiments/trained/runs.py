"""What the trained experiments share: the options of the command, several seeds a run, and differences with errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from varprop.simulator.errors import UserError
from varprop.simulator.experiments.outcome import Row
from varprop.simulator.files import make_folder
from varprop.simulator.torch_backend.data import TrainingData
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings, train

MOST_SEEDS = 1000


@dataclass(frozen=True)
class Options:
    """How an experiment is trained.

    Attributes
    ----------
    data_dir
        Folder of CIFAR-10, for the experiments that need it.
    quick
        Smaller images, fewer of them, fewer steps: a version for a CPU that takes minutes and settles nothing.
    seeds
        Runs of each kind; None: 2 when quick, else 3.
    seed
        The first one's.
    device
        As `find_device` takes it.
    folder
        Records and checkpoints of every run; the same command continues what is found there. None: kept in memory.
    progress
        Called with steps done and steps in all.
    """

    data_dir: Path | None = None
    quick: bool = False
    seeds: int | None = None
    seed: int = 0
    device: str = "auto"
    folder: Path | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_SEEDS:
            raise UserError("--seeds", self.count, f"a whole number from 1 to {MOST_SEEDS:,}")

    @property
    def count(self) -> int:
        """Number of seeds."""
        return (2 if self.quick else 3) if self.seeds is None else self.seeds


def train_all(
    options: Options, settings: Mapping[str, TrainingSettings], data: TrainingData
) -> Iterator[tuple[str, TrainingResult]]:
    """Train every run for every seed; yield each run's name and result as soon as it is there.

    All runs of one seed see the same batches in the same order.
    """
    jobs = [
        (name, replace(base, seed=options.seed + n)) for n in range(options.count) for name, base in settings.items()
    ]
    for number, (name, job) in enumerate(jobs):
        folder = None
        if options.folder is not None:
            folder = options.folder / f"{name.replace(' ', '-')}-seed-{job.seed}"
            make_folder(options.folder, "--records")
            make_folder(folder, "--records")

        def show(done: int, total: int, before: int = number) -> None:
            if options.progress is not None:
                options.progress(before * total + done, len(jobs) * total)

        yield name, train(job, data, folder, show, device=options.device)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences over seeds; `deviation` is that of a single pair, None with one seed."""

    mean: float
    deviation: float | None
    seeds: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.seeds)

    def __str__(self) -> str:
        error = "" if self.error is None else f" +- {self.error:.1f}"
        return f"{self.mean:.1f}{error} points over {self.seeds} seed{'s' * (self.seeds > 1)}"

    def judged(self) -> str:
        """Return the difference in words, and whether it is noise."""
        return f"{self}, which is noise" if self.error and abs(self.mean) < 2 * self.error else str(self)

    def z_of(self, single: float) -> float | None:
        """Return how far another single pair lies from the mean, in deviations of their difference."""
        if not self.deviation:
            return None
        return (single - self.mean) / (self.deviation * math.sqrt(1 + 1 / self.seeds))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return first - second in points (hundredths), seed by seed."""
    pairs = [100 * (a - b) for a, b in zip(first, second, strict=True)]
    return Difference(fmean(pairs), stdev(pairs) if len(pairs) > 1 else None, len(pairs))


def summary_row(name: str, results: Sequence[TrainingResult]) -> Row:
    """Return a run's last epoch, mean over seeds, and the deviation of the validation accuracy."""
    last = [result.last for result in results]
    found = [record.validation_accuracy for record in last if record.validation_accuracy is not None]
    losses = [record.validation_loss for record in last if record.validation_loss is not None]
    return {
        "run": name,
        "seeds": len(results),
        "steps": last[0].step,
        "train loss": fmean(record.loss for record in last),
        "train accuracy": fmean(record.accuracy for record in last),
        "validation loss": fmean(losses) if losses else None,
        "validation accuracy": fmean(found) if found else None,
        "its deviation": stdev(found) if len(found) > 1 else None,
    }


def validation_accuracies(results: Sequence[TrainingResult]) -> list[float]:
    """Return the last epoch's, seed by seed."""
    return [result.last.validation_accuracy or 0.0 for result in results]
