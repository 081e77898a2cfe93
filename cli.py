"""The command line: parse, call one function, print.

Every import of numbers, symbols or pictures is inside a command, so that help and mistakes answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.option_values import read_integers, read_reals, read_share, read_words

app = typer.Typer(
    name="varprop",
    help="What happens to signal and gradient, layer by layer, before training: theory beside Monte Carlo.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DISAGREEMENT = 3
INTERRUPTED = 130
_AXES = ("framework", "init", "activation", "norm", "input", "depth", "width", "size", "batch", "seed")
_NUMERIC = ("depth", "width", "size", "batch", "seed")


class Format(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    csv = "csv"


Values = Annotated[list[str] | None, typer.Option(help="one value, several with commas, or the option repeated")]
FormatOption = Annotated[Format, typer.Option("--format", help="how the data is printed")]
Out = Annotated[Path | None, typer.Option(help="write the data to this file, not to stdout", metavar="FILE")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress and no warnings on stderr")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="networks, initializers, activations, experiments, figures or topics; default all"),
    ] = None,
    format: FormatOption = Format.table,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """List the networks, initializers, activations, experiments, figures and topics there are."""
    _check_out(out)
    from varprop.derivations import TOPICS
    from varprop.figures.gallery import NAMES as FIGURES
    from varprop.simulator.activations import NAMES as ACTIVATIONS
    from varprop.simulator.architectures import NAMES as NETWORKS
    from varprop.simulator.experiments import NAMES as EXPERIMENTS
    from varprop.simulator.export import table_csv
    from varprop.simulator.initializers import NAMES as INITIALIZERS
    from varprop.simulator.table import names_table

    kinds = {
        "networks": NETWORKS,
        "initializers": INITIALIZERS,
        "activations": ACTIVATIONS,
        "experiments": EXPERIMENTS,
        "figures": FIGURES,
        "topics": TOPICS,
    }
    if kind is not None and kind not in kinds:
        raise did_you_mean("list", kind, list(kinds))
    chosen = kinds if kind is None else {kind: kinds[kind]}
    if format is Format.table:
        text = "\n".join(names_table(name, names) for name, names in chosen.items())
    elif format is Format.csv:
        text = table_csv(
            [{"kind": k, "name": n, "description": d} for k, names in chosen.items() for n, d in names.items()]
        )
    else:
        text = _json({k: [{"name": n, "description": d} for n, d in names.items()] for k, names in chosen.items()})
    _deliver(text, out)


@app.command()
def propagate(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="a name from `varprop list networks`, or a .toml file")],
    depth: Values = None,
    width: Values = None,
    activation: Values = None,
    init: Values = None,
    framework: Values = None,
    norm: Values = None,
    input: Values = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of the CIFAR-10 binary files", metavar="DIR")] = None,
    size: Values = None,
    batch: Values = None,
    trials: Annotated[
        int | None, typer.Option(help="weight draws of the Monte Carlo, 100; with --precision the most, 100000")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="draw until every layer's standard error is below this, e.g. 1%", metavar="SHARE")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="theory, monte-carlo, torch; default the first two")] = None,
    below: Annotated[float | None, typer.Option(help="share of draws whose second moments end below this")] = None,
    above: Annotated[float | None, typer.Option(help="share of draws whose second moments end above this")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="theory at every position of the maps; --plot draws them as maps")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="exit with 3 where theory and Monte Carlo disagree")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="draw a .png, .pdf or .svg, its data beside it", metavar="FILE")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="of the Monte Carlo; the result is the same", min=1)] = None,
    seed: Annotated[int, typer.Option(help="of the batch and of the weight draws")] = 0,
    format: FormatOption = Format.table,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict and simulate second moments of every layer, forward and backward."""
    _check_out(out)
    if plot is not None:
        from varprop.figures.save import companions

        drawn = {file.resolve() for file in companions(plot)}
        if out is not None and out.resolve() in drawn:
            raise UserError("--out", out, "another file than those of --plot")
    from contextlib import nullcontext

    from varprop.simulator import propagate as main_job
    from varprop.simulator.progress import announce_compilation, progress_bar

    given = _axes(context.params)
    engines = tuple(dict.fromkeys(read_words("--engine", engine))) or main_job.DEFAULT_ENGINES
    if check and not set(engines) >= set(main_job.DEFAULT_ENGINES):
        raise UserError("--check", f"--engine {','.join(engines)}", "theory and monte-carlo, to compare")
    share = None if precision is None else read_share("--precision", precision)
    if share is not None and "monte-carlo" not in engines:
        raise UserError("--precision", f"--engine {','.join(engines)}", "monte-carlo among the engines")
    most = 100 if share is None else 100_000
    if profile and plot is not None and any(len(values) > 1 for values in given.values()):
        raise UserError("--profile", "several networks and --plot", "one network, whose maps fill the figure")
    problems = [
        main_job.prepare(
            main_job.Settings(
                network,
                trials=most if trials is None else trials,
                precision=share,
                seed=seed,
                below=below,
                above=above,
                profile=profile,
                engines=engines,
                **dict(zip(given, point, strict=True)),
            ),
            data_dir,
        )
        for point in product(*given.values())
    ]
    if profile and plot is not None:
        from varprop.figures.profile import require_maps

        require_maps(problems[0].network)
    runs = []
    for problem in problems:
        # Watching for compilation imports the compiler, which theory does without.
        watch = announce_compilation(quiet) if "monte-carlo" in problem.settings.engines else nullcontext()
        with watch, progress_bar(quiet, problem.network.name) as progress:
            runs.append(main_job.propagate(problem, threads, progress, keep_interrupted=True))
        if runs[-1].interrupted:
            print(f"interrupted: {len(runs)} of {len(problems)} runs, the last one in part", file=sys.stderr)
            break
    if format is Format.table:
        from varprop.simulator.table import to_table

        text = to_table(runs, terminal=out is None and sys.stdout.isatty())
    else:
        from varprop.simulator.export import to_csv, to_json

        text = to_json(runs) if format is Format.json else to_csv(runs)
    if plot is not None:
        command = ["varprop", *context.obj]
        if profile:
            from varprop.figures.profile import save_profile

            save_profile(plot, runs[0], command)
        else:
            from varprop.figures.propagation import save_propagation

            save_propagation(plot, runs, command)
    _deliver(text, out)
    if runs[-1].interrupted:
        raise typer.Exit(INTERRUPTED)
    if check and not all(comparison.agrees for run in runs for comparison in run.comparisons):
        raise typer.Exit(DISAGREEMENT)


