"""Gallery figures on disk: NAME.pdf, NAME.csv and NAME.json for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from varprop.figures.gallery import recipe
from varprop.figures.save import FORMATS, companions, save
from varprop.figures.style import WIDTHS
from varprop.simulator.errors import did_you_mean
from varprop.simulator.export import table_csv
from varprop.simulator.files import make_folder


def write_figures(
    names: Sequence[str],
    folder: Path,
    *,
    formats: Sequence[str] = ("pdf",),
    width: str = "page",
    seed: int = 0,
    command: Sequence[str] = (),
    announce: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Compute and draw figures, and write each with its tidy table and provenance.

    Parameters
    ----------
    names
        From `varprop.figures.gallery.NAMES`.
    folder
        Is made if only its own name is missing.
    formats
        Of `varprop.figures.save.FORMATS`, any number.
    width
        ``column`` or ``page``.
    seed
        Of batches and weight draws.
    command
        Words of the command line that asks for it, for the provenance.
    announce
        Called with a line before each figure is computed.

    Returns
    -------
    list of Path
        The files written, in order.

    Raises
    ------
    UserError
        An unknown name, format or width, or a folder that cannot be written to: all before any work.
    """
    chosen = [recipe(name) for name in names]
    for kind in formats:
        if kind not in FORMATS:
            raise did_you_mean("--figure-format", kind, list(FORMATS))
    if width not in WIDTHS:
        raise did_you_mean("--width", width, list(WIDTHS))
    make_folder(folder)
    paths = {one.name: [folder / f"{one.name}.{kind}" for kind in formats] for one in chosen}
    for path in (path for of in paths.values() for path in of):
        companions(path, "--out")
    files: list[Path] = []
    for number, one in enumerate(chosen, 1):
        announce(f"figure {number} of {len(chosen)}: {one.name}")
        rows = one.compute(seed)
        for path in paths[one.name]:
            draw = partial(one.draw, rows, WIDTHS[width])
            files += save(path, draw, table_csv(rows), command, {**one.settings, "width": width, "seed": seed})
    return list(dict.fromkeys(files))
