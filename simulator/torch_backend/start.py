"""Theory against training where training starts: every layer's signal and gradient on the first batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from varprop.simulator.report import Batch, Moments
from varprop.simulator.theory import predict
from varprop.simulator.torch_backend.data import TrainingData
from varprop.simulator.torch_backend.records import LayerRecord
from varprop.simulator.torch_backend.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class StartRecord:
    """One node before the first step: predicted over weight draws, measured for the one draw that is trained.

    The z-scores are of the log: (log measured - predicted mean of the log) over its predicted deviation over draws,
    None where nothing is random or nothing is left. The gradient is of the real loss; theory, whose cotangent is
    i.i.d. with unit variance, predicts its ratio to the gradient at the output, which is measured.
    """

    index: int
    layer: str
    kind: str
    predicted: float
    measured: float
    z: float | None
    gradient_predicted: float
    gradient_measured: float
    gradient_z: float | None


def first_batch(settings: TrainingSettings, data: TrainingData) -> Batch:
    """Return the batch of a run's first step, as theory takes it."""
    index = torch.from_numpy(data.order(settings.seed, 0)[: settings.batch])
    x, _ = data.train.fetch(index, settings.network.nodes[0].shape, torch.float64)
    return Batch(x.numpy(), data.source, exchangeable=False)


def compare_start(settings: TrainingSettings, batch: Batch, layers: Sequence[LayerRecord]) -> list[StartRecord]:
    """Hold what a run recorded before its first step against theory for that batch.

    Parameters
    ----------
    settings
        Of the run.
    batch
        From `first_batch`.
    layers
        The run's records.

    Raises
    ------
    UserError
        A network or batch that theory does not take.
    """
    report = predict(settings.network, batch)
    start = [row for row in layers if row.step == 0]
    output = start[-1].gradient_second_moment or 0.0
    rows = []
    for row, theory in zip(start, report.layers, strict=True):
        signal, gradient = row.second_moment or 0.0, row.gradient_second_moment or 0.0
        rows.append(
            StartRecord(
                index=row.index,
                layer=row.layer,
                kind=row.kind,
                predicted=theory.forward.second_moment,
                measured=signal,
                z=_z(signal, theory.forward),
                gradient_predicted=theory.backward.second_moment * output,
                gradient_measured=gradient,
                gradient_z=_z(gradient / output if output else 0.0, theory.backward),
            )
        )
    return rows


def largest(scores: Sequence[float | None]) -> float | None:
    """Return the largest |z| there is."""
    return max((abs(z) for z in scores if z is not None), default=None)


def _z(measured: float, predicted: Moments) -> float | None:
    mean, deviation = predicted.log_second_moment_mean, predicted.log_second_moment_sd
    if not measured or mean is None or not deviation:
        return None
    return (math.log(measured) - mean) / deviation
