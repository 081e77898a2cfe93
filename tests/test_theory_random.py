"""Theory against Monte Carlo on random small networks: any order of operations, shortcuts from anywhere."""

from __future__ import annotations

import numpy as np

from varprop.simulator.compare import ALLOWED_FAILURES, compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict

HE, BIAS = parse_initializer("he_normal"), parse_initializer("normal(0.3)")
ACTIVATIONS = ("relu", "tanh", "gelu", "leaky_relu(0.2)", "selu", "sigmoid", "elu", "silu")
OPERATIONS = ("conv", "conv", "activation", "activation", "max_pool", "average_pool", "pad", "add")


def random_network(seed):
    """Up to nine operations on a map of 5 to 12 rows, and a head; returns the network and its kind of input."""
    rng = np.random.default_rng(seed)
    size, source = int(rng.integers(5, 13)), str(rng.choice(["gaussian", "photo"]))
    net = NetworkBuilder(f"random {seed}", str(rng.choice(["torch", "keras"])), (3, size, size))
    for kind in rng.choice(OPERATIONS, size=rng.integers(4, 10)):
        shape = net.shape()
        like = [index for index in range(net.last) if net.shape(index) == shape]
        if kind == "conv":
            bias = BIAS if rng.random() < 0.3 else None
            net.conv2d(24, int(rng.choice([1, 3])), HE, stride=int(rng.choice([1, 1, 2])), bias=bias)
        elif kind == "activation":
            net.activation(str(rng.choice(ACTIVATIONS)))
        elif kind == "pad":
            net.zero_pad(tuple(rng.integers(0, 2, 4).tolist()))
        elif kind == "add" and like:
            net.add((net.last, int(rng.choice(like))))
        elif kind in ("max_pool", "average_pool") and shape[1] >= 4:
            getattr(net, kind)(int(rng.choice([2, 3])), stride=2)
    if rng.random() < 0.5:
        net.global_average_pool()
    else:
        net.flatten()
    net.linear(16, HE)
    net.activation("relu")
    net.linear(10, HE)
    return net.build(), source


def test_random_networks():
    """At most 1% of nodes and steps are beyond both the documented accuracy and four standard errors (long tails)."""
    failed = compared = 0
    for seed in range(24):
        network, source = random_network(seed)
        batch = load_batch(source, network.nodes[0].shape, 8, seed)
        found = compare(predict(network, batch), simulate(network, batch, trials=200, seed=seed)).failures
        failed, compared = failed + found[0], compared + found[1]
    assert compared > 200
    assert failed <= ALLOWED_FAILURES * compared
