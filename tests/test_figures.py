"""Figures: what is drawn is the data, what is saved is complete and the same every time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from varprop.figures.propagation import MOST_LABELS, propagation, save_propagation
from varprop.figures.readme import Measured, accuracy_table, fill, in_band, measure
from varprop.simulator.errors import UserError
from varprop.simulator.propagate import Run, Settings
from varprop.simulator.report import LayerMoments, Moments, Report


@pytest.fixture
def run(chain, make_report):
    """A run of any number of layers, q falling and g rising by a factor of two a layer."""

    def build(layers: int, slope: float = math.log(2)) -> Run:
        network, steps = chain(layers), slope * np.arange(layers + 1)
        theory, sample = make_report(network, -steps, steps), make_report(network, -steps, steps, 0.1)
        return Run(Settings("chain", depth=layers), network, theory, sample)

    return build


def test_line_is_theory_and_bars_are_standard_errors(run) -> None:
    figure = propagation(run(4).reports)
    upper, lower = figure.axes
    np.testing.assert_allclose(upper.lines[0].get_ydata(), 2.0 ** -np.arange(5), rtol=1e-12)
    np.testing.assert_allclose(lower.lines[0].get_ydata(), 2.0 ** np.arange(5), rtol=1e-12)
    segments = upper.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([(s[0, 1] + s[1, 1]) / 2 for s in segments], 2.0 ** -np.arange(5), rtol=1e-12)
    np.testing.assert_allclose([(s[1, 1] - s[0, 1]) / 2 for s in segments], 0.1 * 2.0 ** -np.arange(5), rtol=1e-12)
    assert upper.get_yscale() == "log"


def test_band_is_that_of_most_draws_and_stops_where_it_is_not_known(chain) -> None:
    rows = [Moments(0.0, 1.0, 1.0, 0.0, mean, sd) for mean, sd in ((0.0, 0.0), (-0.1, 0.5), (None, None))]
    zero = Moments(0.0, 0.0, 0.0, -math.inf, None, None)
    layers = tuple(LayerMoments(row, zero) for row in rows)
    upper, lower = propagation([Report("theory", chain(2), layers)]).axes
    (band,) = upper.collections
    edges = np.concatenate([path.vertices for path in band.get_paths()])
    for quantile in (-1.2815515655, 1.2815515655):
        assert np.any(np.isclose(edges, [1, math.exp(-0.1 + 0.5 * quantile)]).all(axis=1))
    assert edges[:, 0].max() == 1
    assert len(lower.collections) == 0


@pytest.mark.parametrize(("sd", "named"), [(0.5, True), (0.01, False)])
def test_the_legend_names_a_band_that_can_be_seen(chain, sd, named) -> None:
    rows = [Moments(0.0, 1.0, 1.0, -step, -step, sd) for step in (0.0, 1.0, 2.0)]
    report = Report("theory", chain(2), tuple(LayerMoments(row, row) for row in rows))
    told = [text.get_text() for text in propagation([report]).legends[0].get_texts()]
    assert any("of draws" in text for text in told) == named


@pytest.mark.parametrize("layers", [1, 10, 60, 150, 1000])
def test_labels_fit_and_name_their_layers(run, layers) -> None:
    made = run(layers, slope=0.01)
    ticks = propagation(made.reports).axes[1].get_xticklabels()
    assert 0 < len(ticks) <= MOST_LABELS
    names = [node.name for node in made.network.nodes]
    assert [tick.get_text() for tick in ticks] == [names[int(tick.get_position()[0])] for tick in ticks]


def test_values_no_float_can_hold_are_drawn_as_logs(run) -> None:
    upper = propagation(run(3, slope=5000.0).reports).axes[0]
    assert upper.get_yscale() == "linear"
    np.testing.assert_allclose(upper.lines[0].get_ydata(), -5000 / math.log(10) * np.arange(4))


def test_saved_figure_has_table_and_provenance_and_repeats_bit_for_bit(run, tmp_path) -> None:
    for suffix in ("png", "pdf", "svg"):
        contents = []
        for folder in ("first", "second"):
            (tmp_path / folder).mkdir(exist_ok=True)
            save_propagation(tmp_path / folder / f"net.{suffix}", [run(3), run(2)], ["varprop", "propagate", "chain"])
            contents.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
        assert contents[0] == contents[1]
        assert {f"net.{suffix}", "net.csv", "net.json"} <= set(contents[0])
    provenance = json.loads(contents[0]["net.json"])
    assert provenance["command"] == ["varprop", "propagate", "chain"]
    assert [settings["depth"] for settings in provenance["settings"]] == [3, 2]
    assert provenance["versions"]["numpy"] == np.__version__
    assert b"/FontFile2" in contents[0]["net.pdf"]
    assert b"/Type3" not in contents[0]["net.pdf"]


@pytest.mark.parametrize("name", ["net.jpeg", "net", "missing/net.png"])
def test_bad_file_names_are_refused(run, tmp_path, name) -> None:
    with pytest.raises(UserError, match="--plot"):
        save_propagation(tmp_path / name, [run(1)], [])
    assert list(tmp_path.iterdir()) == []


def test_generated_blocks_of_the_readme_are_replaced_and_nothing_else_is() -> None:
    text = "before\n<!-- generated: a -->\nold\n<!-- end -->\nbetween\n<!-- generated: b -->\n<!-- end -->\n"
    filled = fill(fill(text, "a", r"new \1"), "b", "more")
    assert filled == text.replace("old", r"new \1").replace("b -->\n", "b -->\nmore\n")
    assert fill(filled, "a", r"new \1") == filled
    with pytest.raises(UserError):
        fill(text, "c", "new")


def test_accuracy_table_says_what_the_comparison_says(run) -> None:
    row = accuracy_table([Measured(run(3), np.zeros((2, 4)))]).splitlines()[2]
    assert row == ("| chain | torch |  | gaussian 4 | 0.00%, +0.00% | 0.00%, +0.00% | +0.00% | - | 10.00%, 10.00% |  |")


def test_accuracy_table_says_why_a_bound_is_missed(chain, make_report) -> None:
    network, steps = chain(3), np.arange(4.0)
    theory, sample = make_report(network, -steps, steps), make_report(network, -steps, 1.2 * steps, 1e-3)
    missed = Run(Settings("chain"), network, theory, sample)
    row = accuracy_table([Measured(missed, np.zeros((2, 4)))], ["a known reason"]).splitlines()[2]
    assert row.endswith("| step median, step worst, accumulated: a known reason |")


def test_draws_in_the_band_are_counted(chain) -> None:
    """Of normal logs four in five lie between the quantiles of their own law, of twice their spread fewer."""
    nothing = Moments(0.0, 0.0, 0.0, -math.inf, None, None)
    layers = [LayerMoments(Moments(0.0, 1.0, 1.0, 0.0, -0.1, sd), nothing) for sd in (0.0, 0.5, 0.5, 0.5)]
    theory = Report("theory", chain(3), tuple(layers))
    draws = np.random.default_rng(0).standard_normal((4000, 4)) * [0.0, 0.5, 0.5, 1.0] - 0.1
    assert in_band(theory, draws) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 4000))
    assert in_band(theory, draws[:, [0, 3, 3, 3]]) == pytest.approx(0.478, abs=4 * math.sqrt(0.25 / 4000))
    assert in_band(theory, np.zeros((2, 4))) is None


def test_what_the_readme_measures_is_what_the_comparison_says() -> None:
    found = measure(Settings("mlp", depth=2, width=16, batch=4, trials=8, init="he_normal"))
    assert found.logs.shape == (8, len(found.run.network))
    assert found.run.comparison is not None
    measured = found.run.monte_carlo.layers[2].forward
    assert measured.log_second_moment_mean == pytest.approx(found.logs[:, 2].mean(), rel=1e-12)
    assert accuracy_table([found]).splitlines()[2].startswith("| mlp | torch | he_normal |")
