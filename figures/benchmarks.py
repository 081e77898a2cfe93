"""README's table of speed: ``python -m varprop.figures.benchmarks``, from the repository's root.

Peers do the same work (`torch_peers`) and run in turns with varprop, so that what else the machine does meets both.
Reported are medians of times and of their ratios. Processor time of one thread is what a busy machine disturbs least:
with one process a core, it is what a trial costs. Times by the wall clock need an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from varprop.figures.readme import ROOT, fill
from varprop.figures.workloads import Clock, Work, mlp, mobilenet, plain_conv
from varprop.simulator.files import write_whole
from varprop.simulator.limits import weight_count
from varprop.simulator.montecarlo import TrialMoments, simulate_trials
from varprop.simulator.montecarlo.aggregate import relative_error
from varprop.simulator.theory import predict

ROUNDS = 5
PRECISION = 0.01


def ours(work: Work, threads: int = 1, clock: Clock = time.process_time) -> float:
    """Return varprop's seconds a trial."""
    start = clock()
    simulate_trials(work.network, work.batch, trials=work.trials, seed=0, threads=threads)
    return (clock() - start) / work.trials


def roofline(work: Work) -> float:
    """Return the seconds that a trial's products, passes and draws take one thread at the machine's own rates.

    Products: forward and back, at the rate of a matrix product of 512 (BLAS, one thread). Passes: every number is
    written and read once each way, at the rate of a copy. Draws: a normal for every weight, at our own rate.
    """
    from threadpoolctl import threadpool_limits

    from varprop.simulator.montecarlo.draws import WEIGHT, Draws

    nodes, batch = work.network.nodes, len(work.batch.data)
    numbers = batch * sum(int(np.prod(node.shape)) for node in nodes)
    products = 2 * batch * sum((node.fan_in or 0) * int(np.prod(node.shape)) for node in nodes)
    weights = sum(map(weight_count, nodes))
    a, b = np.ones((2, 512, 512), np.float32)
    x, y = np.ones((2, 2**22), np.float32)
    draws = Draws(0, 0, 1, np.float32)
    with threadpool_limits(1, user_api="blas"):
        product = _best(lambda: np.matmul(a, b)) / 512**3
    copy = _best(lambda: np.copyto(y, x)) / x.size
    normal = _best(lambda: draws.normals(0, WEIGHT, x[np.newaxis])) / x.size
    return products * product + 2 * numbers * copy + weights * normal


def growth(values: Sequence[int], times: Sequence[float]) -> float:
    """Return the exponent of time in a size, by least squares of logs."""
    return float(np.polyfit(np.log(values), np.log(times), 1)[0])


def in_turns(*engines: Callable[[], float]) -> list[tuple[float, ...]]:
    """Return one tuple of times a round, after a round that is not counted."""
    return [tuple(engine() for engine in engines) for _ in range(ROUNDS + 1)][1:]


def trials_to_precision(work: Work, trials: int = 640) -> tuple[float, float]:
    """Return how many trials bring every standard error below `PRECISION`: of ours, and of plain averages."""

    def needed(*moments: TrialMoments) -> float:
        return trials * (relative_error(*moments) / PRECISION) ** 2

    sides = simulate_trials(work.network, work.batch, trials=trials, seed=0)
    return needed(*sides), needed(*(replace(side, columns=((),) * len(work.network)) for side in sides))


