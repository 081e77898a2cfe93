"""Which device runs, and what a user is told when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from varprop.simulator.errors import UserError


def find_device(name: str, what: str = "--device") -> torch.device:
    """Return the device of that name; ``auto`` is a CUDA GPU where there is one.

    Raises
    ------
    UserError
        A name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(what, repr(name), "auto, cpu, cuda, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(what, repr(name), "auto, cpu, cuda, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(what, name, f"one of this machine's {torch.cuda.device_count()} CUDA devices", "use cpu")
    return device


def describe(device: torch.device) -> str:
    """Return the device's name, for provenance."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn a device's or the host's failure to allocate into a user's error with advice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError("GPU memory", str(error).partition(". ")[0], "enough of it", advice) from None
    except RuntimeError as error:
        _, found, amount = str(error).partition("can't allocate memory: you tried to allocate ")
        if not found:
            raise
        raise UserError("memory", f"{amount.partition('.')[0]} asked for", "what this machine has", advice) from None
