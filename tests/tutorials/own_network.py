"""A network of one's own, in Python and as a file.  Run: python tests/tutorials/own_network.py

The file from a shell:

    varprop propagate mine.toml --plot mine.pdf
"""

from __future__ import annotations

from pathlib import Path

from varprop import NetworkBuilder, load, load_batch, parse_initializer, predict

# A residual block whose branch starts small. Every method returns the node's number, to be named as a source.
he = parse_initializer("he_normal")
net = NetworkBuilder("mine", "torch", (3, 32, 32))
net.conv2d(16, 3, he, name="stem")
trunk = net.batch_norm(name="stem.bn")
net.activation("relu", name="act")
net.conv2d(16, 3, he, name="branch")
net.batch_norm(name="branch.bn")
net.add((trunk, net.last), name="sum")
net.global_average_pool()
net.linear(10, he, name="head")
network = net.build()

# The same as a file.
Path("mine.toml").write_text(
    """
input_shape = [3, 32, 32]

[[layers]]
type = "conv2d"
name = "stem"
out_channels = 16
kernel = 3

[[layers]]
type = "batch_norm"
name = "stem.bn"

[[layers]]
type = "activation"
name = "act"
function = "relu"

[[layers]]
type = "conv2d"
name = "branch"
out_channels = 16
kernel = 3

[[layers]]
type = "batch_norm"
name = "branch.bn"

[[layers]]
type = "add"
name = "sum"
from = ["stem.bn", "branch.bn"]

[[layers]]
type = "global_average_pool"

[[layers]]
type = "linear"
name = "head"
out_features = 10
"""
)
assert [node.operation for node in load(Path("mine.toml")).nodes] == [node.operation for node in network.nodes]

batch = load_batch("photo", network.nodes[0].shape, batch=32, seed=0)
for node, layer in zip(network.nodes, predict(network, batch).layers, strict=True):
    print(f"{node.name:10} q = {layer.forward.second_moment:.4f}   g = {layer.backward.second_moment:.3e}")
    for note in layer.notes:
        print(f"{'':10} {note}")
