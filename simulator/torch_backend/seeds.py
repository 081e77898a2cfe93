"""Several runs that differ by their seed: folders, devices and the processes of torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from varprop.simulator.errors import UserError
from varprop.simulator.export import table_csv
from varprop.simulator.files import make_folder, write_whole
from varprop.simulator.strict_json import indented
from varprop.simulator.torch_backend.data import TrainingData, check_data
from varprop.simulator.torch_backend.devices import describe, find_device, out_of_memory
from varprop.simulator.torch_backend.records import Records, plain
from varprop.simulator.torch_backend.settings import TrainingSettings
from varprop.simulator.torch_backend.start import compare_start, first_batch
from varprop.simulator.torch_backend.training import Progress, Run, finish

Announce = Callable[[str], None]

MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Seeds:
    """What one process trains of several seeds, and where."""

    settings: TrainingSettings
    """Of the first seed."""
    seeds: tuple[int, ...]
    data: TrainingData
    out: Path
    device: str
    use_graph: bool = True
    side_by_side: int = 1


def plan(
    settings: TrainingSettings,
    count: int,
    data: TrainingData,
    out: Path,
    *,
    device: str = "auto",
    use_graph: bool = True,
    side_by_side: int = 1,
    environment: Mapping[str, str] = os.environ,
) -> Seeds:
    """Check all that can be wrong, make the folder and say what this process will do.

    Parameters
    ----------
    settings
        Of the first seed; the others count up from it.
    count
        Number of seeds.
    data
        What all of them train on.
    out
        Folder; made if its parent exists. Each seed gets one of its own in it, ``seed-N``.
    device, use_graph
        As for `train`.
    side_by_side
        Runs that take turns step by step, on a GPU each on a stream of its own.
    environment
        Where ``torchrun`` leaves RANK, LOCAL_RANK and WORLD_SIZE: rank r takes every WORLD_SIZE-th seed from the r-th
        on, on the GPU of its local rank.

    Raises
    ------
    UserError
        What `train` refuses, a number out of range, or a folder that cannot be made.
    """
    for what, value in (("--seeds", count), ("--side-by-side", side_by_side)):
        if not 1 <= value <= MOST_SEEDS:
            raise UserError(what, value, f"a whole number from 1 to {MOST_SEEDS:,}")
    settings.check()
    check_data(settings.network, data)
    rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    where = find_device(device)
    if str(where) == "cuda" and world > 1:
        where = find_device(f"cuda:{environment.get('LOCAL_RANK', rank)}")
    make_folder(out)
    seeds = tuple(range(settings.seed, settings.seed + count))[rank::world]
    return Seeds(settings, seeds, data, out, str(where), use_graph, side_by_side)


def train_seeds(job: Seeds, progress: Progress | None = None, announce: Announce | None = None) -> dict[int, Records]:
    """Train every seed of a plan, or continue where a kill left it; return what each has recorded.

    `announce` gets a line after every epoch.
    """
    where = find_device(job.device)
    data = job.data.to(where)
    found: dict[int, Records] = {}

    def tell(run: Run) -> None:
        if announce is not None:
            announce(_line(run))

    with out_of_memory("lower --batch, --size or --side-by-side"):
        for first in range(0, len(job.seeds), job.side_by_side):
            runs = []
            for seed in job.seeds[first : first + job.side_by_side]:
                folder = job.out / f"seed-{seed}"
                make_folder(folder)
                runs.append(Run(replace(job.settings, seed=seed), data, folder, job.device, use_graph=job.use_graph))
            finish(runs, _share(progress, first, len(runs), len(job.seeds)), tell)
            found |= {run.settings.seed: run.records for run in runs}
    return found


def check_start(job: Seeds, found: Mapping[int, Records]) -> None:
    """Write ``start.csv`` beside every seed's records: theory against what was measured before the first step."""
    for seed, records in found.items():
        settings = replace(job.settings, seed=seed)
        rows = compare_start(settings, first_batch(settings, job.data), records.layers)
        write_whole(job.out / f"seed-{seed}" / "start.csv", table_csv(plain(rows)))


def write_provenance(job: Seeds, record: Mapping[str, object]) -> None:
    """Write ``run.json``: settings, data, device, and what the caller knows of command and versions."""
    known = {"data": job.data.describe(), "device": describe(find_device(job.device)), **record}
    write_whole(job.out / "run.json", indented(known))


def _share(progress: Progress | None, before: int, here: int, seeds: int) -> Progress | None:
    """Turn the progress of `here` runs, after `before` others, into that of all; every run has as many steps."""
    if progress is None:
        return None

    def show(done: int, total: int) -> None:
        each = total // here
        progress(before * each + done, seeds * each)

    return show


def _line(run: Run) -> str:
    last = run.records.epochs[-1]
    validation = (
        ""
        if last.validation_loss is None
        else f", validation {last.validation_loss:.4f} / {last.validation_accuracy:.4f}"
    )
    return (
        f"seed {run.settings.seed}, epoch {last.epoch}/{run.settings.epochs}: loss / accuracy "
        f"{last.loss:.4f} / {last.accuracy:.4f}{validation}, {last.images_per_second:,.0f} images/s"
    )
