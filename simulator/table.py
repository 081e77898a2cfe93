"""Runs as text: a table of layers, then what it comes to."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from varprop.simulator.bands import ends
from varprop.simulator.compare import (
    ALLOWED_FAILURES,
    BEYOND,
    FORWARD_ACCURACY,
    STEP_ACCURACY,
    Comparison,
    Summary,
    end_to_end,
    merged_layers,
    summarise,
    weighted_layers,
)
from varprop.simulator.differences import differences
from varprop.simulator.notebook import exponential
from varprop.simulator.propagate import Run
from varprop.simulator.report import Moments, Report

if TYPE_CHECKING:  # scipy.optimize is not to be loaded for a table of layers
    from varprop.simulator.gain import Gain
    from varprop.simulator.gain_table import Choice
    from varprop.simulator.gain_table import Row as GainRow
    from varprop.simulator.mean_field import Phase

FILE_WIDTH = 180
"""Columns where no terminal says how wide it is."""

LEAST_WIDTH = 100
"""Columns below which rows are left to the terminal to wrap: layer names of three letters help nobody."""

_SHORT_KINDS = {
    "depthwise_conv2d": "dwconv",
    "conv2d": "conv",
    "batch_norm": "bn",
    "activation": "act",
    "average_pool": "avgpool",
    "max_pool": "maxpool",
    "global_average_pool": "gap",
    "zero_pad": "pad",
}
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")
_HEAVY_TAIL = 1.0
"""Deviation of log second moments over draws above which the mean is carried by rare draws."""


def to_table(runs: Sequence[Run], *, terminal: bool = False) -> str:
    """Return one run layer by layer, several side by side.

    Parameters
    ----------
    runs
        At least one.
    terminal
        Fit the terminal and use its colours; otherwise plain text, wide enough for every column.
    """
    text = io.StringIO()
    if terminal:
        console = Console(file=text, force_terminal=True, width=max(Console(file=sys.stdout).width, LEAST_WIDTH))
    else:
        console = Console(file=text, width=FILE_WIDTH, color_system=None, soft_wrap=False)
    if len(runs) == 1:
        run = runs[0]
        console.print(_layers(run, console.width))
        for line in _notes(run) + _closing(run):
            console.print(line, markup=False, highlight=False, soft_wrap=not terminal)
    else:
        console.print("second moments: q of each layer's output, g of the gradient there, a pair of columns a run")
        console.print(_side_by_side(runs, console.width))
        console.print("\nfactors from end to end; largest |z| and worst relative difference of each direction")
        console.print(_summaries(runs))
        for number, run in enumerate(runs, 1):
            parted = [(part.layer, part.text) for part in differences(runs[0].network, run.network)]
            lines = [f"1 against {number}: {line}" for line in _alike(parted)]
            for line in lines + [f"{number}: {line}" for line in _notes(run) + _ends(run) + _profiles(run)]:
                console.print(line, markup=False, highlight=False, soft_wrap=not terminal)
    return text.getvalue()


def names_table(kind: str, names: dict[str, str]) -> str:
    """Return names and descriptions in two columns."""
    width = max(map(len, names))
    return f"{kind}\n" + "".join(f"  {name:<{width}}  {description}\n" for name, description in names.items())


def gain_table(gain: Gain) -> str:
    """Return the moments and gains of an activation, a quantity a line."""
    lines = [
        (f"activation {gain.activation}, z ~ N(0, {gain.q:g})", None),
        ("mean E[phi]", gain.mean),
        ("second moment E[phi^2]", gain.second_moment),
        ("variance Var[phi]", gain.variance),
        ("derivative E[phi'^2]", gain.derivative_second_moment),
        ("gain for second moment 1: 1/sqrt(E[phi^2])", gain.gain_second_moment),
        ("gain for variance 1: 1/sd(phi)", gain.gain_variance),
    ]
    text = "".join(f"{name}\n" if value is None else f"  {name:<44}{value:.10g}\n" for name, value in lines)
    for point in gain.fixed_points:
        stable = "stable" if point.slope < 1 else "unstable"
        text += f"  fixed point under the first gain: q* = {point.q:.6g}, chi = {point.chi:.6g}, {stable}\n"
    for name, formula in (gain.closed_form or {}).items():
        text += f"  {name}(q) = {formula}\n"
    return text if gain.closed_form else text + f"  computed by {gain.method}\n"


def gain_rows_table(rows: Sequence[GainRow], chosen: Sequence[Choice], tails: Sequence[Mapping[str, float]]) -> str:
    """Return what initializers do to activations, a row where frameworks and layers agree, and what follows from it."""
    shared: dict[tuple[str, str, str, str], list[GainRow]] = {}
    for row in rows:
        key = (row.activation, row.initializer, f"{row.sigma_w2:.6g}", f"{row.sigma_b2:.6g}")
        shared.setdefault(key, []).append(row)
    lines = [["activation", "initializer", "where", "sigma_w^2", "forward", "backward", "q*", "chi", "verdict"]]
    for (name, initializer, sigma_w2, _), same in shared.items():
        row = same[0]
        numbers = [f"{row.forward:.4g}", f"{row.backward:.4g}", "-" if row.q_star is None else f"{row.q_star:.4g}"]
        where = " ".join(dict.fromkeys([one.framework for one in same] + [one.layer for one in same]))
        chi = "-" if row.chi is None else f"{row.chi:.4g}"
        lines.append([name, initializer, where, sigma_w2, *numbers, chi, row.verdict])
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    text = "factors of one layer: forward of q from 1, backward of the gradient; chi is that at q*, where depth leads\n"
    text += "".join("".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)
    text += "\nwhich initializer for which activation: chi nearest to 1 at its worst over frameworks and layers\n"
    for one in chosen:
        gain = "" if one.critical_gain is None else f"; exactly 1 with gain {one.critical_gain:.5g} over sqrt(fan_in)"
        chi = "without end" if one.chi is None else f"{one.chi:.4g}"
        text += f"  {one.activation}: {', '.join(one.initializers)}, chi {chi}{gain}\n"
    text += "\nP(|z| > 2 sd) of a sum of equal inputs, by fan and law of the weights of equal variance\n"
    for tail in tails:
        text += "  " + ", ".join(f"{key} {value:.5g}" for key, value in tail.items()) + "\n"
    return text


def phase_table(phase: Phase) -> str:
    """Return where a wide plain net settles, a quantity a line, and the phase in words."""
    lines = [
        ("variance q*, from q = 1", phase.q_star),
        ("correlation c*", phase.c_star),
        ("gradient factor chi", phase.chi),
        ("depth scale of variances xi_q", phase.xi_q),
        ("depth scale of correlations xi_c", phase.xi_c),
        ("trainable depth, 6 xi_c", phase.trainable_depth),
        ("critical sigma_w^2, where chi = 1", phase.critical_sigma_w2),
    ]
    text = f"{phase.activation}, sigma_w^2 = {phase.sigma_w2:g}, sigma_b^2 = {phase.sigma_b2:g}\n"
    text += "".join(f"  {name:<36}{'-' if value is None else f'{value:.7g}'}\n" for name, value in lines)
    for point in phase.fixed_points:
        stable = "stable" if abs(point.slope) < 1 else "unstable"
        text += f"  fixed point: q = {point.q:.6g}, chi = {point.chi:.6g}, {stable}\n"
    return text + f"  {phase.verdict}\n"


def phase_diagram_table(rows: Sequence[Mapping[str, float | str | None]]) -> str:
    """Return the rows of a phase diagram in columns."""

    def cell(value: float | str | None) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:.6g}"

    names = list(rows[0])
    lines = [names, *([cell(row[name]) for name in names] for row in rows)]
    return "".join("".join(f"{word:<19}" for word in line).rstrip() + "\n" for line in lines)


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a point: the settings that differ, factors from end to end, and the verdict."""
    names = list(rows[0])[: list(rows[0]).index("status")]
    varying = [name for name in names if name != "network" and len({row[name] for row in rows}) > 1]
    text = io.StringIO()
    console = Console(file=text, width=FILE_WIDTH, color_system=None)
    table = _grid()
    for heading in ("network", *varying):
        table.add_column(heading, no_wrap=True)
    trained = "training_loss" in rows[0]
    for heading in ("q out/in", "typical", "g in/out", "typical", "trainable", *["loss", "accuracy"] * trained):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    factors = ("forward_factor", "forward_factor_typical", "backward_factor", "backward_factor_typical")
    for row in rows:
        logs = [row.get(f"log_{factor}") for factor in factors]
        trainable = row.get("trainable_depth")
        table.add_row(
            *("" if row[name] is None else str(row[name]) for name in ("network", *varying)),
            *("" if log is None else exponential(log) for log in logs),
            "" if trainable is None else f"{trainable:.0f}",
            *(_trained(row) if trained else ()),
            row.get("verdict") or f"{row['status']}: {row['message']}",
        )
    console.print(table)
    return text.getvalue()


