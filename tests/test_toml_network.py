"""Networks from TOML files: every layer type, and messages for every kind of mistake."""

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.network import ZEROS, Conv2d, Initializer
from varprop.simulator.toml_network import load

ALL_TYPES = """
name = "everything"
framework = "keras"
input_shape = [4, 17, 17]

[[layers]]
type = "conv2d"
name = "first"
out_channels = 8
kernel = [3, 1]
stride = [2, 1]
padding = [1, 0, 0, 0]
groups = 2
init = "kaiming_uniform(a=2.236, mode=fan_out)"
bias = "zeros"

[[layers]]
type = "batch_norm"
eps = 1e-4
momentum = 0

[[layers]]
type = "activation"
name = "bend"
function = "leaky_relu(0.2)"

[[layers]]
type = "zero_pad"
padding = [1, 1, 1, 1]

[[layers]]
type = "depthwise_conv2d"
kernel = 3
padding = "valid"
multiplier = 1

[[layers]]
type = "add"
from = ["bend", "conv1"]

[[layers]]
type = "average_pool"
kernel = 2
stride = 1

[[layers]]
type = "max_pool"
kernel = 2

[[layers]]
type = "flatten"
name = "flat"

[[layers]]
type = "linear"
out_features = 8

[[layers]]
type = "global_average_pool"
name = "mean"
from = "bend"

[[layers]]
type = "add"
from = ["mean", "linear1"]
"""


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def test_every_layer_type(write):
    network = load(write(ALL_TYPES))
    assert (network.name, network.framework) == ("everything", "keras")
    assert [(node.name, node.kind, node.shape) for node in network.nodes] == [
        ("input", "input", (4, 17, 17)),
        ("first", "conv2d", (8, 8, 17)),
        ("bn1", "batch_norm", (8, 8, 17)),
        ("bend", "activation", (8, 8, 17)),
        ("pad1", "zero_pad", (8, 10, 19)),
        ("conv1", "depthwise_conv2d", (8, 8, 17)),
        ("add1", "add", (8, 8, 17)),
        ("avgpool1", "average_pool", (8, 7, 16)),
        ("maxpool1", "max_pool", (8, 3, 8)),
        ("flat", "flatten", (192,)),
        ("linear1", "linear", (8,)),
        ("mean", "global_average_pool", (8,)),
        ("add2", "add", (8,)),
    ]
    weight = Initializer("he_uniform", (("a", 2.236), ("mode", "fan_out")))
    assert network.nodes[1].operation == Conv2d(4, 8, (3, 1), (2, 1), (1, 0, 0, 0), 2, weight, ZEROS)
    assert (network.nodes[2].operation.eps, network.nodes[2].operation.momentum) == (1e-4, 0)
    assert network.nodes[3].operation.function == "leaky_relu(0.2)"
    assert network.nodes[10].operation.weight == Initializer("he_normal")
    assert [node.inputs for node in network.nodes[6:]] == [(3, 5), (6,), (7,), (8,), (9,), (3,), (11, 10)]


def test_framework_and_name_have_defaults_and_the_argument_wins(write):
    text = 'input_shape = [3, 8, 8]\n[[layers]]\ntype = "conv2d"\nout_channels = 4\nkernel = 3\nstride = 2\n'
    path = write(text)
    assert (load(path).name, load(path).framework) == ("mine", "torch")
    assert load(path).nodes[1].operation.padding == (1, 1, 1, 1)
    assert load(path, framework="keras").nodes[1].operation.padding == (0, 1, 0, 1)
    assert load(write('framework = "keras"\n' + text), framework="torch").framework == "torch"


def test_a_file_describes_the_same_network_as_the_architecture(write):
    layers = ["input_shape = [16]", 'name = "mlp"']
    for number in range(1, 4):
        layers.append(
            f'[[layers]]\ntype = "linear"\nname = "linear{number}"\nout_features = 16\ninit = "xavier_normal"'
        )
        if number < 3:
            layers.append(f'[[layers]]\ntype = "activation"\nname = "linear{number}.act"\nfunction = "tanh"')
    expected = build("mlp", depth=3, width=16, activation="tanh", init=Initializer("glorot_normal"))
    assert load(write("\n".join(layers))) == expected


