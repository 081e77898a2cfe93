"""A run's curves for TensorBoard, where that is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from varprop.simulator.torch_backend.records import EpochRecord, LayerRecord

FOLDER = "tensorboard"


class Board:
    """Writes epochs and layers as scalars over steps, or nothing without TensorBoard.

    Parameters
    ----------
    folder
        Of the run; the events go to a folder in it.
    step
        Where the run starts or goes on: what a process that was killed wrote beyond it is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / FOLDER), purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> None:
        """Add an epoch's losses and accuracies."""
        self._add("epoch", record, record.step, ("loss", "accuracy", "validation_loss", "validation_accuracy"))
        if self._writer is not None:
            self._writer.flush()

    def layer(self, record: LayerRecord) -> None:
        """Add what was seen of one node."""
        names = ("weight_norm", "gradient_norm", "angle", "second_moment", "gradient_second_moment")
        self._add(record.layer, record, record.step, names)

    def _add(self, group: str, record: EpochRecord | LayerRecord, step: int, names: tuple[str, ...]) -> None:
        if self._writer is None:
            return
        for name in names:
            value = getattr(record, name)
            if value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, step)
