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
from varprop.simulator.toml_network import load

MOST_POINTS = 1_000_000

_SCHEMA = 1  # of what is stored; to be raised when a row gets another meaning under the same version


@dataclass(frozen=True)
class Point:
    """One point: what to run, where the data is, and whether its layers are asked for."""

    settings: Settings
    data_dir: Path | None
    layers: bool

    @property
    def key(self) -> str:
        """Hash of all that the point's result depends on."""
        settings = self.settings
        facts = {
            "schema": _SCHEMA,
            "version": varprop.__version__,
            "settings": asdict(settings),
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
    seed: int = 0,
    data_dir: Path | None = None,
    layers: bool = False,
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
    seed, data_dir
        As for `propagate`.
    layers
        Whether every layer's moments are kept.

    Raises
    ------
    UserError
        An unknown name, an activation or initializer that cannot be read, or too many points. Values that are fine by
        themselves and do not fit together are a matter of each point.
    """
    for name in networks:
        _check_network(name)
    for axis, values in axes.items():
        for value in values:
            _check_value(axis, value)
    count = len(networks)
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise UserError("sweep", f"{count:,} points", f"at most {MOST_POINTS:,}")
    engines = ("theory",) if trials is None else ("theory", "monte-carlo")
    fixed = {"seed": seed, "engines": engines} | ({} if trials is None else {"trials": trials})
    return [
        Point(Settings(network, **dict(zip(axes, values, strict=True)), **fixed), data_dir, layers)  # type: ignore[arg-type]
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
    elif not isinstance(value, int) or value < 1:
        raise UserError(f"--{axis}", value, "a whole number of at least 1")


_NAMES: dict[str, Mapping[str, object]] = {"framework": FRAMEWORKS, "norm": NORMS, "input": INPUTS}
