"""Families of networks: their published shapes and sizes, options, and what is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varprop.simulator.architectures import NAMES, build
from varprop.simulator.architectures.plan import share
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.limits import weight_count
from varprop.simulator.network import ZEROS, Initializer

CONVOLUTIONS = ("conv2d", "depthwise_conv2d")


def by_name(network):
    return {node.name: node for node in network.nodes}


def convolution_weights(network):
    return sum(weight_count(node) for node in network.nodes if node.kind in CONVOLUTIONS)


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_builds_with_its_defaults(name, framework):
    network = build(name, framework=framework)
    assert (network.name, network.framework) == (name, framework)
    assert all(readers for readers in network.consumers[:-1])
    assert build(name, framework=framework) == network


def test_defaults():
    mlp, plain = build("mlp"), build("plain_conv")
    assert [node.shape for node in mlp.nodes if node.kind == "linear"] == [(256,)] * 10
    assert [node.shape for node in plain.nodes if node.kind == "conv2d"] == [(64, 32, 32)] * 10
    for name in NAMES:
        network = build(name)
        weighted = [node.operation for node in network.nodes if node.kind in CONVOLUTIONS]
        assert all(operation.weight == Initializer("he_normal") for operation in weighted)
        assert all(operation.bias is None for operation in weighted)
        functions = {node.operation.function for node in network.nodes if node.kind == "activation"}
        assert functions == ({"relu6"} if name == "mobilenet_v2" else {"relu"})
        normalised = any(node.kind == "batch_norm" for node in network.nodes)
        assert normalised == (name in ("resnet", "mobilenet_v2", "two_layer"))


@pytest.mark.parametrize("name", ["plain_conv", "vgg", "resnet", "mobilenet_v2"])
def test_classifier_keeps_the_default_and_init_sets_all_convolutions(name):
    network = build(name, init=parse_initializer("constant(5)"))
    *_, classifier = network.nodes
    assert (classifier.name, classifier.shape) == ("head.classifier", (10,))
    assert (classifier.operation.weight, classifier.operation.bias) == (Initializer("default"), ZEROS)
    weights = {node.operation.weight for node in network.nodes if node.kind in CONVOLUTIONS}
    assert weights == {Initializer("constant", (("value", 5.0),))}


@pytest.mark.parametrize("name", ["mlp", "plain_conv", "vgg"])
def test_plain_layers_have_the_default_bias_only_under_the_default_rule(name):
    def biases(**options):
        layers = [node for node in build(name, **options).nodes if node.fan_in and node.name != "head.classifier"]
        return {node.operation.bias for node in layers}

    default = Initializer("default")
    assert biases() == {None}
    assert biases(init=default) == {default}
    assert biases(init=default, norm="batch") == {None}


def test_mlp_ends_bare_and_flattens_images():
    assert [node.name for node in build("mlp", depth=3, norm="batch").nodes] == [
        "input",
        "linear1",
        "linear1.bn",
        "linear1.act",
        "linear2",
        "linear2.bn",
        "linear2.act",
        "linear3",
    ]
    assert build("mlp", width=7).nodes[0].shape == (7,)
    for options in ({"size": 8}, {"input_shape": (3, 8, 8)}):
        network = build("mlp", depth=1, width=7, **options)
        assert [node.shape for node in network.nodes] == [(3, 8, 8), (192,), (7,)]
    assert build("mlp", depth=1, input_shape=(784,)).nodes[1].fan_in == 784


# (input channels, output channels, stride, shortcut) of the published network's inverted residual blocks.
MOBILENET_BLOCKS = [
    (16, 24, 2, False),
    (24, 24, 1, True),
    (24, 32, 2, False),
    (32, 32, 1, True),
    (32, 32, 1, True),
    (32, 64, 2, False),
    (64, 64, 1, True),
    (64, 64, 1, True),
    (64, 64, 1, True),
    (64, 96, 1, False),
    (96, 96, 1, True),
    (96, 96, 1, True),
    (96, 160, 2, False),
    (160, 160, 1, True),
    (160, 160, 1, True),
    (160, 320, 1, False),
]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_mobilenet_is_the_published_network(framework):
    network = build("mobilenet_v2", framework=framework, size=224)
    nodes = by_name(network)
    for number, (n_in, n_out, stride, shortcut) in enumerate(MOBILENET_BLOCKS, start=1):
        expand, depthwise, project = (nodes[f"block{number}.{part}"] for part in ("expand", "depthwise", "project"))
        assert (expand.operation.in_channels, expand.operation.out_channels) == (n_in, 6 * n_in)
        assert depthwise.kind == "depthwise_conv2d"
        assert depthwise.operation.stride == (stride, stride)
        assert (project.operation.in_channels, project.operation.out_channels) == (6 * n_in, n_out)
        assert (f"block{number}.add" in nodes) == shortcut
        assert f"block{number}.project.act" not in nodes
    assert "block17.expand" not in nodes
    assert nodes["head.conv"].shape == (1280, 7, 7)
    kinds = [node.kind for node in network.nodes]
    assert (kinds.count("conv2d"), kinds.count("depthwise_conv2d")) == (35, 17)
    # Keras Applications publishes 2,257,984 parameters without top: four for each of the 17,056 normalised channels.
    assert convolution_weights(network) == 2_257_984 - 4 * 17_056
    assert sum(node.shape[0] for node in network.nodes if node.kind == "batch_norm") == 17_056


@pytest.mark.parametrize(("size", "padding"), [(32, (0, 1, 0, 1)), (34, (1, 1, 1, 1))])
def test_mobilenet_pads_as_the_framework_does(size, padding):
    keras = by_name(build("mobilenet_v2", framework="keras", size=size))
    torch = by_name(build("mobilenet_v2", framework="torch", size=size))
    assert keras["stem.conv"].operation.padding == (0, 1, 0, 1)
    assert torch["stem.conv"].operation.padding == (1, 1, 1, 1)
    # The stem halves the size: 16 is even, 17 is odd.
    assert keras["block1.pad"].operation.padding == padding
    assert keras["block1.depthwise"].operation.padding == (0, 0, 0, 0)
    assert keras["block2.depthwise"].operation.padding == (1, 1, 1, 1)
    assert "block1.pad" not in torch
    assert torch["block1.depthwise"].operation.padding == (1, 1, 1, 1)
    assert keras["block1.depthwise"].shape == torch["block1.depthwise"].shape


def test_mobilenet_takes_any_size_activation_and_no_norm():
    for size in (1, 2, 7, 33):
        build("mobilenet_v2", size=size)
        build("mobilenet_v2", framework="keras", size=size)
    network = build("mobilenet_v2", norm="none", activation="selu")
    kinds = {node.kind for node in network.nodes}
    assert "batch_norm" not in kinds
    assert {node.operation.function for node in network.nodes if node.kind == "activation"} == {"selu"}


def test_resnet_20_is_the_published_network():
    network = build("resnet")
    nodes = by_name(network)
    stages = [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    assert [nodes[f"block{number}.act"].shape for number in range(1, 10)] == stages
    assert [name for name in nodes if name.endswith("shortcut")] == ["block4.shortcut", "block7.shortcut"]
    assert nodes["block4.shortcut"].operation.stride == (2, 2)
    assert nodes["block4.add"].inputs == tuple(
        index for index, node in enumerate(network.nodes) if node.name in ("block4.conv2.bn", "block4.shortcut.bn")
    )
    # Six 3x3 layers a stage (the stem besides), and two 1x1 shortcuts.
    assert convolution_weights(network) == 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + (
        16 * 32 + 32 * 64
    )


def test_vgg_16_is_the_published_network():
    network = build("vgg")
    # Keras Applications publishes 14,714,688 parameters without top, of which 4,224 are biases.
    assert convolution_weights(network) == 14_714_688 - 4_224
    assert [node.shape for node in network.nodes if node.kind == "max_pool"] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
        (512, 1, 1),
    ]


def test_two_layer_and_its_bare_convolution():
    network = build("two_layer")
    assert [node.kind for node in network.nodes] == ["input"] + ["conv2d", "batch_norm", "activation"] * 2
    assert network.nodes[-1].shape == (3, 224, 224)
    bare = build("two_layer", depth=1, norm="none", activation="linear", size=8)
    assert [node.kind for node in bare.nodes] == ["input", "conv2d", "activation"]


@pytest.mark.parametrize("standard", [[3, 3, 3], [2, 3, 4, 3, 3, 1], [2, 2, 3, 3, 3]])
@given(depth=st.integers(1, 300))
def test_depth_is_shared_in_the_standard_proportions(standard, depth):
    blocks = share(depth, standard)
    assert sum(blocks) == depth
    assert len(blocks) == min(depth, len(standard))
    assert min(blocks) >= 1
    assert share(depth * sum(standard), standard) == [depth * count for count in standard]
    more = share(depth + 1, standard)
    assert all(after >= before for before, after in zip(blocks, more, strict=False))
    if depth >= 2 * sum(standard):
        for count, expected in zip(blocks, standard, strict=True):
            assert abs(count - depth * expected / sum(standard)) < 2


def test_depth_counts_the_repeating_unit():
    for name, suffix in (("mlp", "linear"), ("plain_conv", "conv"), ("vgg", "conv")):
        layers = [node for node in build(name, depth=4).nodes if node.name.startswith(suffix) and node.fan_in]
        assert len(layers) == 4
    for name, part in (("resnet", "conv1"), ("mobilenet_v2", "expand")):
        blocks = [node for node in build(name, depth=2).nodes if node.name.endswith(f".{part}")]
        assert len(blocks) == 2
        assert build(name, depth=2).nodes[-1].name == "head.classifier"


def test_ten_thousand_layers_build_in_no_time():
    def seconds():
        start = time.process_time()
        build("mlp", depth=10_000, init=parse_initializer("random_normal"))
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("rezznet", {}, "network: got 'rezznet', expected one of mlp.* Did you mean 'resnet'"),
        ("mlp", {"framework": "jax"}, "--framework: got 'jax', expected one of torch, keras"),
        ("mlp", {"norm": "layer"}, "--norm: got 'layer', expected one of batch, none"),
        ("mlp", {"activation": "rulu"}, "activation.*got 'rulu'.*Did you mean 'relu'"),
        ("mlp", {"depth": 0}, "--depth: got 0, expected a whole number from 1 to 100,000"),
        ("mlp", {"depth": -3}, "--depth: got -3"),
        ("mlp", {"depth": 10**12}, "--depth: got 1000000000000"),
        ("mlp", {"depth": 2.5}, "--depth: got 2.5"),
        ("mlp", {"depth": True}, "--depth: got True"),
        ("two_layer", {"depth": 3}, "--depth: got 3, expected a whole number from 1 to 2"),
        ("mlp", {"width": 0}, "--width: got 0"),
        ("mlp", {"width": 10**9}, "--width: got 1000000000"),
        ("resnet", {"width": 64}, "--width: got 64, expected none for resnet.*mlp, plain_conv"),
        ("resnet", {"size": -32}, "--size: got -32"),
        ("resnet", {"size": 10**6}, "--size: got 1000000"),
        ("mlp", {"width": 20_000}, "400,000,000 weights in linear1, expected at most 268,435,456"),
        ("mlp", {"width": 10_000, "depth": 5_000}, "weights and outputs"),
        ("plain_conv", {"size": 4_096}, "1,073,741,824 outputs a sample in conv1"),
        ("plain_conv", {"input_shape": (784,)}, r"input shape: got \(784,\)"),
        ("vgg", {"size": 16}, "pool5: kernel.*larger input"),
        ("mobilenet_v2", {"init": Initializer("delta_orthogonal")}, "stem.depthwise: delta_orthogonal"),
        ("mlp", {"init": Initializer("he")}, "--init: got 'he', expected one of default, he_normal"),
    ],
)
def test_what_is_refused(name, options, told):
    with pytest.raises(UserError, match=told):
        build(name, **options)
