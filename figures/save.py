"""A figure on disk, its table and its provenance beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from varprop.figures.style import paper
from varprop.simulator.errors import UserError
from varprop.simulator.files import require_writable, write_whole
from varprop.simulator.provenance import provenance
from varprop.simulator.strict_json import indented

FORMATS = ("png", "pdf", "svg", "pgf")
_UNDATED: dict[str, Any] = {
    "png": {"metadata": {"Software": None}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


def companions(path: Path, what: str = "--plot") -> tuple[Path, Path, Path]:
    """Return the three files of a figure, (figure, tidy table, provenance), if all can be written.

    `what` names the option that the path comes from, in errors.

    Raises
    ------
    UserError
        A format that is not known, or a folder that is missing.
    """
    if path.suffix.lstrip(".") not in FORMATS:
        raise UserError(what, path, "a file name that ends in ." + ", .".join(FORMATS))
    files = (path, path.with_suffix(".csv"), path.with_suffix(".json"))
    for file in files:
        require_writable(file, what)
    return files


def save(path: Path, draw: Callable[[], Figure], table: str, command: Sequence[str], settings: object) -> None:
    """Draw in the house style and write the figure, FILE.csv and FILE.json.

    Parameters
    ----------
    path
        Ends in one of `FORMATS`.
    draw
        Makes the figure.
    table
        The data behind it, as CSV.
    command
        Words of the command line that asks for it.
    settings
        What the figure depends on, seed included; must be fit for JSON.

    Raises
    ------
    UserError
        As `companions`, or PGF is asked for where there is no LaTeX.
    """
    files = companions(path)
    write_whole(files[0], _rendered(draw, path.suffix.lstrip(".")))
    write_whole(files[1], table)
    write_whole(files[2], indented(provenance(command, settings)))


def _rendered(draw: Callable[[], Figure], kind: str) -> bytes:
    image = io.BytesIO()
    with paper():
        try:
            draw().savefig(image, format=kind, **_UNDATED.get(kind, {}))
        except FileNotFoundError as error:
            if kind != "pgf":
                raise
            missing = f"no {error.filename}"
            raise UserError("pgf", missing, "LaTeX, to measure text with", "install it, or ask for pdf") from None
    return image.getvalue()
