"""The points of a sweep: a product of settings, refused at once where a name is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import varprop
from varprop.simulator.activations import activation
from varprop.simulator.architectures import FRAMEWORKS, NORMS
from varprop.simulator.architectures import NAMES as NETWORKS
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.formula.grammar import mentions_x, parse
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import NAMES as INPUTS
from varprop.simulator.propagate import Settings
from varprop.simulator.provenance import source_digest
from varprop.simulator.sweep.training import Training, check
from varprop.simulator.toml_network import load

MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class Point:
    """One point: what to run, where the data is, whether its layers are asked for, and how it is trained, if it is."""

    settings: Settings
    data_dir: Path | None
    layers: bool
    training: Training | None = None

    @property
    def key(self) -> str:
        """Hash of all that the point's result depends on, the code among it: an edited checkout computes anew."""
        settings = self.settings
        facts = {
            "version": varprop.__version__,
            "source": source_digest(),
            "settings": asdict(settings),
            "training": None if self.training is None else asdict(self.training),
            "data_dir": None if self.data_dir is None else str(self.data_dir.resolve()),
            "layers": self.layers,
        }
        if settings.network.endswith(".toml"):
            facts["file"] = hashlib.sha256(Path(settings.network).read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def points(
    networks: Sequence[str],
    axes: Mapping[str, Sequence[object]],
    *,
    trials: int | None = None,
    data_dir: Path | None = None,
    layers: bool = False,
    training: Training | None = None,
) -> list[Point]:
    """Return every combination of networks and settings, the last axis fastest.

    Parameters
    ----------
    networks
        Names of families, or paths of ``.toml`` files.
    axes
        Values by the name of a field of `Settings`; one that is left out keeps the network's default.
    trials
        Of the Monte Carlo; None for theory alone.
    data_dir
        As for `propagate`.
    layers
        Whether every layer's moments are kept.
    training
        How every point is trained, too; its input is then CIFAR-10, for theory as well. None: not at all.

    Raises
    ------
    UserError
        An unknown name, an activation or initializer that cannot be read, training that is not possible, or too many
        points. Values that are fine by themselves and do not fit together are a matter of each point.
    """
    for name in networks:
        _check_network(name)
    for axis, values in axes.items():
        for value in values:
            _check_value(axis, value)
    if training is not None:
        other = [name for name in axes.get("input", ()) if name != "cifar10"]
        if other:
            raise UserError("--input", other[0], "cifar10, on which networks are trained", "leave it out")
        axes = {**axes, "input": ["cifar10"]}
        check(training, data_dir)
    count = len(networks)
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise UserError("sweep", f"{count:,} points", f"at most {MOST_POINTS:,}")
    engines = ("theory",) if trials is None else ("theory", "monte-carlo")
    fixed = {"engines": engines} | ({} if trials is None else {"trials": trials})
    return [
        Point(Settings(network, **dict(zip(axes, values, strict=True)), **fixed), data_dir, layers, training)  # type: ignore[arg-type]
        for network in networks
        for values in product(*axes.values())
    ]


def _check_network(name: str) -> None:
    if name.endswith(".toml"):
        load(Path(name))
    elif name not in NETWORKS:
        near = did_you_mean("network", name, list(NETWORKS))
        raise UserError(near.what, near.got, f"{near.expected}, or a file that ends in .toml", near.do)


def _check_value(axis: str, value: object) -> None:
    if axis == "activation":
        if mentions_x(str(value)):
            parse(str(value))  # what is read but has infinite moments becomes a row that says so
        else:
            activation(str(value))
    elif axis == "init":
        parse_initializer(str(value))
    elif axis in _NAMES:
        if value not in _NAMES[axis]:
            raise did_you_mean(f"--{axis}", str(value), list(_NAMES[axis]))
    elif not isinstance(value, int) or value < (least := 0 if axis == "seed" else 1):
        raise UserError(f"--{axis}", value, f"a whole number of at least {least}")


_NAMES: dict[str, Mapping[str, object]] = {"framework": FRAMEWORKS, "norm": NORMS, "input": INPUTS}