@app.command()
def sweep(
    context: typer.Context,
    networks: Annotated[list[str], typer.Argument(help="names from `varprop list networks`, or .toml files")],
    depth: Values = None,
    width: Values = None,
    activation: Values = None,
    init: Values = None,
    framework: Values = None,
    norm: Values = None,
    input: Values = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of the CIFAR-10 binary files", metavar="DIR")] = None,
    size: Values = None,
    batch: Values = None,
    trials: Annotated[int | None, typer.Option(help="Monte Carlo beside theory: weight draws a point")] = None,
    seed: Annotated[list[str] | None, typer.Option(help="of batch, weights and training; several as above")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="train every point on CIFAR-10, too, as varprop train does")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="with --train; default 10")] = None,
    steps: Annotated[int | None, typer.Option(help="with --train: stop after so many steps")] = None,
    lr: Annotated[float | None, typer.Option(help="with --train: learning rate; default 0.1")] = None,
    momentum: Annotated[float | None, typer.Option(help="with --train; default 0")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="with --train; default 0")] = None,
    l2: Annotated[float | None, typer.Option("--l2", help="with --train: Keras's, of every kernel; default 0")] = None,
    subset: Annotated[int | None, typer.Option(help="with --train: on so many images")] = None,
    device: Annotated[str | None, typer.Option(help="with --train: auto, cpu, cuda, cuda:1 ...")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="also a table of all layers; needs --out")] = False,
    table_format: Annotated[str, typer.Option(help="of the tables in --out: csv or parquet")] = "csv",
    workers: Annotated[int | None, typer.Option(help="points at a time, a core each; default all", min=1)] = None,
    scheduler: Annotated[str | None, typer.Option(help="tcp://HOST:PORT of a Dask scheduler, or slurm")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say how many points, and about how long")] = False,
    format: FormatOption = Format.table,
    out: Annotated[Path | None, typer.Option(help="folder of the tables and of what is kept", metavar="DIR")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every combination of settings, numbers also as 10:50:10 or 1:1000:log20; again, it goes on after a crash."""
    if out is not None and not dry_run:
        from varprop.simulator.files import make_folder

        make_folder(out)
    from varprop.simulator.export import table_csv
    from varprop.simulator.progress import progress_bar
    from varprop.simulator.sweep.executors import cores
    from varprop.simulator.sweep.points import points as combinations
    from varprop.simulator.sweep.run import sweep as run
    from varprop.simulator.sweep.store import Store
    from varprop.simulator.sweep.tables import FORMATS, layer_rows, require_format, summary_rows, write_table
    from varprop.simulator.sweep.training import Training

    if table_format not in FORMATS:
        raise did_you_mean("--table-format", table_format, list(FORMATS))
    require_format(table_format)
    if layers and out is None:
        raise UserError("--layers", "no --out", "a folder for the table")
    given = _axes(context.params)
    how = {name: context.params[name] for name in Training.__dataclass_fields__}
    _refuse_without("--train", train, how)
    points = combinations(
        read_words("network", networks),
        given,
        trials=trials,
        data_dir=data_dir,
        layers=layers,
        training=Training(**{name: value for name, value in how.items() if value is not None}) if train else None,
    )
    store = None if out is None or (dry_run and not (out / "store").is_dir()) else Store(out / "store")
    count = min(workers or cores(), len(points))
    if dry_run:
        from varprop.simulator.sweep.cost import estimate

        left = [point for point in points if store is None or store.get(point.key) is None]
        seconds = estimate(left, count) if left else 0.0
        if format is Format.json:
            print(_json({"points": len(points), "kept": len(points) - len(left), "workers": count, "seconds": seconds}))
        else:
            kept = len(points) - len(left)
            print(f"{len(points):,} points, {kept:,} kept; about {seconds:.0f} s for the rest, {count} at a time")
        return
    with progress_bar(quiet, "sweep", "points") as progress:
        outcomes = run(
            points, store=store, scheduler=scheduler, workers=count, folder=out and out / "slurm", progress=progress
        )
    rows = summary_rows(points, outcomes)
    if out is None:
        from varprop.simulator.table import sweep_table

        if format is Format.table:
            text = sweep_table(rows)
        else:
            text = table_csv(rows) if format is Format.csv else _json({"schema": "varprop.sweep/1", "points": rows})
        _deliver(text, None)
    else:
        assert store is not None
        write_table(out / f"summary.{table_format}", rows)
        if layers:
            write_table(out / f"layers.{table_format}", layer_rows(points, store))
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in ("ok", "invalid", "failed")}
    if not quiet and (out is not None or len(points) > counts["ok"]):
        words = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
        why = "; the column message says why" if len(points) > counts["ok"] else ""
        where = f"; written to {out / f'summary.{table_format}'}" if out is not None else ""
        print(f"{len(points):,} points: {words}{why}{where}", file=sys.stderr)
    if counts["failed"]:
        raise typer.Exit(1)


@app.command()
def derive(
    topics: Annotated[list[str] | None, typer.Argument(help="names from `varprop list topics`")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every topic")] = False,
    format: Annotated[
        list[str] | None, typer.Option(help="latex, markdown, python, numba, c, json; default markdown")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="prove every step, print the outcome; 3 if one fails")] = False,
    expr: Annotated[
        str | None, typer.Option(help="derive an activation of one's own, like x*sigmoid(x)", metavar="FORMULA")
    ] = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Derive the recurrences symbolically: statements, reasons, results, references."""
    _check_out(out)
    from varprop.derivations import TOPICS
    from varprop.derivations.printing import FORMATS

    forms = read_words("--format", format) or ["markdown"]
    names = list(TOPICS) if all_ else list(dict.fromkeys(topics or []))
    for name in names:
        if name.partition("(")[0] not in TOPICS:
            raise did_you_mean("topic", name, list(TOPICS))
    for form in forms:
        if form not in FORMATS:
            raise did_you_mean("--format", form, list(FORMATS))
    if bool(topics) + all_ + (expr is not None) != 1:
        given = " ".join([*(topics or []), *["--all"] * all_, *["--expr"] * (expr is not None)])
        raise UserError("topic", given or "none", "names from varprop list topics, or --all, or --expr")
    if check and format:
        raise UserError("--check", f"--format {','.join(forms)}", "no --format: the outcome is printed a line a step")
    chosen = _theorems(names) if expr is None else [_derived(expr)]
    if check:
        from varprop.derivations.checking import check as outcomes

        found = [one for each in chosen for one in outcomes(each)]
        words = {True: "holds", False: "FAILS"}
        lines = (f"{one.topic}: {one.step}: {words[one.holds]} ({one.method}) {one.detail}" for one in found)
        _deliver("".join(line.rstrip() + "\n" for line in lines), out)
        if not all(one.holds for one in found):
            raise typer.Exit(DISAGREEMENT)
        return
    from varprop.derivations.printing import render

    _deliver("\n".join(render(chosen, form) for form in forms), out)


def _derived(text: str) -> Any:
    """Derive a formula: its tree goes to the derivations, its numbers come from the simulator."""
    from varprop.derivations.formula import expression, formula_derivation
    from varprop.derivations.search import search
    from varprop.simulator.activations import activation
    from varprop.simulator.gain import numbers_in_words

    function = activation(text)
    if function.formula is None:
        raise UserError("--expr", text, "a formula in x", f"use varprop derive {function.family}")
    return formula_derivation(function.name, search(expression(function.formula.term)), numbers_in_words(function))


def _theorems(topics: Sequence[str]) -> list[Any]:
    from varprop.derivations import derivation

    found = []
    for topic in topics:
        try:
            found.append(derivation(topic))
        except ValueError as error:
            raise UserError("topic", topic, str(error)) from None
    return found


@app.command()
def cite(
    names: Annotated[
        list[str] | None, typer.Argument(help="topics, networks, initializers, activations, commands; default all")
    ] = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Print BibTeX of the works that a part of varprop rests on."""
    _check_out(out)
    from varprop.derivations.citing import SUBJECTS, works
    from varprop.derivations.printing.bibtex import entry

    for name in names or ():
        if name not in SUBJECTS:
            raise did_you_mean("cite", name, list(SUBJECTS))
    _deliver("\n".join(map(entry, works(names or ()))), out)


@app.command()
def gain(
    activation: Annotated[
        str | None, typer.Argument(help="a name like leaky_relu(0.2), or a formula like x*sigmoid(x)")
    ] = None,
    q: Annotated[float | None, typer.Option("--q", help="variance of the input; default 1")] = None,
    closed_form: Annotated[
        bool, typer.Option("--closed-form", help="look for closed forms of a formula's moments, up to 20 s")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="every activation behind every initializer of both frameworks")
    ] = False,
    activations: Annotated[
        list[str] | None, typer.Option("--activation", help="of the table; several with commas")
    ] = None,
    init: Annotated[list[str] | None, typer.Option(help="of the table; several with commas")] = None,
    framework: Annotated[list[str] | None, typer.Option(help="of the table; several with commas")] = None,
    width: Annotated[int | None, typer.Option(help="of the table's layers; default 256")] = None,
    format: FormatOption = Format.table,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Moments of an activation under N(0, q), the gains that keep them, and fixed points."""
    _check_out(out)
    _refuse_without("--table", table, {"activation": activations, "init": init, "framework": framework, "width": width})
    from dataclasses import asdict

    if table:
        if q is not None or closed_form:
            raise UserError("--table", "--closed-form" if q is None else f"--q {q:g}", "options of a table")
        names = read_words("--activation", [*([activation] if activation else []), *(activations or [])])
        rules, frameworks = read_words("--init", init), read_words("--framework", framework)
        _deliver(_gain_rows(names, rules, frameworks, 256 if width is None else width, format), out)
        return
    if activation is None:
        raise UserError("gain", "no activation", "an activation, or --table and what restricts it")

    from varprop.simulator.activations import activation as function
    from varprop.simulator.export import flat, table_csv
    from varprop.simulator.gain import gain as gain_of
    from varprop.simulator.table import gain_table

    phi = function(activation)
    found = gain_of(phi, 1.0 if q is None else q)
    if closed_form and phi.formula is not None:
        from varprop.derivations.formula import expression
        from varprop.derivations.search import search

        found = found.with_forms(search(expression(phi.formula.term)).readable)
    if format is Format.table:
        text = gain_table(found)
    else:
        data = asdict(found)
        points = data.pop("fixed_points")
        text = table_csv([flat(data)]) if format is Format.csv else _json({**data, "fixed_points": points})
    _deliver(text, out)


@app.command()
def phase(
    activation: Annotated[str, typer.Argument(help="a name from `varprop list activations`, e.g. leaky_relu(0.2)")],
    sigma_w2: Annotated[list[str], typer.Option(help="weight variance times fan-in; 0.5:4:lin200 or 0.1:10:log50")],
    sigma_b2: Annotated[list[str] | None, typer.Option(help="bias variance, likewise; default 0")] = None,
    format: FormatOption = Format.table,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Mean field of a wide plain net: fixed points, chi, depth scales; of several values the phase diagram."""
    _check_out(out)
    from dataclasses import asdict

    from varprop.simulator.activations import activation as function
    from varprop.simulator.export import flat, table_csv
    from varprop.simulator.mean_field import diagram_rows, phase_diagram
    from varprop.simulator.mean_field import phase as phase_of
    from varprop.simulator.table import phase_diagram_table, phase_table

    weights, biases = read_reals("--sigma-w2", sigma_w2), read_reals("--sigma-b2", sigma_b2) or [0.0]
    if len(weights) == len(biases) == 1:
        found = phase_of(function(activation), weights[0], biases[0])
        data = asdict(found)
        if format is Format.table:
            text = phase_table(found)
        else:
            points = data.pop("fixed_points")
            text = table_csv([flat(data)]) if format is Format.csv else _json({**data, "fixed_points": points})
    else:
        rows = diagram_rows(phase_diagram(function(activation), weights, biases))
        if format is Format.table:
            text = phase_diagram_table(rows)
        else:
            text = table_csv(rows) if format is Format.csv else _json({"points": rows})
    _deliver(text, out)


@app.command()
def train(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="a name from `varprop list networks`, or a .toml file")],
    data_dir: Annotated[Path, typer.Option(help="folder of the CIFAR-10 binary files", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="folder for records and checkpoints", metavar="DIR")],
    framework: str | None = None,
    depth: int | None = None,
    width: int | None = None,
    activation: str | None = None,
    init: str | None = None,
    norm: str | None = None,
    size: Annotated[int | None, typer.Option(help="of the images, resized on the device")] = None,
    epochs: int = 10,
    steps: Annotated[int | None, typer.Option(help="stop after so many steps")] = None,
    lr: Annotated[float, typer.Option(help="learning rate")] = 0.1,
    momentum: float = 0.0,
    weight_decay: Annotated[float, typer.Option(help="times w in every parameter's gradient")] = 0.0,
    l2: Annotated[float, typer.Option("--l2", help="Keras's: loss term l2 sum w^2 of every kernel")] = 0.0,
    batch: int = 32,
    subset: Annotated[int | None, typer.Option(help="train on so many images")] = None,
    seed: Annotated[int, typer.Option(help="of the weights and of the data's order")] = 0,
    seeds: Annotated[int, typer.Option(help="number of runs, the seed counting up")] = 1,
    side_by_side: Annotated[int, typer.Option(help="runs that share the device step by step")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    bf16: Annotated[bool, typer.Option("--bf16", help="layers in bfloat16, weights in float32")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="memory format of the maps")] = False,
    graph: Annotated[bool, typer.Option(help="on CUDA, replay a step as one graph")] = True,
    record: Annotated[list[str] | None, typer.Option(help="steps at which every layer is recorded")] = None,
    watch: Annotated[str | None, typer.Option(help="layer whose first ten weights are recorded")] = None,
    check_start: Annotated[bool, typer.Option("--check-start", help="hold the first step against theory")] = False,
    format: FormatOption = Format.table,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a network on CIFAR-10 by plain SGD; the same command continues what was broken off."""
    from varprop.simulator.torch_backend import require_torch

    require_torch()
    from varprop.simulator.experiments import NAMES as EXPERIMENTS
    from varprop.simulator.progress import progress_bar
    from varprop.simulator.propagate import Settings, build_network
    from varprop.simulator.provenance import provenance
    from varprop.simulator.theory.engine import check_theory
    from varprop.simulator.torch_backend import seeds as many
    from varprop.simulator.torch_backend import summary
    from varprop.simulator.torch_backend.data import cifar10_data
    from varprop.simulator.torch_backend.training import TrainingSettings

    if network in EXPERIMENTS:
        raise UserError("network", network, "a network, not an experiment", f"use varprop experiment {network} --train")
    chosen = Settings(network, framework, depth, width, activation, init, norm, input="cifar10", size=size)
    settings = TrainingSettings(
        network=build_network(chosen),
        epochs=epochs,
        steps=steps,
        learning_rate=lr,
        momentum=momentum,
        batch=batch,
        weight_decay=weight_decay,
        l2=l2,
        seed=seed,
        precision="bfloat16" if bf16 else "float32",
        channels_last=channels_last,
        record_steps=tuple(read_integers("--record", record)),
        watch=watch,
    )
    if check_start:
        check_theory(settings.network)
    images = cifar10_data(data_dir, subset)
    job = many.plan(settings, seeds, images, out, device=device, use_graph=graph, side_by_side=side_by_side)
    written = {**settings.describe(), "nodes": len(settings.network), "seeds": list(range(seed, seed + seeds))}
    many.write_provenance(job, provenance(["varprop", *context.obj], written, "torch"))
    with progress_bar(quiet, job.settings.network.name, "steps") as progress:
        found = many.train_seeds(job, progress, None if quiet else lambda line: print(line, file=sys.stderr))
    if check_start:
        many.check_start(job, found)
    if format is Format.table:
        text = summary.to_table(found)
    else:
        text = summary.to_json(written, found) if format is Format.json else summary.to_csv(found)
    _deliver(text, None)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="cifar10")],
    data_dir: Annotated[Path, typer.Option(help="where its folder goes", metavar="DIR")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a data set, check and unpack it; prints the folder. Broken off, it goes on where it stopped."""
    from varprop.simulator.download import fetch_cifar10
    from varprop.simulator.progress import progress_bar

    if name != "cifar10":
        raise did_you_mean("data", name, ["cifar10"])
    with progress_bar(quiet, "CIFAR-10", "MiB") as progress:
        folder = fetch_cifar10(data_dir, progress and (lambda done, total: progress(done >> 20, total >> 20)))
    print(folder)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="a name from `varprop list experiments`")],
    train: Annotated[bool, typer.Option("--train", help="train it too, in torch")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="with --train: smaller and shorter, minutes on a CPU")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="folder of the CIFAR-10 binary files", metavar="DIR")] = None,
    seeds: Annotated[int | None, typer.Option(help="trainings of each kind; default 3, quick 2")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    records: Annotated[
        Path | None, typer.Option(help="folder for the trainings' records; the same command goes on", metavar="DIR")
    ] = None,
    seed: Annotated[int, typer.Option(help="of batches, weight draws and trainings", min=0)] = 0,
    format: FormatOption = Format.table,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Explain a published experiment: predicted, simulated and trained, beside the published figures."""
    _check_out(out)
    from varprop.simulator import experiments
    from varprop.simulator.experiments.outcome import extended, outcome_csv, outcome_json, outcome_table
    from varprop.simulator.progress import announce_compilation, progress_bar

    experiments.check_name(name)
    trained_only = {"quick": quick or None, "data_dir": data_dir, "seeds": seeds, "records": records}
    _refuse_without("--train", train, trained_only)
    trained = None
    if train:
        from varprop.simulator.torch_backend import require_torch

        require_torch()
        from varprop.simulator.experiments.trained.runs import Options

        with progress_bar(quiet, name, "steps") as progress:
            trained = experiments.train(name, Options(data_dir, quick, seeds, seed, device, records, progress))
    with announce_compilation(quiet), progress_bar(quiet, name) as progress:
        outcome = experiments.predict(name, seed, progress)
    if trained is not None:
        outcome = extended(outcome, trained)
    printers = {Format.table: outcome_table, Format.json: outcome_json, Format.csv: outcome_csv}
    _deliver(printers[format](outcome), out)


@app.command()
def figure(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="from `varprop list figures`")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every figure")] = False,
    out: Annotated[Path, typer.Option(help="folder that gets the files", metavar="DIR")] = Path(),
    figure_format: Annotated[list[str] | None, typer.Option(help="pdf, svg, png, pgf; default pdf")] = None,
    width: Annotated[str, typer.Option(help="column (3.35 in) or page (6.9 in)")] = "page",
    seed: Annotated[int, typer.Option(help="of batches and weight draws", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw figures for a paper: NAME.pdf, its data in NAME.csv, what made it in NAME.json."""
    from varprop.figures.gallery import NAMES

    if bool(names) == all_:
        raise UserError(
            "figure", "--all and names" if names else "no name", "names from varprop list figures, or --all"
        )
    from varprop.figures.gallery.write import write_figures

    written = write_figures(
        list(NAMES) if all_ else list(dict.fromkeys(names or [])),
        out,
        formats=read_words("--figure-format", figure_format) or ["pdf"],
        width=width,
        seed=seed,
        command=["varprop", *context.obj],
        announce=(lambda line: None) if quiet else lambda line: print(line, file=sys.stderr, flush=True),
    )
    print("".join(f"{path}\n" for path in written), end="")


def _gain_rows(
    activations: Sequence[str], initializers: Sequence[str], frameworks: Sequence[str], width: int, format: Format
) -> str:
    from dataclasses import asdict

    from varprop.simulator.export import table_csv
    from varprop.simulator.gain_table import choices, gain_rows
    from varprop.simulator.table import gain_rows_table
    from varprop.simulator.tails import tail_rows

    rows = gain_rows(activations, initializers, frameworks, width)
    if format is Format.csv:
        return table_csv([asdict(row) for row in rows])
    chosen, tails = choices(rows), tail_rows()
    if format is Format.table:
        return gain_rows_table(rows, chosen, tails)
    return _json({"rows": [asdict(r) for r in rows], "choices": [asdict(c) for c in chosen], "tails": tails})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user's mistake is one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Engines keep their matrix products on one thread each: a pool that nobody uses takes 20 ms of every start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return app(words or ["--help"], prog_name="varprop", standalone_mode=False, obj=words) or 0
    except UserError as error:
        return _fail(words, error, str(error), 2)
    except typer.exceptions.TyperException as error:
        context = getattr(error, "ctx", None)
        advice = f". See {context.command_path} --help" if context is not None else ""
        return _fail(words, error, error.format_message().rstrip(".") + advice, error.exit_code)
    except MemoryError as error:
        return _fail(words, error, "out of memory: lower --size, --batch or --width", 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _bug(words, error)
        where = f" at {error.filename}" if error.filename else ""
        return _fail(words, error, f"no space left on the disk{where}: free some and run the same command again", 2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _bug(words, error)


def _bug(words: Sequence[str], error: Exception) -> int:
    return _fail(words, error, f"{type(error).__name__}: {error}; this is a bug of varprop; --debug shows where", 1)


def _fail(words: Sequence[str], error: Exception, message: str, code: int) -> int:
    if "--debug" in words:
        import traceback

        traceback.print_exception(error)
    print(f"varprop: {' '.join(message.split())}", file=sys.stderr)
    return code


def _axes(options: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Read the options that take several values; those that were not given are left out."""
    axes: dict[str, Sequence[Any]] = {
        name: (read_integers if name in _NUMERIC else read_words)(f"--{name}", options[name])
        for name in _AXES
        if isinstance(options[name], (list, tuple))
    }
    return {name: values for name, values in axes.items() if values}


def _refuse_without(flag: str, given: bool, options: Mapping[str, object]) -> None:
    """Refuse options that mean something with a flag only."""
    for name, value in options.items():
        if value is not None and not given:
            got = ",".join(value) if isinstance(value, list) else value
            raise UserError(f"--{name.replace('_', '-')}", got, f"no such option without {flag}", f"add {flag}")


def _check_out(out: Path | None) -> None:
    if out is not None:
        from varprop.simulator.files import require_writable

        require_writable(out)


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        from varprop.simulator.files import write_whole

        write_whole(out, text)


def _json(data: object) -> str:
    from varprop.simulator.strict_json import indented

    return indented(data)
