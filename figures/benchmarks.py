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
from varprop.simulator.montecarlo import TrialMoments, simulate, simulate_trials
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
    """Return the seconds that a trial's products, memory and draws take one thread at the machine's own rates.

    Every operation is ideal by itself: it reads its inputs once and writes its output once, and a normalisation, the
    activation behind it and all moments are one operation. So every map but those in between is written and read
    forward, and so is its gradient on the way back; what a normalisation or activation reads is read then once more.

    Products: multiply-adds at the rate of a matrix product of 512 (BLAS, one thread), the best there is: the narrow
    products of a network do not reach it. Memory: at the rate of a copy from one array to another of the map's size,
    which a core's cache holds or not; but maps that wait for the way back are written and read again, and weights read
    both ways, at the rate of copies between arrays that are as large together as all of these. Draws: a normal for
    every weight, at our own rate. What is added up could overlap in part, and chains of operations could be fused;
    what a trial does between its operations, and arithmetic other than products, count as nothing.
    """
    from threadpoolctl import threadpool_limits

    from varprop.simulator.montecarlo.draws import WEIGHT, Draws
    from varprop.simulator.montecarlo.trial import Plan

    nodes, batch, plan = work.network.nodes, len(work.batch.data), Plan(work.network, frozenset())
    sizes = [batch * int(np.prod(node.shape)) for node in nodes]
    products = 2 * sum((node.fan_in or 0) * size for node, size in zip(nodes, sizes, strict=True))
    weights = sum(map(weight_count, nodes))
    stored = [(size, kept) for size, kept, made in zip(sizes, plan.kept, plan.unstored, strict=True) if not made]
    waiting = weights + sum(size for size, kept in stored if kept)
    a, b, x = np.ones((512, 512), np.float32), np.ones((512, 512), np.float32), np.ones(2**22, np.float32)
    draws = Draws(0, 0, 1, np.float32)
    with threadpool_limits(1, user_api="blas"):
        product = _best(lambda: np.matmul(a, b)) / 512**3
    near, far = {size: _copy(size, 2 * size) for size in {*sizes}}, _copy(2**18, waiting)
    # A copy is a read and a write.
    memory = sum(size * (1.5 * near[size] + far if kept else 2 * near[size]) for size, kept in stored) + weights * far
    normal = _best(lambda: draws.normals(0, WEIGHT, x[np.newaxis])) / x.size
    return products * product + memory + weights * normal


def _copy(size: int, total: int) -> float:
    """Return the seconds a number of copies between arrays of `size` numbers that hold `total` together."""
    arrays = np.ones((max(2, total // size), size), np.float32)
    pairs, rounds = len(arrays) // 2, max(1, 2**21 // total)

    def work() -> None:
        for _ in range(rounds):
            for source in range(0, 2 * pairs, 2):
                np.copyto(arrays[source + 1], arrays[source])

    return _best(work) / (rounds * pairs * size)


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
    long = mlp(1024, 1000, 1)
    start = wall()
    simulate(long.network, long.batch, trials=10_000, seed=0, threads=2)  # averages of so many take time, too
    seconds = wall() - start
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
        f"| {long.name}, 10,000 trials and their averages, two threads, wall clock, run once | {seconds:.0f} s | | | |",
        *_neural_tangents_rows(neural_tangents),
        "",
        f"MobileNetV2 runs at {share:.0%} of the machine's own rates for its products, its draws and what operations "
        f"must read and write; of its trials {controlled:.0f} do what {plain:.0f} do without control variates. Without "
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
