"""Memory predicted before a run is what the run takes, by the allocator's own books."""

import tracemalloc

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.montecarlo import engine, memory, pool, simulate
from varprop.simulator.montecarlo.draws import Draws
from varprop.simulator.montecarlo.memory import block_bytes
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.trial import Plan, run_trials
from varprop.simulator.montecarlo.weightless import unseen_layers
from varprop.simulator.report import Batch


def plan_of(network, batch):
    return Plan(network, unseen_layers(network, batch))


@pytest.mark.parametrize("huge", [2**26, 2**21])
@pytest.mark.parametrize(
    ("name", "options", "batch", "trials"),
    [
        ("mobilenet_v2", {}, 16, 1),
        ("mobilenet_v2", {}, 2, 3),
        ("resnet", {}, 3, 1),
        ("vgg", {"depth": 5}, 9, 1),
        ("plain_conv", {"depth": 4}, 12, 2),
        ("mlp", {"width": 512, "depth": 4}, 4, 3),
        ("mlp", {"width": 512, "depth": 4}, 1, 3),
        ("mlp", {"width": 64, "depth": 4}, 32, 2),
    ],
)
def test_prediction_is_the_peak(name, options, batch, trials, huge, monkeypatch):
    """Within 2% or 0.2 MB, of two blocks: Python's own objects are known roughly."""
    for module in (memory, pool):
        monkeypatch.setattr(module, "HUGE", huge)
    network = build(name, **options)
    plan, own = plan_of(network, batch), Pool(np.float32)
    assert plan.columns  # made once
    data = np.random.default_rng(0).standard_normal((*network.nodes[0].shape, batch)).astype(np.float32)
    run_trials(plan_of(network, 2), data[..., :2].copy(), Draws(0, 0, 1, np.float32), Pool(np.float32))  # compiles
    predicted = block_bytes(plan, batch, trials, 4)
    tracemalloc.start()
    for first in (0, trials):
        run_trials(plan, data, Draws(0, first, trials, np.float32), own)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert predicted == pytest.approx(peak, rel=0.02, abs=200_000)


def test_mobilenet_at_full_size_stays_below_four_gigabytes():
    network = build("mobilenet_v2", size=224)
    needed = block_bytes(plan_of(network, 32), 32, 1, 4)
    assert needed < 4 * 2**30
    assert max(1, memory.BUDGET // needed) * needed < 4 * 2**30


def test_a_trial_that_does_not_fit_is_refused_with_what_would(monkeypatch):
    network = build("plain_conv", depth=3)
    batch = Batch(np.zeros((64, *network.nodes[0].shape)), "zeros", False)
    needed = block_bytes(plan_of(network, 64), 64, 1, 4)
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else int(needed / 0.8 / 3))
    with pytest.raises(UserError, match=r"GiB for one trial at batch 64, expected at most .* GiB. --batch 16 fits"):
        simulate(network, batch, trials=2, seed=0)
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1)
    with pytest.raises(UserError, match="Lower --size, --width or --depth"):
        simulate(network, batch, trials=2, seed=0)


def test_fewer_threads_run_where_memory_is_short(monkeypatch):
    network = build("plain_conv", depth=3)
    batch = Batch(np.zeros((8, *network.nodes[0].shape)), "zeros", False)
    needed = block_bytes(plan_of(network, 8), 8, 1, 4)
    monkeypatch.setattr(engine, "BUDGET", 2 * needed)
    assert engine._schedule(network, batch, 100, 0, 4, "float32", True, None).threads == 2
