"""JSON, CSV and tables from runs made by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os

import pytest

from varprop.simulator.errors import UserError
from varprop.simulator.export import flat, layers_data, settings_data, to_csv, to_json
from varprop.simulator.files import require_writable, write_whole
from varprop.simulator.propagate import Run, Settings
from varprop.simulator.table import to_table

LOGS = [0.0, math.log(2), -1000.0, 1000.0, -math.inf]


@pytest.fixture
def run(chain, make_report) -> Run:
    """Four layers: ordinary, too small for a float, too large for one, and exactly zero."""
    network = chain(4)
    backward = [0.5, 0.4, 0.3, 0.2, 0.1]
    return Run(
        Settings("chain"), network, make_report(network, LOGS, backward), make_report(network, LOGS, backward, 0.01)
    )


def test_schema(run) -> None:
    data = json.loads(to_json([run]))
    assert data["schema"] == "varprop.propagate/1"
    assert set(data) == {"schema", "network", "settings", "layers", "summary"}
    layer = data["layers"][1]
    assert (layer["index"], layer["name"], layer["kind"], layer["output_shape"]) == (1, "linear1", "linear", [4])
    assert (layer["fan_in"], layer["fan_out"], layer["framework_fan_in"], layer["framework_fan_out"]) == (4, 4, 4, 4)
    assert layer["weight_variance"] == pytest.approx(2 / 4)
    theory = {"mean", "second_moment", "variance", "log_second_moment_mean", "log_second_moment_sd"}
    for direction in ("forward", "backward"):
        assert set(layer[direction]) == {"theory", "monte_carlo", "z"}
        assert theory <= set(layer[direction]["theory"])
        assert theory | {"standard_error", "trials"} <= set(layer[direction]["monte_carlo"])
    assert layer["forward"]["z"] == 0


def test_numbers_beyond_floats_are_null_and_their_logs_stay(run) -> None:
    for engine in ("theory", "monte_carlo"):
        forward = [layer["forward"][engine] for layer in json.loads(to_json([run]))["layers"]]
        assert [row["second_moment"] for row in forward] == [1.0, pytest.approx(2.0), None, None, 0.0]
        assert [row["log_second_moment"] for row in forward] == [0.0, math.log(2), -1000.0, 1000.0, None]


def test_several_runs_are_a_comparison(run) -> None:
    data = json.loads(to_json([run, run]))
    assert data["schema"] == "varprop.compare/1"
    assert data["runs"] == [json.loads(to_json([run]))] * 2
    assert data["differences"] == []


def test_missing_engine_is_null(run) -> None:
    layer = json.loads(to_json([Run(run.settings, run.network, run.theory, None)]))["layers"][0]
    assert layer["forward"]["monte_carlo"] is None
    assert layer["forward"]["z"] is None


def test_csv_holds_what_json_holds(run) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([run, run]))))
    expected = [{"run": number, **settings_data(run), **flat(layer)} for number in (0, 1) for layer in layers_data(run)]
    assert len(rows) == len(expected) == 10
    for row, data in zip(rows, expected, strict=True):
        del data["engines"]
        assert set(row) == set(data)
        for key, value in data.items():
            assert row[key] == ("" if value is None else str(value))
    assert float(rows[1]["forward_theory_second_moment"]) == math.exp(math.log(2))  # every digit


def test_table_has_every_layer_and_numbers_no_float_can_hold(run) -> None:
    text = to_table([run])
    assert "\x1b" not in text
    rows = {words[1]: words for words in map(str.split, text.splitlines()) if len(words) > 1 and words[0].isdigit()}
    assert list(rows) == [node.name for node in run.network.nodes]
    assert "5.08e-435" in rows["linear2"]  # exp(-1000)
    assert "1.97e+434" in rows["linear3"]
    assert "agree" in text
    assert all(len(line) <= 180 for line in text.splitlines())


def test_side_by_side_table_has_every_layer_of_the_deepest(run, chain, make_report) -> None:
    short = Run(Settings("chain", depth=1), chain(1), make_report(chain(1), [0, 0], [0, 0]), None)
    text = to_table([short, run])
    assert all(node.name in text for node in run.network.nodes)
    assert "1 against 2: linear2: layer none against linear" in text
    parts = json.loads(to_json([short, run]))["differences"]
    assert {"runs": [0, 1], "layer": "linear2", "what": "layer", "values": ["none", "linear"], "reason": ""} in parts


def test_files_are_whole_or_not_there(tmp_path) -> None:
    path = tmp_path / "out.json"
    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_pipes_are_written_to_and_links_followed(tmp_path) -> None:
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    link.symlink_to(file.name)
    write_whole(link, "text")
    assert link.is_symlink()
    assert file.read_text() == "text"


@pytest.mark.parametrize("name", ["missing/out.json", "."])
def test_what_cannot_be_written_is_refused(tmp_path, name) -> None:
    with pytest.raises(UserError):
        require_writable(tmp_path / name)
