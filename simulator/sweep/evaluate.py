"""One point of a sweep, as it is run in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from threadpoolctl import threadpool_limits

from varprop.simulator.errors import UserError
from varprop.simulator.export import layers_data
from varprop.simulator.propagate import build_network, prepare, propagate
from varprop.simulator.sweep.points import Point
from varprop.simulator.sweep.summary import Row, summary
from varprop.simulator.sweep.training import train


@dataclass(frozen=True)
class Outcome:
    """A point's result.

    Attributes
    ----------
    status
        "ok"; "invalid" where the settings do not fit together, or theory has no number for them; "failed" where the
        program or the machine did.
    message
        Why it is not ok.
    row
        From `summary` and, where the point is trained, `train`.
    layers
        A dictionary per node, as in propagate's JSON; empty unless asked for.
    """

    status: str
    message: str
    row: Row
    layers: list[dict[str, object]]

    def to_bytes(self) -> bytes:
        """Return the outcome as JSON."""
        return json.dumps(asdict(self), allow_nan=False).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Outcome:
        """Read what `to_bytes` wrote."""
        return Outcome(**json.loads(data))


def evaluate_all(points: Sequence[Point]) -> list[Outcome]:
    """Run points one after the other."""
    return [evaluate(point) for point in points]


def evaluate(point: Point) -> Outcome:
    """Run a point on one core; what a user's mistake would be elsewhere is an outcome here."""
    try:
        with threadpool_limits(1):
            run = propagate(prepare(point.settings, point.data_dir), threads=1, remarks=point.layers)
            row = summary(run) | trained(point)
            return Outcome("ok", "", row, layers_data(run) if point.layers else [])
    except UserError as error:
        return Outcome("invalid", str(error), {}, [])
    except Exception as error:
        return failure(error)


def trained(point: Point) -> Row:
    """Return what training says of a point; nothing where none is asked for."""
    if point.training is None:
        return {}
    settings = point.settings
    return train(point.training, build_network(settings), settings.batch, settings.seed, point.data_dir)


def failure(error: BaseException) -> Outcome:
    """Return the outcome of a point that ended in an error of ours, or of the machine's."""
    return Outcome("failed", f"{type(error).__name__}: {error}", {}, [])
