"""Shared by the tests: reports made by hand, so that what works on reports is tested without engines, and images."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from varprop.simulator import cifar10
from varprop.simulator.network import Initializer, Network, NetworkBuilder
from varprop.simulator.report import LayerMoments, Moments, Report

HE = Initializer("he_normal")


def moments(log_second_moment: float, relative_error: float | None = None) -> Moments:
    """Moments of one node, from the log; with a standard error if one is given."""
    try:
        second_moment = math.exp(log_second_moment)
    except OverflowError:
        second_moment = math.inf
    return Moments(
        mean=0.0,
        second_moment=second_moment,
        variance=second_moment,
        log_second_moment=log_second_moment,
        log_second_moment_mean=log_second_moment if math.isfinite(log_second_moment) else None,
        log_second_moment_sd=0.0,
        standard_error=None if relative_error is None else relative_error * second_moment,
        trials=None if relative_error is None else 100,
    )


def report(
    network: Network, forward: Sequence[float], backward: Sequence[float], relative_error: float | None = None
) -> Report:
    """Report from the logs of second moments: theory without a standard error, else Monte Carlo."""
    layers = tuple(
        LayerMoments(moments(q, relative_error), moments(g, relative_error))
        for q, g in zip(forward, backward, strict=True)
    )
    settings = {"trials": 100, "interrupted": False, "relative_error": relative_error}
    return Report("theory" if relative_error is None else "monte-carlo", network, layers, settings)


@pytest.fixture
def chain() -> Callable[[int], Network]:
    """Network of the given number of linear layers of width 4."""

    def build(layers: int) -> Network:
        net = NetworkBuilder("chain", "torch", (4,))
        for _ in range(layers):
            net.linear(4, HE)
        return net.build()

    return build


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """The function `report`."""
    return report


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Noise in the format of CIFAR-10."""
    parent = tmp_path_factory.mktemp("data")
    folder = parent / cifar10.FOLDER
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    yield parent
    shutil.rmtree(folder)  # 184 MB