def _trained(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["diverged"]:
        return "diverged", ""
    accuracy = row["training_accuracy"]
    return ("", "") if accuracy is None else (f"{row['training_loss']:.4g}", f"{accuracy:.3f}")


def _grid() -> Table:
    return Table(box=None, padding=(0, 1, 0, 0), header_style="bold")


def _add_rows(table: Table, rows: Sequence[Sequence[str]], width: int) -> None:
    """Add rows; as lines of a single one where nothing has to be folded, as rich takes its time over every cell."""
    columns = list(zip(*rows, strict=True))
    needed = [max(map(len, (str(column.header), *cells))) for column, cells in zip(table.columns, columns, strict=True)]
    if sum(needed) + len(needed) <= width:
        rows = [["\n".join(cells) for cells in columns]]
    for row in rows:
        table.add_row(*row)


def _layers(run: Run, width: int) -> Table:
    table, narrow, rows = _grid(), width < 140, []
    for heading in ("#", "layer", "kind", "shape", "fan_in"):
        table.add_column(heading, justify="left" if heading in ("layer", "kind") else "right", overflow="fold")
    for symbol in ("q", "g"):
        if run.theory:
            table.add_column(f"{symbol} theory", justify="right", no_wrap=True)
        if run.monte_carlo:
            table.add_column(f"{symbol} MC ± se", justify="right", no_wrap=True)
        if run.comparison:
            table.add_column("z", justify="right", no_wrap=True)
        if run.torch:
            table.add_column(f"{symbol} torch ± se", justify="right", no_wrap=True)
        if run.torch_comparison:
            table.add_column("z", justify="right", no_wrap=True)
    for index, node in enumerate(run.network.nodes):
        cells = [str(index), node.name, _SHORT_KINDS.get(node.kind, node.kind) if narrow else node.kind]
        cells += ["x".join(map(str, node.shape)), "" if node.fan_in is None else str(node.fan_in)]
        for direction in ("forward", "backward"):
            for report, comparison in (
                (run.theory, None),
                (run.monte_carlo, run.comparison),
                (run.torch, run.torch_comparison),
            ):
                if report:
                    cells.append(_moment(getattr(report.layers[index], direction)))
                if comparison:
                    cells.append(_z(getattr(comparison, direction)[index].z))
        rows.append(cells)
    _add_rows(table, rows, width)
    return table


def _side_by_side(runs: Sequence[Run], width: int) -> Table:
    """Layers of all runs by name; where theory and Monte Carlo ran, theory (the z in the summaries judges it)."""
    table = _grid()
    table.add_column("layer", overflow="fold")
    for number in range(1, len(runs) + 1):
        table.add_column(f"q {number}", justify="right", no_wrap=True)
        table.add_column(f"g {number}", justify="right", no_wrap=True)
    rows = [
        {node.name: layer for node, layer in zip(run.network.nodes, run.reports[0].layers, strict=True)} for run in runs
    ]
    lines = []
    for name in merged_layers([run.network for run in runs]):
        pairs = [[_moment(row[name].forward), _moment(row[name].backward)] if name in row else ["", ""] for row in rows]
        lines.append([name, *(cell for pair in pairs for cell in pair)])
    _add_rows(table, lines, width)
    return table


def _summaries(runs: Sequence[Run]) -> Table:
    settings = [asdict(run.settings) for run in runs]
    varied = [key for key in settings[0] if len({str(row[key]) for row in settings}) > 1]
    table = _grid()
    headings = ["", *varied, "q out/in", "g in/out"]
    if all(run.comparison for run in runs):
        headings += ["q z", "q worst", "g z", "g worst", "step worst"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for number, (run, row) in enumerate(zip(runs, settings, strict=True), 1):
        cells = [str(number), *("" if row[key] is None else str(row[key]) for key in varied)]
        cells += [exponential(factor) for factor in end_to_end(run.reports[0])]
        if run.comparison:
            for rows in (run.comparison.forward, run.comparison.backward):
                summary = summarise(rows)
                cells += [_z(summary.largest_z), _percent(summary.worst)]
            cells.append(_percent(summarise([step.agreement for step in run.comparison.steps]).worst))
        table.add_row(*cells)
    return table


def _notes(run: Run) -> list[str]:
    said = [
        (node.name, note)
        for index, node in enumerate(run.network.nodes)
        for note in dict.fromkeys(note for report in run.reports for note in report.layers[index].notes)
    ]
    lines = [f"note: {line}" for line in _alike(said)]
    report = run.reports[-1]
    for word, moments in (("output", report.layers[-1].forward), ("gradient at the input", report.layers[0].backward)):
        spread = moments.log_second_moment_sd
        if spread is not None and spread > _HEAVY_TAIL:
            lines.append(
                f"note: the {word} spreads by e^±{spread:.1f} over draws: rare draws carry its mean, and se misses "
                "them; compare means of logs"
            )
    return lines


def _alike(said: Sequence[tuple[str, str]]) -> list[str]:
    """Return sentences about layers as lines; of those that differ in numbers alone the first and the last."""
    groups: dict[str, list[str]] = {}
    for layer, sentence in said:
        groups.setdefault(_NUMBER.sub("#", sentence), []).append(f"{layer}: {sentence}")
    lines = []
    for first, *more in groups.values():
        lines.append(first)
        if more:
            lines.append(f"likewise {len(more)} more, to {more[-1]}" if len(more) > 1 else more[0])
    return lines


def _closing(run: Run) -> list[str]:
    lines = []
    for name, report in (("theory", run.theory), ("Monte Carlo", run.monte_carlo), ("torch", run.torch)):
        if report:
            forward, backward = end_to_end(report)
            lines.append(
                f"{name}, end to end: q x {exponential(forward)} forward, g x {exponential(backward)} backward"
            )
            lines += _sampling(name, run, report)
            unseen = sum(layer.weightless for layer in report.layers)
            if unseen:
                weighted = len(weighted_layers(report))
                lines.append(f"{name}: the weights of {unseen} of {weighted} layers acted without being drawn")
    for name, comparison in (("Monte Carlo", run.comparison), ("torch", run.torch_comparison)):
        if comparison:
            lines += _agreement(name, comparison)
    return lines + _ends(run) + _profiles(run)


def _profiles(run: Run) -> list[str]:
    """Corner, middle of the upper edge and middle of each weighted layer's map, over its average."""
    lines = []
    for node, layer in zip(run.network.nodes, run.theory.layers if run.theory else (), strict=False):
        said = []
        for symbol, moments in (("q", layer.forward), ("g", layer.backward)):
            if node.fan_in is not None and moments.profile is not None:
                rows, columns = len(moments.profile), len(moments.profile[0])
                places = ((0, 0), (0, columns // 2), (rows // 2, columns // 2))
                said.append(f"{symbol} " + ", ".join(f"{moments.profile[i][j]:.3g}" for i, j in places))
        if said:
            lines.append(f"profile: {node.name}: corner, edge and middle over the average: {'; '.join(said)}")
    return lines


def _ends(run: Run) -> list[str]:
    lines = []
    for end in ends(run.reports, run.settings.below, run.settings.above):
        what = "q of the output" if end.direction == "forward" else f"g at {end.layer}"
        known = {engine: "not known" if share is None else f"{share:.3g}" for engine, share in end.share.items()}
        shares = ", ".join(f"{share} ({engine})" for engine, share in known.items())
        lines.append(f"share of draws with {what} {end.side} {end.threshold:g}: {shares}")
    return lines


def _sampling(name: str, run: Run, report: Report) -> list[str]:
    """Say what the standard errors came to where that was asked for, or where a run was cut short."""
    error, asked = report.settings.get("relative_error"), run.settings.precision
    if report is not run.monte_carlo or not isinstance(error, float) or (asked is None and not run.interrupted):
        return []
    ending = "interrupted after " if run.interrupted else ""
    wish = "" if asked is None else f" ({asked:.3g} asked for: {'reached' if error <= asked else 'NOT reached'})"
    return [f"{name}: {ending}{report.settings['trials']} trials; largest standard error of a layer {error:.3g}{wish}"]


def _agreement(name: str, comparison: Comparison) -> list[str]:
    steps = summarise([step.agreement for step in comparison.steps])
    failed, compared = comparison.failures
    verdict = "agree" if comparison.agrees else "DISAGREE"
    return [
        f"forward:  {_sentence(summarise(comparison.forward))}",
        f"backward: {_sentence(summarise(comparison.backward))}",
        f"backward, from each weighted layer to the one before it: {_differences(steps)}; "
        f"accumulated over all of them {_percent(comparison.accumulated)}",
        f"theory and {name} {verdict}: {failed} of {compared} comparisons beyond |z| = {BEYOND:g} and also beyond "
        f"{FORWARD_ACCURACY:.0%} (forward q) or {STEP_ACCURACY:.0%} (backward step); {ALLOWED_FAILURES:.0%} may be",
    ]


def _sentence(summary: Summary) -> str:
    largest = _z(summary.largest_z).lstrip("-") or "-"
    beyond = f"{summary.beyond} of {summary.compared} beyond {BEYOND:g}"
    return f"largest |z| {largest}, {beyond}; {_differences(summary)}"


def _differences(summary: Summary) -> str:
    middle = _percent(summary.median).lstrip("+")
    return f"relative difference median {middle}, worst {_percent(summary.worst)}"


def _moment(moments: Moments) -> str:
    text = exponential(moments.log_second_moment)
    if moments.standard_error is None:
        return text
    if not 0 < moments.second_moment < math.inf or not math.isfinite(moments.standard_error):
        return text
    return f"{text} ±{_share(moments.standard_error / moments.second_moment)}"


def _share(ratio: float) -> str:
    percent = 100 * ratio
    return f"{percent:.0f}%" if percent >= 9.5 else f"{percent:.1f}%" if percent >= 0.095 else "<.1%"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:+.2g}%" if abs(ratio) < 0.095 else f"{100 * ratio:+.0f}%"


def _z(z: float | None) -> str:
    if z is None:
        return ""
    return f"{z:.1f}" if abs(z) < 1000 else f"{z:.0e}"
