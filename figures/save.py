"""A figure on disk, its table and its provenance beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from varprop.figures.style import paper
from varprop.simulator.errors import UserError
from varprop.simulator.files import require_writable, write_whole
from varprop.simulator.provenance import provenance
from varprop.simulator.strict_json import indented

FORMATS = ("png", "pdf", "svg", "pgf")
_UNDERSCORE = rb"\catcode`\_=\active\def_{\ifmmode\sb\else\textunderscore\fi}"
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


def save(path: Path, draw: Callable[[], Figure], table: str, command: Sequence[str], settings: object) -> list[Path]:
    """Draw in the house style and write the figure, FILE.csv and FILE.json.

    PGF cannot hold colour maps: it includes them from FILE-img0.png and so on, which are written beside it.

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

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UserError
        As `companions`, or PGF is asked for where there is no LaTeX.
    """
    _, data, origin = companions(path)
    contents: dict[Path, str | bytes] = dict(_rendered(draw, path))
    contents |= {data: table, origin: indented(provenance(command, settings))}
    for file, content in contents.items():
        write_whole(file, content)
    return list(contents)


def _rendered(draw: Callable[[], Figure], path: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the figure's file and those that it includes."""
    kind = path.suffix.lstrip(".")
    with tempfile.TemporaryDirectory() as folder, paper():
        try:
            draw().savefig(Path(folder, path.name), format=kind, **_UNDATED.get(kind, {}))
        except FileNotFoundError as error:
            if kind != "pgf":
                raise
            missing = f"no {error.filename}"
            raise UserError("pgf", missing, "LaTeX, to measure text with", "install it, or ask for pdf") from None
        for file in sorted(Path(folder).iterdir(), reverse=True):  # NAME.pgf before NAME-img0.png
            content = file.read_bytes()
            yield path.with_name(file.name), _self_contained(content) if file.suffix == ".pgf" else content


def _self_contained(pgf: bytes) -> bytes:
    r"""Let a figure be included where pgf alone is loaded.

    Matplotlib's own code leaves to the document's preamble what ``\mathdefault`` is, and underscores in words to the
    package of that name.
    """
    words = rb"\catcode`\^=\active"  # where matplotlib begins a text
    return rb"\providecommand\mathdefault[1]{#1}%" + b"\n" + pgf.replace(words, _UNDERSCORE + words)
