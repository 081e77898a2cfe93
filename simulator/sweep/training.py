"""Training as part of a point: its network trained on CIFAR-10, beside what theory says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from varprop.simulator import cifar10
from varprop.simulator.architectures import build
from varprop.simulator.network import Network
from varprop.simulator.sweep.summary import Row
from varprop.simulator.torch_backend import require_torch
from varprop.simulator.torch_backend.settings import TrainingSettings

if TYPE_CHECKING:
    from varprop.simulator.torch_backend.data import TrainingData


@dataclass(frozen=True)
class Training:
    """How the networks of a sweep are trained; batch and seed are those of the point.

    Attributes
    ----------
    epochs, steps, lr, momentum, weight_decay, l2
        As in `TrainingSettings`; lr is its learning rate.
    subset
        Number of training images; None: all.
    device
        As `find_device` takes it.
    """

    epochs: int = 10
    steps: int | None = None
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    subset: int | None = None
    device: str = "auto"

    def settings(self, network: Network, batch: int, seed: int) -> TrainingSettings:
        """Return all that defines one run."""
        return TrainingSettings(
            network,
            epochs=self.epochs,
            steps=self.steps,
            learning_rate=self.lr,
            momentum=self.momentum,
            batch=batch,
            weight_decay=self.weight_decay,
            l2=self.l2,
            seed=seed,
        )

    def work(self, batch: int) -> tuple[float, float]:
        """Return a run's steps, and the images that pass forward or back, twice on the way back."""
        images = cifar10.available("train") if self.subset is None else self.subset
        each = math.ceil(images / batch)
        steps = self.epochs * each if self.steps is None else min(self.epochs * each, self.steps)
        share = cifar10.available("test") / cifar10.available("train")
        return steps, 3 * steps * batch + math.ceil(steps / each) * images * share


def check(training: Training, data_dir: Path | None) -> None:
    """Refuse what no point could be trained with, before any is run.

    Raises
    ------
    UserError
        torch is not installed, a number is out of range, there is no such device, or the data set is not there.
    """
    require_torch()
    from varprop.simulator.torch_backend.devices import find_device

    training.settings(build("mlp", depth=1, width=1), batch=1, seed=0).check()
    find_device(training.device)
    _data(data_dir, training.subset)


def train(training: Training, network: Network, batch: int, seed: int, data_dir: Path | None) -> Row:
    """Train one network on one thread and return what came of it.

    Returns
    -------
    Row
        The last epoch's loss and accuracy in training (means over the epoch) and in validation (at its end), and
        whether the run diverged, that is whether that loss is no finite number.

    Raises
    ------
    UserError
        As for `varprop.simulator.torch_backend.training.train`; memory that runs out is an error of torch's.
    """
    from varprop.simulator.torch_backend.training import Run, finish

    with _one_thread():
        run = Run(training.settings(network, batch, seed), _data(data_dir, training.subset), device=training.device)
        finish([run])
    last = run.result().last
    return {
        "training_loss": _finite(last.loss),
        "training_accuracy": last.accuracy,
        "validation_loss": _finite(last.validation_loss),
        "validation_accuracy": last.validation_accuracy,
        "diverged": not math.isfinite(last.loss),
    }


@lru_cache(maxsize=1)  # all points of a sweep have it in common
def _data(data_dir: Path | None, subset: int | None) -> TrainingData:
    from varprop.simulator.torch_backend.data import cifar10_data

    return cifar10_data(data_dir, subset)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: points share the cores, and the bits of a result depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
