"""Where points run: processes here, a Dask cluster, or Slurm, all behind the interface of `concurrent.futures`."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from varprop.simulator.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

SLURM = "slurm"

_CONNECT = 10.0  # seconds for a Dask scheduler to answer
_JOBS = 200  # of Slurm, which takes seconds to start one, and of which a user may have a few hundred
_POLL = 1.0  # seconds between looks at Slurm's jobs
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def executor(scheduler: str | None, workers: int, folder: Path | None) -> Iterator[tuple[Executor, float, float]]:
    """Yield what runs tasks, how many it runs at a time, and how many there should be at most.

    Parameters
    ----------
    scheduler
        None for processes of this machine, the address of a Dask scheduler (``tcp://host:port``), or ``slurm``.
    workers
        Points at a time here; a cluster has its own number.
    folder
        For Slurm's job files.

    Raises
    ------
    UserError
        The scheduler is none of these, cannot be reached, or its package is not installed.
    """
    if scheduler is None:
        spawn = multiprocessing.get_context("spawn")
        with _one_thread_each(), ProcessPoolExecutor(workers, spawn, _start_worker) as pool:
            try:
                yield pool, workers, math.inf
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()  # a point may take minutes; nobody waits for it any more
                raise
    elif scheduler == SLURM:
        yield _Slurm(folder or Path("slurm")), math.inf, _JOBS
    elif scheduler.startswith(("tcp://", "tls://")):
        with _dask(scheduler) as (pool, slots):
            yield pool, slots, math.inf
    else:
        raise UserError("--scheduler", scheduler, f"tcp://HOST:PORT of a Dask scheduler, or {SLURM}")


def _start_worker() -> None:
    """Leave an interruption to the parent, and leave with it, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start inside have one thread each, whatever library they load."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _dask(address: str) -> Iterator[tuple[Executor, float]]:
    try:
        from distributed import Client
    except ImportError:
        raise _missing("dask", address) from None
    try:
        client = Client(address, timeout=_CONNECT, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UserError("--scheduler", address, "a Dask scheduler that answers", f"{error}".split("\n")[0]) from None
    with client:
        slots = sum(client.ncores().values())  # type: ignore[no-untyped-call]
        yield client.get_executor(pure=False), max(slots, 1)  # type: ignore[no-untyped-call]


class _Slurm(Executor):
    """Jobs of submitit as futures.

    Parameters
    ----------
    folder
        For the files by which submitit talks to its jobs; shared with the cluster's nodes.
    cluster
        As submitit names it; None lets it find Slurm.
    """

    def __init__(self, folder: Path, cluster: str | None = SLURM) -> None:
        try:
            import submitit
        except ImportError:
            raise _missing("slurm", SLURM) from None
        try:
            self._jobs = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError as error:
            raise UserError("--scheduler", SLURM, "a machine with Slurm", str(error)) from None
        self._jobs.update_parameters(timeout_min=24 * 60, cpus_per_task=1)

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Send a job; a thread waits for it."""
        job, future = self._jobs.submit(function, *args, **kwargs), Future[R]()
        future.set_running_or_notify_cancel()
        threading.Thread(target=_await, args=(job, future), daemon=True).start()
        return future


def _await(job: Any, future: Future[R]) -> None:
    try:
        while not job.done():
            time.sleep(_POLL)
        future.set_result(job.result())
    except BaseException as error:
        future.set_exception(error)


def _missing(extra: str, scheduler: str) -> UserError:
    return UserError("--scheduler", scheduler, f"the extra {extra!r} installed", f"pip install 'varprop[{extra}]'")
