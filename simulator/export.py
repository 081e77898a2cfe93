"""Runs as JSON and CSV.

The schemas are ``varprop.propagate/1`` (one run) and ``varprop.compare/1`` (several). Every number is finite or
null: a second moment that leaves float range is null while its log stays; an exact zero is 0 with a log of null.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from varprop.simulator.bands import BAND, ends, log_quantile
from varprop.simulator.compare import Agreement, Comparison, Summary, end_to_end, summarise
from varprop.simulator.differences import differences
from varprop.simulator.initializers import weight_law
from varprop.simulator.network import Node
from varprop.simulator.propagate import Run
from varprop.simulator.report import Moments, Report

Json = dict[str, object]


def to_json(runs: Sequence[Run]) -> str:
    """Return one run as ``varprop.propagate/1``, several as ``varprop.compare/1``."""
    bodies = [run_data(run) for run in runs]
    data: Json = bodies[0]
    if len(bodies) > 1:
        parted = [
            {
                "runs": [0, number],
                "layer": part.layer,
                "what": part.what,
                "values": list(part.values),
                "reason": part.reason,
            }
            for number, run in enumerate(runs)
            for part in differences(runs[0].network, run.network)
        ]
        data = {"schema": "varprop.compare/1", "runs": bodies, "differences": parted}
    return json.dumps(data, allow_nan=False) + "\n"  # no indent: it takes six times as long, and jq does it


def to_csv(runs: Sequence[Run]) -> str:
    """Return a tidy table: a row per run and layer, settings first, nested JSON keys joined by an underscore."""
    rows = []
    for number, run in enumerate(runs):
        settings = {key: value for key, value in settings_data(run).items() if not isinstance(value, list)}
        for layer in layers_data(run):
            rows.append({"run": number, **settings, **flat(layer)})
    return table_csv(rows)


def table_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as CSV with a header; None is an empty field and floats keep every digit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def run_data(run: Run) -> Json:
    """Return one run as plain lists, dictionaries, numbers and None."""
    return {
        "schema": "varprop.propagate/1",
        "network": {
            "name": run.network.name,
            "framework": run.network.framework,
            "input_shape": list(run.network.nodes[0].shape),
            "output_shape": list(run.network.nodes[-1].shape),
            "layers": len(run.network),
        },
        "settings": settings_data(run),
        "layers": layers_data(run),
        "summary": summary_data(run),
    }


def settings_data(run: Run) -> Json:
    """Return the settings of a run; null means the network's own default."""
    return {**asdict(run.settings), "engines": list(run.settings.engines)}


def layers_data(run: Run) -> list[Json]:
    """Return a dictionary per node, in the network's order."""
    rows = []
    for index, node in enumerate(run.network.nodes):
        rows.append(
            {
                "index": index,
                "name": node.name,
                "kind": node.kind,
                "output_shape": list(node.shape),
                **_fans(node, run),
                "forward": _direction(run, index, "forward"),
                "backward": _direction(run, index, "backward"),
                "weightless": None if run.monte_carlo is None else run.monte_carlo.layers[index].weightless,
                "notes": [note for report in run.reports for note in report.layers[index].notes],
            }
        )
    return rows


def summary_data(run: Run) -> Json:
    """Return what the whole network does to a signal and to a gradient, and how well the engines agree."""
    found: Json = {}
    for key, report in (("theory", run.theory), ("monte_carlo", run.monte_carlo)):
        found[key] = None if report is None else _factors(report)
    found["interrupted"] = run.interrupted
    found["agreement"] = None if run.comparison is None else _agreement(run.comparison)
    if run.torch is not None:
        found["torch"] = _factors(run.torch)
        found["torch_agreement"] = None if run.torch_comparison is None else _agreement(run.torch_comparison)
    if run.settings.below is not None or run.settings.above is not None:
        found["ends"] = [asdict(end) for end in ends(run.reports, run.settings.below, run.settings.above)]
    return found


def _fans(node: Node, run: Run) -> Json:
    if node.fan_in is None:
        names = ("fan_in", "fan_out", "framework_fan_in", "framework_fan_out", "weight_variance")
        return dict.fromkeys(names)
    law = weight_law(node, run.network.framework)
    return {
        "fan_in": node.fan_in,
        "fan_out": node.fan_out,
        "framework_fan_in": law.framework_fan_in,
        "framework_fan_out": law.framework_fan_out,
        "weight_variance": law.variance,
    }


def _direction(run: Run, index: int, direction: str) -> Json:
    found: Json = {}
    for key, report in (("theory", run.theory), ("monte_carlo", run.monte_carlo)):
        found[key] = None if report is None else _moments(getattr(report.layers[index], direction))
    found["z"] = None if run.comparison is None else _score(getattr(run.comparison, direction)[index])
    if run.torch is not None:
        found["torch"] = _moments(getattr(run.torch.layers[index], direction))
        compared = run.torch_comparison
        found["torch_z"] = None if compared is None else _score(getattr(compared, direction)[index])
    return found


def _moments(moments: Moments) -> Json:
    log = _finite(moments.log_second_moment)
    lost = log is not None and not 0 < moments.second_moment < math.inf
    found: Json = {
        "mean": None if lost else _finite(moments.mean),
        "second_moment": None if lost else _finite(moments.second_moment),
        "variance": None if lost else _finite(moments.variance),
        "log_second_moment": log,
        "log_second_moment_mean": _finite(moments.log_second_moment_mean),
        "log_second_moment_sd": _finite(moments.log_second_moment_sd),
    }
    if moments.profile is not None:
        found["profile"] = [list(row) for row in moments.profile]
    if moments.trials is None:
        for probability in BAND:
            quantile = log_quantile(moments, probability)
            found[f"second_moment_p{round(100 * probability)}"] = None if quantile is None else _exp(quantile)
    else:
        found["standard_error"] = None if lost else _finite(moments.standard_error)
        found["trials"] = moments.trials
    return found


def _factors(report: Report) -> Json:
    forward, backward = end_to_end(report)
    return {"log_forward_factor": _finite(forward), "log_backward_factor": _finite(backward)}


def _agreement(comparison: Comparison) -> Json:
    failed, compared = comparison.failures
    return {
        "agrees": comparison.agrees,
        "failed": failed,
        "compared": compared,
        "forward": _summary(summarise(comparison.forward)),
        "backward": _summary(summarise(comparison.backward)),
        "backward_step": _summary(summarise([step.agreement for step in comparison.steps])),
        "backward_accumulated": _finite(comparison.accumulated),
    }


def _summary(summary: Summary) -> Json:
    return dict(asdict(summary).items())


def _score(agreement: Agreement) -> float | None:
    return _finite(agreement.z)


def flat(data: Mapping[str, object], prefix: str = "") -> Json:
    """Join nested keys; a list is one field: a shape as 32x16x16, rows and sentences with semicolons between."""
    found: Json = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}_")
        elif isinstance(value, list):
            joined = [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value]
            found[prefix + key] = ("x" if key.endswith("shape") else "; ").join(joined)
        else:
            found[prefix + key] = value
    return found


def _exp(log: float) -> float | None:
    return math.exp(log) if -700 < log < 700 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
