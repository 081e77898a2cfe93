"""README's picture and its generated block: ``python -m varprop.figures.readme``, from the repository's root.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is replaced by what a run gives; nothing in it
is typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from varprop.figures.propagation import save_propagation
from varprop.simulator.compare import Comparison, Summary, summarise
from varprop.simulator.errors import UserError
from varprop.simulator.files import write_whole
from varprop.simulator.propagate import Run, Settings, prepare, propagate
from varprop.simulator.report import Report

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path("figures/mobilenet_v2.png")
TRIALS = 200
POINTS = [
    Settings("mobilenet_v2", framework=framework, init="he_normal", input=source, trials=TRIALS)
    for framework in ("torch", "keras")
    for source in ("gaussian", "photo")
]
DRAWN = "gaussian"


def accuracy_table(runs: Sequence[Run]) -> str:
    """Return README's table of differences between theory and Monte Carlo, a row a run.

    The noise columns are medians over layers of the Monte Carlo's own relative standard error: no difference can be
    told from zero below them.
    """
    lines = [
        "| framework | input | forward q: median, worst | backward step: median, worst | accumulated | noise of q, g |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        if run.comparison is None or run.monte_carlo is None:
            raise ValueError("accuracy needs both engines")
        found: Comparison = run.comparison
        steps = summarise([step.agreement for step in found.steps])
        cells = [str(run.settings.framework), run.settings.input, _two(summarise(found.forward)), _two(steps)]
        noise = ", ".join(_noise(run.monte_carlo, direction) for direction in ("forward", "backward"))
        lines.append("| " + " | ".join([*cells, _percent(found.accumulated), noise]) + " |")
    return "\n".join(lines)


def fill(text: str, name: str, block: str) -> str:
    """Return a document with the named block replaced.

    Raises
    ------
    UserError
        The document has no such block, or several.
    """
    pattern = re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda match: f"{match[1]}{block}\n{match[2]}", text)
    if count != 1:
        raise UserError("README block", f"{count} of {name!r}", "exactly one")
    return filled


def main() -> None:
    """Run what README reports, draw its picture and fill in its table."""
    runs = [propagate(prepare(settings)) for settings in POINTS]
    drawn = [run for run in runs if run.settings.input == DRAWN]
    save_propagation(ROOT / PICTURE, drawn, ["python", "-m", "varprop.figures.readme"])
    readme = ROOT / "README.md"
    write_whole(readme, fill(readme.read_text(), "accuracy", accuracy_table(runs)))


def _two(summary: Summary) -> str:
    return f"{_percent(summary.median).lstrip('+')}, {_percent(summary.worst)}"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:+.2f}%" if abs(ratio) < 0.0995 else f"{100 * ratio:+.0f}%"


def _noise(report: Report, direction: str) -> str:
    rows = [getattr(layer, direction) for layer in report.layers]
    errors = [row.standard_error / row.second_moment for row in rows if row.standard_error and row.second_moment]
    return f"{100 * median(errors):.2f}%"


if __name__ == "__main__":
    main()
