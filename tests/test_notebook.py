"""What notebooks show of a report and of a gain: well-formed tables with every row, also beyond float range."""

from xml.etree import ElementTree

from varprop import build, load_batch, predict
from varprop.simulator.activations import activation
from varprop.simulator.gain import gain
from varprop.simulator.initializers import parse_initializer


def test_report_is_a_table_of_its_layers():
    network = build("mlp", depth=400, width=4, init=parse_initializer("normal(1e-3)"))
    report = predict(network, load_batch("gaussian", network.nodes[0].shape, batch=4, seed=0))
    table = ElementTree.fromstring(report._repr_html_())
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert [row[0] for row in rows[1:]] == [node.name for node in network.nodes]
    assert rows[-1][3].split("e-")[0].replace(".", "").isdigit()
    assert int(rows[-1][3].split("e-")[1]) > 400  # smaller than any float


def test_gain_is_a_table_of_its_moments():
    found = gain(activation("silu"), 2.0)
    cells = [[cell.text for cell in row] for row in ElementTree.fromstring(found._repr_html_()).iter("tr")]
    assert [f"{found.second_moment:.10g}" in row for row in cells].count(True) == 1
    assert len(cells) == 6 + len(found.fixed_points)
    assert "&lt;" in gain(activation("where(x < 0, x/10, x)"))._repr_html_()
