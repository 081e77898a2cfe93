"""Speed of Monte Carlo beside torch: ``pytest tests/benchmarks/bench_montecarlo.py``, with the extra ``bench``.

The name keeps it out of an ordinary run of the tests.
"""

import time
from statistics import median

import pytest

from varprop.figures.benchmarks import growth, in_turns, ours, roofline, trials_to_precision
from varprop.figures.workloads import mlp, mobilenet

pytest.importorskip("torch")

from varprop.figures.torch_peers import eager, two_processes


@pytest.mark.parametrize("work", [mobilenet(), mlp(4096, 100, 8), mlp(1024, 1000, 1, 64)], ids=lambda work: work.name)
def test_trial(benchmark, work):
    benchmark.extra_info["trials"] = work.trials
    benchmark(lambda: ours(work, threads=2, clock=time.perf_counter))


def test_direct_engine_takes_less_processor_time_than_torch():
    work = mobilenet()
    ratio = median(peer / own for own, peer in in_turns(lambda: ours(work), eager(work)))
    print(f"torch eager / varprop, one thread each: {ratio:.2f}")
    assert ratio > 1


def test_direct_engine_is_faster_than_torch_on_two_threads():
    """By the wall clock: on an idle machine only, as torch's threads wait for each other."""
    work, clock = mobilenet(), time.perf_counter
    rounds = in_turns(lambda: ours(work, 2, clock), eager(work, 2, clock))
    ratio = median(peer / own for own, peer in rounds)
    print(f"torch eager / varprop, two threads each: {ratio:.2f}")
    assert ratio > 1


def test_direct_engine_is_faster_than_two_torch_processes():
    """By the wall clock, as above: two threads of one against two processes of the other."""
    work = mobilenet()
    rounds = in_turns(lambda: ours(work, 2, time.perf_counter), two_processes(work))
    ratio = median(peer / own for own, peer in rounds)
    print(f"two torch processes / varprop on two threads: {ratio:.2f}")
    assert ratio > 1


def test_control_variates_save_trials():
    controlled, plain = trials_to_precision(mobilenet())
    print(f"trials until every standard error is below 1%: {controlled:.0f}, without control variates {plain:.0f}")
    assert controlled < 0.5 * plain


def test_without_weights_a_wide_network_is_much_faster_than_torch():
    wide, peer = mlp(4096, 100, 8), eager(mlp(4096, 10, 8))
    ratio = median(10 * theirs / own for own, theirs in in_turns(lambda: ours(wide), peer))
    print(f"torch eager / varprop, one thread each: {ratio:.0f}")
    assert ratio > 50


def test_without_weights_time_is_linear_in_width_and_depth():
    """Exponents of median times; the noise of a busy machine moves them by a tenth."""
    widths, depths = (2048, 4096, 8192), (50, 100, 200)
    assert growth(widths, [median(ours(mlp(w, 50, 8)) for _ in range(3)) for w in widths]) < 1.3
    assert growth(depths, [median(ours(mlp(2048, d, 8)) for _ in range(3)) for d in depths]) < 1.3


def test_roofline_is_below_what_a_trial_takes():
    work = mobilenet()
    assert roofline(work) < median(ours(work) for _ in range(3))
