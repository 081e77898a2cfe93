"""Chains of normalisations and windows are what their nodes are one by one."""

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.montecarlo.chain import find_chains
from varprop.simulator.montecarlo.draws import Draws
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.trial import Plan, run_trials
from varprop.simulator.network import NetworkBuilder
from varprop.tests.tolerances import ROUNDING

FLOAT32 = 1e-4  # a dozen blocks of float32 rounding, in another order


def node_by_node(plan):
    """The same plan without chains."""
    plan.__dict__.update(chains={}, measured_later={})
    return plan


def recorded(plan, dtype, batch=4, trials=2, scale=1.0):
    data = scale * np.random.default_rng(0).standard_normal((*plan.network.nodes[0].shape, batch))
    moments, _ = run_trials(plan, data.astype(dtype), Draws(3, 0, trials, dtype), Pool(dtype))
    return np.ldexp(moments[..., :3], moments[..., 3:].astype(int) * np.array([1, 2, 2]))


def assert_same(network, dtype, tolerance, **options):
    plan = Plan(network, frozenset())
    assert plan.chains
    found, plain = (recorded(one, dtype, **options) for one in (plan, node_by_node(Plan(network, frozenset()))))
    second = plain[..., 1]
    np.testing.assert_allclose(found[..., 1], second, rtol=tolerance)
    np.testing.assert_array_less(np.abs(found[..., 2] - plain[..., 2]), tolerance * second + 1e-300)
    np.testing.assert_array_less(np.abs(found[..., 0] - plain[..., 0]), tolerance * np.sqrt(second) + 1e-300)


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e3 * ROUNDING), (np.float32, FLOAT32)])
def test_mobilenet_is_the_same_node_by_node(framework, dtype, tolerance):
    """After 35 normalisations, each of which divides by a deviation that is itself rounded."""
    assert_same(build("mobilenet_v2", depth=5, framework=framework), dtype, tolerance)


@pytest.mark.parametrize("name", ["relu", "gelu"])
@pytest.mark.parametrize("scale", [1e-40, 1e-12, 1e12])
def test_a_source_far_from_one(name, scale):
    """Behind a large eps: gelu cannot take a map behind a power of two, so that its chain runs node by node."""
    net = NetworkBuilder("far", "torch", (3, 6, 6))
    net.conv2d(4, 1, parse_initializer("normal(0.5)"))
    net.batch_norm(eps=1.0)
    net.activation(name)
    net.conv2d(4, 3, parse_initializer("normal(0.5)"), groups=4)
    net.batch_norm(eps=1.0)
    net.activation(name)
    net.conv2d(3, 1, parse_initializer("normal(0.5)"))
    assert_same(net.build(), np.float64, ROUNDING, scale=scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e3 * ROUNDING), (np.float32, FLOAT32)])
def test_gradients_that_normalisation_leaves_little_of(dtype, tolerance):
    """Of three values two are taken off: of a channel in seven less than a twentieth is left, then summed anew."""
    net = NetworkBuilder("little", "torch", (8, 1, 1))
    for _ in range(2):
        net.conv2d(64, 1, parse_initializer("normal(0.5)"))
        net.batch_norm()
        net.activation("leaky_relu(0.2)")
    assert_same(net.build(), dtype, tolerance, batch=3)


def test_chains_of_mobilenet():
    """A block is two chains: expansion to projection, and the projection's own normalisation."""
    network = build("mobilenet_v2")
    chains = find_chains(network, frozenset())
    kinds = [tuple(network.nodes[index].kind for index in chain.nodes) for chain in chains.values()]
    link = ("batch_norm", "activation")
    assert kinds.count((*link, "depthwise_conv2d", *link)) == 17
    assert kinds.count(("batch_norm",)) == 17
    assert kinds[-1] == (*link, "global_average_pool")
    covered = [index for chain in chains.values() for index in chain.nodes]
    assert len(covered) == len(set(covered))


def test_what_is_read_twice_ends_a_chain():
    net = NetworkBuilder("twice", "torch", (3, 6, 6))
    norm = net.batch_norm()
    net.activation("relu")
    act = net.conv2d(3, 3, parse_initializer("normal(1)"), groups=3)
    net.add((net.last, norm))
    (chain,) = find_chains(net.build(), frozenset()).values()
    assert chain.nodes == (norm,)
    assert act not in chain.nodes
