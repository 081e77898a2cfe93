"""The state of a run on disk: whole or not there, and read without executing anything."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from varprop.simulator.errors import UserError
from varprop.simulator.files import write_whole

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps; `records` is the text of the run's records, `seconds` those spent on its epoch."""

    step: int
    seconds: float
    tensors: Mapping[str, Tensor]
    records: str


def save(folder: Path, identity: str, checkpoint: Checkpoint) -> None:
    """Write a run's state; `identity` is the text of its settings, as JSON."""
    content = io.BytesIO()
    torch.save({"identity": identity, **vars(checkpoint)}, content)
    write_whole(folder / FILE, content.getvalue())


def load(folder: Path, identity: str, device: torch.device) -> Checkpoint | None:
    """Return the state that is found in a folder, None if there is none.

    Raises
    ------
    UserError
        The file is damaged, or of a run with other settings.
    """
    path = folder / FILE
    for unfinished in folder.glob(f".{FILE}.*"):  # of a process that was killed while it wrote
        unfinished.unlink()
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about files that it then refuses
            state = torch.load(path, map_location=device, weights_only=True)
        found = str(state["identity"])
        point = Checkpoint(int(state["step"]), float(state["seconds"]), state["tensors"], str(state["records"]))
        different = _difference(json.loads(found), json.loads(identity))
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UserError(str(path), f"{type(error).__name__}", "a checkpoint of varprop", "remove it") from None
    if different is not None:
        raise UserError("--out", folder, f"a folder without a run of other settings: {different}", "name another one")
    return point


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str | None:
    for key in wanted:
        if found.get(key) != wanted[key]:
            return "another network" if key == "nodes" else f"{key} is {found.get(key)} there, here {wanted[key]}"
    return None
