"""Which networks learn is what mean field says, on a task that any network learns whose signal arrives."""

from __future__ import annotations

import csv

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from varprop.figures.gallery import trainability as kept  # noqa: E402
from varprop.figures.results import FOLDER  # noqa: E402
from varprop.simulator.torch_backend.data import Labelled, TrainingData  # noqa: E402
from varprop.simulator.torch_backend.trainability import Point, separation, trainability  # noqa: E402

GRID = {"depths": (4, 64), "sigma_w2": (0.7, 1.76, 4.0)}


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=256)
    inputs = rng.standard_normal((4, 20))[labels] + 0.5 * rng.standard_normal((256, 20))
    data = TrainingData(Labelled(torch.from_numpy(inputs), torch.from_numpy(labels)), None, "clusters")
    return trainability(data, (20,), **GRID, width=64, steps=120, batch=32, learning_rate=3e-3)


def test_networks_within_six_depth_scales_learn_and_others_do_not(points):
    # Ordered, critical, chaotic: 6 xi_c is 11, 29,000 and 42 layers. Four clusters are learnt wholly or not at all.
    learnt = {(point.sigma_w2, point.depth): point.accuracy > 0.9 for point in points}
    assert learnt == {(w, depth): depth == 4 or w == 1.76 for w in GRID["sigma_w2"] for depth in GRID["depths"]}
    assert [point.within for point in points] == list(learnt.values())
    assert separation(points) == 1.0
    guessing = [point.accuracy for point in points if not point.within]
    assert max(guessing) < 0.5


def test_separation_counts_pairs():
    def point(depth, accuracy):
        return Point(depth, 1.0, 10.0, 0.0, accuracy)

    assert separation([point(5, 0.8), point(20, 0.8)]) == 0.5
    assert separation([point(5, 0.8), point(6, 0.2), point(20, 0.5)]) == 0.5
    assert separation([point(5, 0.8)]) is None


def test_the_figure_has_a_cell_a_network_and_the_scale_peaks_at_the_edge_of_chaos():
    rows = kept.compute(0)
    with (FOLDER / "trainability.csv").open() as table:
        assert len([row for row in rows if row["panel"] == "grid"]) == len(list(csv.DictReader(table)))
    scale = [row for row in rows if row["panel"] == "scale"]
    assert abs(max(scale, key=lambda row: row["depth"])["sigma_w2"] - 1.760955) < 0.02
