"""What a person sees while waiting, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def announce_compilation(quiet: bool) -> Iterator[None]:
    """Say once that kernels are compiled, if any is that the cache does not hold."""
    if quiet:
        yield
        return
    from numba.core import event

    from varprop.simulator.jit import CompilationWatch

    def announce() -> None:
        print("compiling kernels (once, up to half a minute)", file=sys.stderr, flush=True)

    with event.install_listener("numba:compile", CompilationWatch(announce)):
        yield


@contextmanager
def progress_bar(quiet: bool, label: str, unit: str = "trials") -> Iterator[Callable[[int, int], None] | None]:
    """Show what is done and the time left on a terminal; yield what the worker calls with (done, total)."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit},"))
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console, transient=True)
    task = bar.add_task(label)

    def show(done: int, total: int) -> None:
        bar.start()  # on the first one, so that the bar does not stand at nought while theory is at work
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
