"""An activation written as a formula.  Run: python tests/tutorials/own_activation.py

The same from a shell:

    varprop gain "x*tanh(log(1+exp(x)))"
    varprop phase "x*tanh(log(1+exp(x)))" --sigma-w2 2
    varprop propagate mlp --activation "x*tanh(log(1+exp(x)))" --init "he_normal(gain=1.59)"
"""

from __future__ import annotations

from varprop import build, compare, load_batch, parse_initializer, predict, simulate
from varprop.simulator.activations import activation
from varprop.simulator.gain import gain

MISH = "x*tanh(log(1+exp(x)))"

# The gain that gives back a second moment of one: the weights' deviation is gain / sqrt(fan_in).
found = gain(activation(MISH), 1.0)
print(f"E[phi^2] = {found.second_moment:.6f} at q = 1, so gain = {found.gain_second_moment:.6f}")
for point in found.fixed_points:
    print(f"fixed point q* = {point.q:.4f}, {'stable' if point.slope < 1 else 'unstable'}: slope {point.slope:.4f}")

# Whoever starts beside an unstable fixed point drifts away from it; Monte Carlo over weight draws says so too.
rule = parse_initializer(f"he_normal(gain={found.gain_second_moment})")
network = build("mlp", depth=12, width=256, activation=MISH, init=rule)
batch = load_batch("gaussian", network.nodes[0].shape, batch=16, seed=0)
theory, measured = predict(network, batch), simulate(network, batch, trials=50, seed=0)
for node, layer, drawn in zip(network.nodes, theory.layers, measured.layers, strict=True):
    if node.fan_in is not None:
        print(f"{node.name:9} theory {layer.forward.second_moment:.4f}  measured {drawn.forward.second_moment:.4f}")
print("they agree" if compare(theory, measured).agrees else "they disagree")
