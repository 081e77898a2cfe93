"""Training as the published experiments do it: plain SGD, every step a function of the settings and the seed alone."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from varprop.simulator.torch_backend import checkpoint
from varprop.simulator.torch_backend.board import Board
from varprop.simulator.torch_backend.data import TrainingData, check_data
from varprop.simulator.torch_backend.devices import find_device, out_of_memory
from varprop.simulator.torch_backend.measuring import LayerWatch, first_weights
from varprop.simulator.torch_backend.module import TorchNetwork
from varprop.simulator.torch_backend.records import EpochRecord, Records, WeightsRecord
from varprop.simulator.torch_backend.settings import TrainingSettings
from varprop.simulator.torch_backend.steps import Loss, Steps

__all__ = ["Run", "TrainingResult", "TrainingSettings", "finish", "train"]

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run has recorded, and the trained module (on its device)."""

    settings: TrainingSettings
    records: Records
    module: TorchNetwork

    @property
    def last(self) -> EpochRecord:
        """The last epoch's record."""
        return self.records.epochs[-1]


class Run:
    """A run in progress: `advance` does one step, so that several can share a device.

    Parameters are those of `train`. With a folder, the state is saved there after every epoch and every
    `checkpoint_seconds`, and a run that is found there is continued. On one machine's CPU, with the same number of
    threads, the result is the same bit for bit wherever the run was cut.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        data: TrainingData,
        out: Path | None = None,
        device: str = "auto",
        loss: Loss = functional.cross_entropy,
        use_graph: bool = True,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        settings.check()
        check_data(settings.network, data)
        where = find_device(device)
        self.settings = settings
        self.records = Records()
        self.step = 0
        self._recorded = frozenset(settings.record_steps)
        self._steps_per_epoch = math.ceil(len(data.train) / settings.batch)
        whole = settings.epochs * self._steps_per_epoch
        self.total = whole if settings.steps is None else min(whole, settings.steps)
        self._out = out
        self._checkpoint_seconds = checkpoint_seconds
        self._identity = json.dumps({**settings.describe(), "data": data.describe()})
        self._seconds = 0.0  # spent on the epoch's steps
        self._saved = time.monotonic()
        self._order: Tensor | None = None
        if where.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps but an epoch's last have one shape
        self._stream = torch.cuda.Stream(where) if where.type == "cuda" else None  # type: ignore[no-untyped-call]
        with self._on_stream():
            self._data = data.to(where)
            self._steps = Steps(settings, where, loss, use_graph)
            self._resume(where)
        self._board = None if out is None else Board(out, self.step)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total

    def advance(self) -> None:
        """Do one step; at an epoch's end evaluate, record and save."""
        with self._on_stream():
            began = time.monotonic()
            epoch, place = divmod(self.step, self._steps_per_epoch)
            index = self._batch(epoch, place)
            if place == 0 or self.step in self._recorded:
                self._record_weights(epoch + 1)
                self._record_layers(self._steps.observed(self._data.train, index), epoch + 1)
            else:
                self._steps.plain(self._data.train, index)
            self.step += 1
            ended = self.finished or place + 1 == self._steps_per_epoch
            sums = self._steps.sums.tolist() if ended else None  # waits for the device
            self._seconds += time.monotonic() - began
            if sums is not None:
                self._end_epoch(epoch + 1, *sums)
            if ended or time.monotonic() - self._saved > self._checkpoint_seconds:
                self._save()

    def result(self) -> TrainingResult:
        """Return what there is so far."""
        return TrainingResult(self.settings, self.records, self._steps.module)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _batch(self, epoch: int, place: int) -> Tensor:
        """Return the numbers of the samples of an epoch's batch; the last one may be smaller."""
        if self._order is None or place == 0:
            self._order = torch.from_numpy(self._data.order(self.settings.seed, epoch)).to(self._steps.sums.device)
        return self._order[place * self.settings.batch : (place + 1) * self.settings.batch]

    def _record_weights(self, epoch: int) -> None:
        name = self.settings.watched
        self.records.weights.append(WeightsRecord(self.step, epoch, name, first_weights(self._steps.module, name)))

    def _record_layers(self, watch: LayerWatch, epoch: int) -> None:
        rows = watch.rows(self.step, epoch)
        self.records.layers += rows
        if self._board is not None:
            for row in rows:
                self._board.layer(row)

    def _end_epoch(self, epoch: int, loss: float, hits: float, count: float) -> None:
        validation: tuple[float, float] | tuple[None, None] = (None, None)
        if self._data.validation is not None:
            other_loss, other_hits, other_count = self._steps.evaluate(self._data.validation).tolist()
            validation = other_loss / other_count, other_hits / other_count
        images = count / math.prod(self._data.train.targets.shape[1:])
        self.records.epochs.append(
            EpochRecord(
                epoch=epoch,
                step=self.step,
                loss=loss / count,
                accuracy=hits / count,
                penalty=self._steps.penalty(),
                validation_loss=validation[0],
                validation_accuracy=validation[1],
                seconds=self._seconds,
                images_per_second=images / self._seconds,
            )
        )
        if self._board is not None:
            self._board.epoch(self.records.epochs[-1])
        self._steps.sums.zero_()
        self._seconds = 0.0
        if self.finished:
            self._record_weights(epoch)
            self._record_layers(LayerWatch(self._steps.module), epoch)

    def _save(self) -> None:
        if self._out is not None:
            self.records.write(self._out)
            state = checkpoint.Checkpoint(self.step, self._seconds, self._steps.state, self.records.to_json())
            checkpoint.save(self._out, self._identity, state)
        self._saved = time.monotonic()

    @torch.no_grad()
    def _resume(self, device: torch.device) -> None:
        found = None if self._out is None else checkpoint.load(self._out, self._identity, device)
        if found is not None:
            for name, tensor in self._steps.state.items():
                tensor.copy_(found.tensors[name])
            self.step, self._seconds, self.records = found.step, found.seconds, Records.from_json(found.records)


