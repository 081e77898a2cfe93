"""varprop: what happens to signal and gradient, layer by layer, before training.

The names below are the public interface; each is imported on first use, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varprop.simulator.architectures import build
    from varprop.simulator.compare import compare
    from varprop.simulator.errors import UserError
    from varprop.simulator.initializers import parse_initializer
    from varprop.simulator.inputs import load_batch
    from varprop.simulator.montecarlo import simulate
    from varprop.simulator.network import Network, NetworkBuilder
    from varprop.simulator.report import Batch, Report
    from varprop.simulator.sweep.results import open_sweep
    from varprop.simulator.theory import predict
    from varprop.simulator.toml_network import load

__all__ = [
    "Batch",
    "Network",
    "NetworkBuilder",
    "Report",
    "UserError",
    "build",
    "compare",
    "load",
    "load_batch",
    "open_sweep",
    "parse_initializer",
    "predict",
    "simulate",
]

__version__ = "0.1.0"

_HOME = {
    "Batch": "report",
    "Network": "network",
    "NetworkBuilder": "network",
    "Report": "report",
    "UserError": "errors",
    "build": "architectures",
    "compare": "compare",
    "load": "toml_network",
    "load_batch": "inputs",
    "open_sweep": "sweep.results",
    "parse_initializer": "initializers",
    "predict": "theory",
    "simulate": "montecarlo",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'varprop' has no attribute {name!r}")
    return getattr(import_module(f"varprop.simulator.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