HEAD = "input_shape = [4, 8, 8]\n"
CONV = '[[layers]]\ntype = "conv2d"\nout_channels = 4\nkernel = 3\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "input_shape: got nothing, expected a value. Add the key"),
        (HEAD, "layers: got nothing"),
        (HEAD + "layers = []", r"layers: got \[\], expected one or more"),
        (HEAD + "layers = 3", "layers: got 3"),
        (HEAD + "layers = [3]", r"layers\[0\]: got 3, expected a table"),
        ("input_shape = [4, 8]\n" + CONV, r"input_shape: got \[4, 8\], expected \[features\] or"),
        ("input_shape = [4, 8, true]\n" + CONV, r"input_shape\[2\]: got True, expected a whole number"),
        ("input_shape = [4, -8, 8]\n" + CONV, r"input_shape\[1\]: got -8"),
        ("input_shape = [100000, 8000, 8]\n" + CONV, "got 6,400,000,000 outputs a sample in input"),
        (HEAD + "seed = 1\n" + CONV, "unknown key: got 'seed', expected one of name, framework"),
        (HEAD + 'frame_work = "torch"\n' + CONV, "unknown key: got 'frame_work'.*Did you mean 'framework'"),
        (HEAD + 'framework = "jax"\n' + CONV, "framework: got 'jax', expected one of torch, keras"),
        (HEAD + 'name = ""\n' + CONV, "name: got '', expected a text"),
        (HEAD + "[[layers]]\nkernel = 3", r"layers\[0\].type: got 'nothing', expected one of conv2d"),
        (HEAD + '[[layers]]\ntype = "conv2"', r"layers\[0\].type: got 'conv2'.*Did you mean 'conv2d'"),
        (HEAD + "[[layers]]\ntype = 2", r"layers\[0\].type: got 2, expected a text"),
        (HEAD + '[[layers]]\ntype = "conv2d"\nkernel = 3', r"layers\[0\].out_channels: got nothing"),
        (HEAD + CONV + "strid = 2", r"layers\[0\]: unknown key: got 'strid'.*Did you mean 'stride'"),
        (HEAD + CONV + "stride = true", r"layers\[0\].stride: got True, expected a whole number"),
        (HEAD + CONV + "stride = 0", r"layers\[0\].stride: got 0, expected a whole number of at least 1"),
        (HEAD + CONV + "stride = 1.0", r"layers\[0\].stride: got 1.0"),
        (HEAD + CONV + "stride = [1, 2, 3]", r"layers\[0\].stride: got \[1, 2, 3\], expected one whole number, or two"),
        (HEAD + CONV + "stride = [1, -2]", r"layers\[0\].stride\[1\]: got -2"),
        (HEAD + CONV + 'padding = "full"', r"layers\[0\].padding: got 'full', expected one of same, valid"),
        (HEAD + CONV + "padding = [0, 0, 0, -1]", r"layers\[0\].padding: got \[0, 0, 0, -1\], expected four whole"),
        (HEAD + CONV + "padding = 1", r"layers\[0\].padding: got 1, expected \[top, bottom, left, right\]"),
        (HEAD + CONV + "groups = 3", r"layers\[0\]: conv1: groups: got 3 for 4 -> 4"),
        (HEAD + CONV + 'init = "hee_normal"', r"layers\[0\].init: got 'hee_normal'.*Did you mean 'he_normal'"),
        (HEAD + CONV + 'init = "normal(std=nan)"', r"layers\[0\].init: normal: std: got nan"),
        (HEAD + CONV + "init = nan", r"layers\[0\].init: got nan, expected a text"),
        (HEAD + CONV + 'bias = "he_normal"', "conv1: bias initializer: got he_normal"),
        (HEAD + CONV + "bias = true", r"layers\[0\].bias: got True"),
        (HEAD + CONV + 'from = "nowhere"', r"layers\[0\].from: got 'nowhere', expected one of input"),
        (HEAD + CONV + 'from = ["input", "input"]', r"layers\[0\]: from: got .*expected one layer"),
        (HEAD + CONV + "from = 0", r"layers\[0\].from: got 0, expected a text"),
        (HEAD + CONV + 'name = "input"', r"layers\[0\]: layer name: got 'input', expected a name that is used once"),
        (HEAD + CONV.replace("3", "30") + 'padding = "valid"', r"layers\[0\]: conv1: kernel"),
        (HEAD + CONV + CONV + 'from = "input"', "layer 'conv1': got no layer that reads it"),
        (HEAD + '[[layers]]\ntype = "add"\nfrom = ["input"]', r"layers\[0\]: add1: input shapes"),
        (HEAD + '[[layers]]\ntype = "batch_norm"\neps = nan', r"layers\[0\].eps: got nan, expected a finite number"),
        (HEAD + '[[layers]]\ntype = "batch_norm"\neps = -1', r"layers\[0\]: bn1: eps: got -1"),
        (
            HEAD + '[[layers]]\ntype = "batch_norm"\nmomentum = 2',
            r"layers\[0\].momentum: got 2, expected a number",
        ),
        (HEAD + '[[layers]]\ntype = "activation"\nfunction = "rulu"', r"layers\[0\].function: activation.*'rulu'"),
        (HEAD + '[[layers]]\ntype = "linear"\nout_features = 3', r"layers\[0\]: linear1: input shape.*flatten"),
        (HEAD + '[[layers]]\ntype = "zero_pad"\npadding = "same"', r"layers\[0\].padding: got 'same'"),
        (HEAD + CONV.replace("4", "400000000"), "got 14,400,000,000 weights in conv1, expected at most"),
        ("input_shape = [4, 8", "expected valid TOML in UTF-8"),
    ],
)
def test_mistakes_are_named_with_file_key_value_and_what_was_expected(write, text, told):
    path = write(text)
    with pytest.raises(UserError, match=told) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_toml(tmp_path):
    with pytest.raises(UserError, match=r"none.toml: got no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(UserError, match="got no such file"):
        load(tmp_path)
    binary = tmp_path / "weights.toml"
    binary.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(UserError, match=r"weights.toml: got .*expected valid TOML in UTF-8"):
        load(binary)
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 100_000)
    with pytest.raises(UserError, match=r"deep.toml: got"):
        load(deep)
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(UserError, match=r"large.toml: got 16,777,217 bytes"):
        load(large)
