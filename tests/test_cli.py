"""The command line: data on stdout, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import csv
import errno
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from varprop.cli import main
from varprop.simulator.option_values import read_words

TINY = ["propagate", "mlp", "--depth", "2", "--width", "8", "--batch", "4", "--trials", "4"]
BAD_TOML = 'input_shape = [4]\n[[layers]]\ntype = "linear"\nfeatures_out = 3\n'
SHIFTED_TOML = 'input_shape = [4]\n[[layers]]\ntype = "linear"\nout_features = 3\nbias = "constant(3)"\n'

MISTAKES = {
    "no such command": ["propagat", "mlp"],
    "no such option": ["propagate", "mlp", "--detph", "3"],
    "no network": ["propagate"],
    "two networks": ["propagate", "mlp", "vgg"],
    "unknown network": ["propagate", "mobilenet"],
    "unknown initializer": ["propagate", "mlp", "--init", "he_norml"],
    "initializer with NaN": ["propagate", "mlp", "--init", "normal(nan)"],
    "initializer with a negative deviation": ["propagate", "mlp", "--init", "normal(-1)"],
    "initializer that is code": ["propagate", "mlp", "--init", "__import__('os').getcwd()"],
    "unknown activation": ["propagate", "mlp", "--activation", "relu7"],
    "activation with NaN": ["propagate", "mlp", "--activation", "leaky_relu(nan)"],
    "unknown framework": ["propagate", "mlp", "--framework", "jax"],
    "unknown norm": ["propagate", "mlp", "--norm", "layer"],
    "unknown input": ["propagate", "mlp", "--input", "imagenet"],
    "unknown engine": ["propagate", "mlp", "--engine", "thoery"],
    "unknown format": ["propagate", "mlp", "--format", "xml"],
    "negative depth": ["propagate", "mlp", "--depth=-3"],
    "zero depth": ["propagate", "mlp", "--depth", "0"],
    "absurd depth": ["propagate", "mlp", "--depth", "999999999"],
    "depth that is no whole number": ["propagate", "mlp", "--depth", "2.5"],
    "depth that is NaN": ["propagate", "mlp", "--depth", "nan"],
    "zero width": ["propagate", "mlp", "--width", "0"],
    "absurd width": ["propagate", "mlp", "--width", "99999999"],
    "width where there is none": ["propagate", "vgg", "--width", "8"],
    "zero size": ["propagate", "vgg", "--size", "0"],
    "size that no longer fits": ["propagate", "vgg", "--size", "8"],
    "absurd size": ["propagate", "vgg", "--size", "1000000"],
    "zero batch": ["propagate", "mlp", "--batch", "0"],
    "absurd batch": ["propagate", "mlp", "--batch", "999999999999"],
    "number of absurd length": ["propagate", "mlp", "--batch", "9" * 5000],
    "zero trials": ["propagate", "mlp", "--trials", "0"],
    "absurd trials": ["propagate", "mlp", "--trials", "99999999999"],
    "precision that is no number": ["propagate", "mlp", "--precision", "fine"],
    "precision of nothing": ["propagate", "mlp", "--precision", "0%"],
    "precision of everything": ["propagate", "mlp", "--precision", "100%"],
    "precision that is NaN": ["propagate", "mlp", "--precision", "nan"],
    "precision without Monte Carlo": ["propagate", "mlp", "--engine", "theory", "--precision", "1%"],
    "threshold of zero": ["propagate", "mlp", "--below", "0"],
    "threshold that is NaN": ["propagate", "mlp", "--above", "nan"],
    "profile without theory": ["propagate", "plain_conv", "--profile", "--engine", "monte-carlo"],
    "profile of several frameworks drawn": [*TINY, "--profile", "--framework", "torch,keras", "--plot", "maps.png"],
    "profile of a net without maps drawn": [*TINY, "--profile", "--plot", "maps.png"],
    "negative seed": ["propagate", "mlp", "--seed=-1"],
    "absurd seed": ["propagate", "mlp", "--seed", "9" * 30],
    "zero threads": ["propagate", "mlp", "--threads", "0"],
    "empty value": ["propagate", "mlp", "--depth", "1,,2"],
    "one bad value of several": ["propagate", "mlp", "--depth", "2,-1"],
    "cifar10 without a folder": ["propagate", "vgg", "--input", "cifar10"],
    "cifar10 in a missing folder": ["propagate", "vgg", "--input", "cifar10", "--data-dir", "missing"],
    "BN over one value": ["propagate", "mlp", "--norm", "batch", "--batch", "1"],
    "theory of BN over one value": ["propagate", "mlp", "--norm", "batch", "--batch", "1", "--engine", "theory"],
    "check without Monte Carlo": ["propagate", "mlp", "--engine", "theory", "--check"],
    "missing network file": ["propagate", "missing.toml"],
    "network file that is not TOML": ["propagate", "broken.toml"],
    "network file with an unknown key": ["propagate", "bad.toml"],
    "network file that is a folder": ["propagate", "folder.toml"],
    "option for a network file": ["propagate", "bad.toml", "--depth", "3"],
    "output in a missing folder": [*TINY, "--out", "missing/run.json"],
    "output that is a folder": [*TINY, "--out", "folder.toml"],
    "plot in a missing folder": [*TINY, "--plot", "missing/run.png"],
    "plot of no known format": [*TINY, "--plot", "run.jpeg"],
    "plot over the output": [*TINY, "--plot", "run.png", "--out", "run.csv"],
    "unknown list": ["list", "nets"],
    "no topic": ["derive"],
    "unknown topic": ["derive", "reluu"],
    "sizes of a topic that has none": ["derive", "relu(2)"],
    "sizes that do not fit": ["derive", "image_kernel(2x2,3x3)"],
    "sizes that are code": ["derive", "image_kernel(__import__('os'))"],
    "citing what is not there": ["cite", "mobilenet"],
    "citations to a missing folder": ["cite", "--out", "missing/works.bib"],
    "topic and all": ["derive", "relu", "--all"],
    "unknown derivation format": ["derive", "relu", "--format", "html"],
    "derivations to a missing folder": ["derive", "relu", "--out", "missing/relu.md"],
    "gain of nothing": ["gain"],
    "gain of one activation and a table's option": ["gain", "relu", "--init", "he_normal"],
    "gain of one activation at a table's width": ["gain", "relu", "--width", "3"],
    "gain table at a variance": ["gain", "--table", "relu", "--q", "3"],
    "weights with a mean, of the second network": ["propagate", "mlp", "--init", "he_normal,constant(0.1)"],
    "biases with a mean": ["propagate", "shifted.toml"],
    "gain table of an unknown initializer": ["gain", "--table", "--init", "he_nrmal"],
    "gain table of an unknown framework": ["gain", "--table", "--framework", "jax"],
    "gain table of an unknown activation": ["gain", "--table", "--activation", "rleu"],
    "gain table of weights that do not vary": ["gain", "--table", "--init", "zeros"],
    "gain table of no width": ["gain", "--table", "--width", "0"],
    "phase without a weight variance": ["phase", "tanh"],
    "phase of an unknown activation": ["phase", "tahn", "--sigma-w2", "1"],
    "phase of nothing that varies": ["phase", "0*x", "--sigma-w2", "1"],
    "phase at a negative weight variance": ["phase", "tanh", "--sigma-w2=-1"],
    "phase at a bias variance that is NaN": ["phase", "tanh", "--sigma-w2", "1", "--sigma-b2", "nan"],
    "phase at a weight variance of zero": ["phase", "tanh", "--sigma-w2", "0"],
    "phase over a range without spacing": ["phase", "tanh", "--sigma-w2", "1:2:3"],
    "phase over a range of absurd length": ["phase", "tanh", "--sigma-w2", "1:2:lin99999999999"],
    "phase over a logarithmic range from zero": ["phase", "tanh", "--sigma-w2", "0:2:log3"],
    "gain of an unknown activation": ["gain", "rleu"],
    "gain at a negative variance": ["gain", "relu", "--q=-1"],
    "gain at NaN": ["gain", "relu", "--q", "nan"],
    "gain at infinity": ["gain", "relu", "--q", "inf"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working folder with a few damaged files."""
    (tmp_path / "bad.toml").write_text(BAD_TOML)
    (tmp_path / "broken.toml").write_text("layers = [")
    (tmp_path / "shifted.toml").write_text(SHIFTED_TOML)
    (tmp_path / "folder.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(arguments, folder, capsys) -> None:
    before = sorted(folder.rglob("*"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("varprop: ")
    assert printed.err.count("\n") == 1
    assert "bug" not in printed.err
    assert sorted(folder.rglob("*")) == before


def test_all_networks_are_checked_before_the_first_is_run(monkeypatch) -> None:
    monkeypatch.setattr("varprop.simulator.propagate.propagate", lambda *given, **how: pytest.fail("run"))
    assert main(MISTAKES["weights with a mean, of the second network"]) == 2


def test_debug_shows_the_traceback(capsys) -> None:
    assert main(["gain", "rleu", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_the_users_matter_and_other_trouble_is_ours(monkeypatch, tmp_path, capsys) -> None:
    for number, code in ((errno.ENOSPC, 2), (errno.EIO, 1)):

        def fail(path: Path, content: str, number: int = number) -> None:
            raise OSError(number, "told by the system", str(path))

        monkeypatch.setattr("varprop.simulator.files.write_whole", fail)
        assert main(["gain", "relu", "--out", str(tmp_path / "gain")]) == code
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert ("no space left on the disk" in printed) == (code == 2)


def test_a_bug_of_ours_is_exit_code_1(monkeypatch, capsys) -> None:
    def broken(activation: object, q: float) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("varprop.simulator.gain.gain", broken)
    assert main(["gain", "relu"]) == 1
    assert capsys.readouterr().err == (
        "varprop: ZeroDivisionError: division by zero; this is a bug of varprop; --debug shows where\n"
    )


def test_interruption_is_exit_code_130(monkeypatch) -> None:
    def interrupted(activation: object, q: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("varprop.simulator.gain.gain", interrupted)
    assert main(["gain", "relu"]) == 130


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["a,b"], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        (["normal(0.1),kaiming_uniform(a=2, mode=fan_in)"], ["normal(0.1)", "kaiming_uniform(a=2, mode=fan_in)"]),
        ([" a , a "], ["a"]),
        (["a)b,c"], ["a)b", "c"]),
        (None, []),
    ],
)
def test_commas_split_but_not_inside_parentheses(texts, values) -> None:
    assert read_words("--init", texts) == values


@pytest.mark.parametrize("kind", ["networks", "initializers", "activations", "experiments", "figures", "topics"])
def test_list(kind, capsys) -> None:
    assert main(["list", kind, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data) == [kind]
    assert all(set(row) == {"name", "description"} for row in data[kind])
    names = [row["name"] for row in data[kind]]
    assert main(["list", kind]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    assert main(["list", kind, "--format", "csv"]) == 0
    assert [row["name"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == names


def test_propagate_prints_every_layer_in_every_format(capsys) -> None:
    assert main([*TINY, "--format", "json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["kind"] for layer in layers] == ["input", "linear", "activation", "linear"]
    assert all(layer["forward"]["theory"]["second_moment"] > 0 for layer in layers)
    assert all(layer["backward"]["monte_carlo"]["trials"] == 4 for layer in layers)
    assert main([*TINY, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row, layer in zip(rows, layers, strict=True):
        assert float(row["forward_theory_second_moment"]) == layer["forward"]["theory"]["second_moment"]
        assert float(row["backward_monte_carlo_mean"]) == layer["backward"]["monte_carlo"]["mean"]
    assert main(TINY) == 0
    table = capsys.readouterr().out
    assert all(layer["name"] in table for layer in layers)
    assert "\x1b" not in table


def test_seed_decides_and_threads_do_not(capsys) -> None:
    outputs = []
    for more in (["--seed", "1"], ["--seed", "1", "--threads", "2"], ["--seed", "2"]):
        assert main([*TINY, "--format", "csv", *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2].replace(",2,", ",1,")
    moments = [[row["forward_monte_carlo_second_moment"] for row in csv.DictReader(io.StringIO(o))] for o in outputs]
    assert moments[0] != moments[2]


def test_several_values_are_compared(capsys) -> None:
    several = [*TINY, "--init", "normal(0.1),he_normal", "--framework", "torch", "--framework", "keras"]
    assert main([*several, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "varprop.compare/1"
    points = [(run["settings"]["framework"], run["settings"]["init"]) for run in data["runs"]]
    assert points == [
        ("torch", "normal(0.1)"),
        ("torch", "he_normal"),
        ("keras", "normal(0.1)"),
        ("keras", "he_normal"),
    ]
    assert main(several) == 0
    assert "linear2" in capsys.readouterr().out


def test_one_engine_alone(capsys) -> None:
    for engine, other in (("theory", "monte_carlo"), ("monte-carlo", "theory")):
        assert main([*TINY, "--engine", engine, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["layers"][0]["forward"][other] is None


def test_share_of_draws_beyond_a_scale(capsys) -> None:
    command = [*TINY, "--below", "0.1", "--above", "10"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("share of draws") == 4
    assert main([*command, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["summary"]["ends"]
    assert [(end["direction"], end["side"], end["threshold"]) for end in found] == [
        (direction, side, scale)
        for direction in ("forward", "backward")
        for side, scale in (("below", 0.1), ("above", 10.0))
    ]
    assert all(0 <= share <= 1 for end in found for share in end["share"].values())


def test_out_and_plot(tmp_path, capsys) -> None:
    out, plot = tmp_path / "run.json", tmp_path / "figure.png"
    command = [*TINY, "--format", "json", "--out", str(out), "--plot", str(plot)]
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(out.read_text())["schema"] == "varprop.propagate/1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.csv", "figure.json", "figure.png", "run.json"]
    assert json.loads((tmp_path / "figure.json").read_text())["command"] == ["varprop", *command]


def test_precision_is_reached_and_told(capsys) -> None:
    assert main([*TINY[:-2], "--precision", "5%"]) == 0
    text = capsys.readouterr().out
    assert "(0.05 asked for: reached)" in text
    assert main([*TINY[:-2], "--precision", "0.05", "--trials", "40", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settings"]["precision"] == 0.05
    assert {layer["forward"]["monte_carlo"]["trials"] for layer in data["layers"]} == {40}
    assert not data["summary"]["interrupted"]


def test_an_interrupted_run_prints_what_it_has(monkeypatch, capsys) -> None:
    from varprop.simulator.montecarlo import schedule

    honest = schedule.run_trials

    def interrupted(plan, data, draws, pool):
        if draws.first >= 50:
            raise KeyboardInterrupt
        return honest(plan, data, draws, pool)

    monkeypatch.setattr(schedule, "run_trials", interrupted)
    command = [*TINY[:-1], "5000", "--threads", "1", "--width", "8,9"]
    assert main(command) == 130
    printed = capsys.readouterr()
    assert "Monte Carlo: interrupted after " in printed.out
    assert printed.err == "interrupted: 1 of 2 runs, the last one in part\n"


def test_check_fails_where_theory_is_wrong(monkeypatch, capsys) -> None:
    """Theory of another network's weights must not pass; the network's own must."""
    from varprop.simulator import theory
    from varprop.simulator.report import Report

    command = [*TINY[:2], "--depth", "2", "--width", "64", "--trials", "50", "--check"]
    assert main(command) == 0
    assert "agree" in capsys.readouterr().out
    honest = theory.predict

    def wrong(network: object, batch: object, **_: object) -> Report:
        from varprop.simulator.architectures import build
        from varprop.simulator.initializers import parse_initializer

        other = build("mlp", depth=2, width=64, init=parse_initializer("lecun_normal"))
        return Report("theory", network, honest(other, batch).layers)  # type: ignore[arg-type]

    monkeypatch.setattr(theory, "predict", wrong)
    assert main(command) == 3
    assert "DISAGREE" in capsys.readouterr().out


def test_network_file(tmp_path, capsys) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'input_shape = [6]\n[[layers]]\ntype = "linear"\nout_features = 5\n[[layers]]\ntype = "activation"\n'
        'function = "tanh"\n'
    )
    assert main(["propagate", str(file), "--trials", "3", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [layer["kind"] for layer in data["layers"]] == ["input", "linear", "activation"]


@pytest.mark.parametrize("form", ["latex", "markdown", "python", "numba", "c", "json"])
def test_derive(form, capsys) -> None:
    assert main(["derive", "relu", "--format", form]) == 0
    text = capsys.readouterr().out
    if form == "json":
        assert json.loads(text)["derivations"][0]["topic"] == "relu"
    if form in ("python", "numba"):
        assert "def second_moment(q)" in text
        compile(text, "relu.py", "exec")
    assert text.endswith("\n")


def test_derive_check(capsys) -> None:
    assert main(["derive", "linear", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(": holds (" in line for line in lines)


def test_derive_check_names_a_broken_step(monkeypatch, capsys) -> None:
    import sympy as sp

    from varprop import derivations

    honest = derivations.derivation

    def broken(topic: str) -> object:
        theorem = honest(topic)
        first, *rest = theorem.steps
        return replace(theorem, steps=(replace(first, equation=sp.Eq(sp.Symbol("x"), 2)), *rest))

    monkeypatch.setattr(derivations, "derivation", broken)
    name = honest("linear").steps[0].name
    assert main(["derive", "linear", "--check"]) == 3
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILS" in line]
    assert len(failed) == 1
    assert failed[0].startswith(f"linear: {name}: FAILS")


def test_cite_knows_every_name_and_every_command(capsys) -> None:
    from varprop.cli import app
    from varprop.derivations.citing import SUBJECTS
    from varprop.simulator import activations, architectures, initializers

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names = commands - {"list", "cite"} | {*activations.NAMES, *architectures.NAMES, *initializers.NAMES}
    assert names <= set(SUBJECTS)
    assert main(["cite", "batch_norm", "resnet"]) == 0
    printed = capsys.readouterr().out
    assert "@inproceedings{ioffe2015," in printed
    assert "@inproceedings{he2016," in printed
    assert printed.count("@") == printed.count("\n}\n")


def test_derive_takes_sizes(capsys) -> None:
    assert main(["derive", "image_kernel(1x3,1x2)", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["derivations"]
    equations = {step["name"]: step["equation"] for step in found["steps"]}
    assert equations["kernel_gradient_1_2"].endswith(" = delta[1, 1]*x[1, 2] + delta[1, 2]*x[1, 3]")


def test_commands_for_numbers_do_not_import_sympy() -> None:
    """It takes half a second."""
    code = (
        "import sys; from varprop.cli import main;"
        "codes = [main(words.split()) for words in ("
        "'list', 'gain relu --format json', 'propagate mlp --depth 1 --width 4 --batch 2 --trials 2 --quiet')];"
        "assert codes == [0, 0, 0]; assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_gain(capsys) -> None:
    assert main(["gain", "relu", "--q", "2", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    keys = {"activation", "q", "mean", "second_moment", "variance", "derivative_second_moment"}
    assert keys | {"gain_second_moment", "gain_variance", "closed_form", "method"} <= set(data)
    assert (data["q"], data["second_moment"], data["derivative_second_moment"]) == (2.0, 1.0, 0.5)
    assert main(["gain", "relu", "--q", "2", "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["mean"]) == data["mean"]
    assert main(["gain", "tanh"]) == 0
    assert "1.592537" in capsys.readouterr().out


def test_gain_table(capsys) -> None:
    command = ["gain", "--table", "--activation", "relu,tanh", "--init", "he_normal,lecun_normal"]
    assert main([*command, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["rows"]) == 2 * 2 * 2 * 2
    assert [one["initializers"] for one in data["choices"]] == [["he_normal"], ["lecun_normal"]]
    assert [row["fan"] for row in data["tails"]] == [9, 27, 256]
    assert main([*command, "--format", "csv", "--framework", "keras"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 8
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.count("torch keras dense conv3x3") == 4
    assert "relu: he_normal, chi 1" in text


def test_phase(capsys) -> None:
    command = ["phase", "tanh", "--sigma-w2", "2.5", "--sigma-b2", "0.05"]
    assert main([*command, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"q_star", "c_star", "chi", "xi_q", "xi_c", "critical_sigma_w2", "verdict"} <= set(data)
    assert main([*command, "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["xi_c"]) == data["xi_c"]
    assert main(command) == 0
    assert "11.7956" in (text := capsys.readouterr().out)
    assert "chaotic" in text
    assert main(["phase", "relu", "--sigma-w2", "2", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["q_star"], data["xi_q"], data["critical_sigma_w2"]) == (None, None, 2.0)


def test_phase_over_ranges(capsys) -> None:
    command = ["phase", "tanh", "--sigma-w2", "1:2.5:lin2,4", "--sigma-b2", "0.05:5:log3"]
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["sigma_w2"]) for row in rows] == [1.0] * 3 + [2.5] * 3 + [4.0] * 3
    assert [float(row["sigma_b2"]) for row in rows[:3]] == pytest.approx([0.05, 0.5, 5.0])
    assert float(rows[3]["xi_c"]) == pytest.approx(11.7956, abs=5e-3)
    assert main([*command, "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 9
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


@pytest.mark.parametrize("command", [[sys.executable, "-m", "varprop"], [str(Path(sys.executable).parent / "varprop")]])
def test_as_a_program(command) -> None:
    found = subprocess.run([*command, "gain", "rleu"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    found = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert all(name in found.stdout for name in ("list", "propagate", "derive", "gain", "phase"))