def train(
    settings: TrainingSettings,
    data: TrainingData,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    loss: Loss = functional.cross_entropy,
    use_graph: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingResult:
    """Train a network.

    Parameters
    ----------
    settings
        The run.
    data
        What to train on, and what to validate on after every epoch.
    out
        Existing folder for the records (`Records.write`) and the checkpoint. A run of the same settings that is found
        there is continued; None keeps everything in memory.
    progress
        Called after every step with steps done and steps in all.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
    loss
        Mean loss of (outputs, targets); cross entropy takes a class a sample or a class a pixel.
    use_graph
        On CUDA, replay the step as one graph.
    checkpoint_seconds
        Time between checkpoints inside an epoch.

    Returns
    -------
    TrainingResult

    Raises
    ------
    UserError
        Settings out of range, data that do not fit the network, a folder with another run, no such device, too little
        memory on it.

    Examples
    --------
    >>> import torch
    >>> from varprop.simulator.architectures import build
    >>> from varprop.simulator.torch_backend.data import Labelled, TrainingData
    >>> samples = Labelled(torch.eye(4), torch.arange(4))
    >>> network = build("mlp", depth=2, width=4, activation="tanh")
    >>> settings = TrainingSettings(network, epochs=50, batch=4, learning_rate=0.5)
    >>> train(settings, TrainingData(samples, None, "four points"), device="cpu").last.accuracy
    1.0
    """
    with out_of_memory("lower --batch or --size"):
        run = Run(settings, data, out, device, loss, use_graph, checkpoint_seconds)
        finish([run], progress)
    return run.result()


def finish(
    runs: Sequence[Run], progress: Progress | None = None, announce: Callable[[Run], None] | None = None
) -> None:
    """Advance several runs step by step in turn until all are done; on a GPU they fill each other's gaps.

    `announce` is called with a run whenever it has finished an epoch.
    """
    total = sum(run.total for run in runs)
    while unfinished := [run for run in runs if not run.finished]:
        for run in unfinished:
            before = len(run.records.epochs)
            run.advance()
            if announce is not None and len(run.records.epochs) > before:
                announce(run)
        if progress is not None:
            progress(sum(run.step for run in runs), total)