def speed_table(neural_tangents: Path | None) -> str:
    """Measure, and return README's block; `neural_tangents` is an interpreter that has it."""
    from varprop.figures import torch_peers

    direct, few_blocks, wide, peer = mobilenet(), mobilenet(2), mlp(4096, 100, 8), mlp(4096, 10, 8)
    wall = time.perf_counter
    one_thread = in_turns(lambda: ours(direct), torch_peers.eager(direct))
    compiled, compilation = torch_peers.compiled(few_blocks)
    few = in_turns(lambda: ours(few_blocks), compiled)
    ten_times = torch_peers.eager(peer)
    widest = in_turns(lambda: ours(wide), lambda: 10 * ten_times())
    two_threads = in_turns(lambda: ours(direct, 2, wall), torch_peers.eager(direct, 2, wall))
    processes = in_turns(lambda: ours(direct, 2, wall), torch_peers.two_processes(direct))
    long = mlp(1024, 1000, 1, trials=1024)
    seconds = 10_000 * median(ours(long, 2, wall) for _ in range(ROUNDS))
    controlled, plain = trials_to_precision(direct)
    to_precision = [(controlled * own, plain * other) for own, other in one_thread]
    share = median(roofline(direct) / own for own, _ in one_thread)
    lines = [
        "| work | varprop | peer | | ratio |",
        "|---|---|---|---|---|",
        _row(direct.name, one_thread, "torch eager"),
        _row(f"the same until every standard error is below {PRECISION:.0%}", to_precision, "torch eager"),
        _row("the same trial, two threads, wall clock", two_threads, "torch eager, two threads"),
        _row("the same trial, two threads, wall clock", processes, "two torch processes"),
        _row(few_blocks.name, few, f"torch.compile (after {compilation:.0f} s)"),
        _row(wide.name, widest, "torch eager, depth 10, times ten"),
        f"| {long.name}, 10,000 trials, two threads, wall clock (measured: {long.trials}) | {seconds:.0f} s | | | |",
        *_neural_tangents_rows(neural_tangents),
        "",
        f"MobileNetV2 runs at {share:.0%} of the machine's own rates for its products, one copy of every number each "
        f"way and its draws; of its trials {controlled:.0f} do what {plain:.0f} do without control variates. Without "
        f"weights, time grows as width^{_exponent('width'):.2f} (1024 to 8192) and depth^{_exponent('depth'):.2f} "
        f"(25 to 200). Times are of a trial, processor time of one thread where nothing else is said, medians of "
        f"{ROUNDS} rounds in turns, {_machine()}.",
    ]
    return "\n".join(lines)


def _neural_tangents_rows(interpreter: Path | None) -> list[str]:
    """Time theory and a draw beside neural-tangents' kernel and one of its draws, which goes forward only."""
    depth, width, size, batch = 52, 64, 8, 16
    work = plain_conv(depth, width, size, batch)
    if interpreter is None:
        return [f"| {work.name} | | neural-tangents: `--neural-tangents PYTHON`, an interpreter that has it | | |"]

    def theory() -> float:
        start = time.process_time()
        predict(work.network, work.batch)
        return time.process_time() - start

    script = ROOT / "figures" / "neural_tangents_peer.py"
    command = [str(interpreter), str(script), *map(str, (depth, width, size, batch, work.peer_trials))]
    answer = subprocess.run(command, capture_output=True, check=True, text=True)
    peer = json.loads(answer.stdout.splitlines()[-1])
    ours_in_turns = in_turns(theory, lambda: ours(work))
    return [
        _row(f"{work.name}: theory", [(own, peer["kernel"]) for own, _ in ours_in_turns], "neural-tangents' kernel"),
        _row("the same, a trial", [(own, peer["draw"]) for _, own in ours_in_turns], "neural-tangents' draw, forward"),
    ]


def _exponent(size: str) -> float:
    values = (1024, 2048, 4096, 8192) if size == "width" else (25, 50, 100, 200)
    works = [mlp(value, 50, 8) if size == "width" else mlp(2048, value, 8) for value in values]
    return growth(values, [median(ours(work) for _ in range(3)) for work in works])


def main() -> None:
    """Measure and fill in README's table."""
    parser = argparse.ArgumentParser(prog="python -m varprop.figures.benchmarks", description=main.__doc__)
    parser.add_argument("--neural-tangents", type=Path, metavar="PYTHON", help="interpreter that has neural-tangents")
    readme = ROOT / "README.md"
    block = speed_table(parser.parse_args().neural_tangents)
    write_whole(readme, fill(readme.read_text(), "speed", block))


def _row(name: str, rounds: Sequence[tuple[float, ...]], peer: str) -> str:
    mine, other = (median(times) for times in zip(*rounds, strict=True))
    ratio = median(theirs / own for own, theirs in rounds)
    return f"| {name} | {_time(mine)} | {peer} | {_time(other)} | {ratio:.1f} |"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"


def _best(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(10))


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0] if named else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch"))
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main()
