"""Times neural-tangents on a plain convolutional ReLU network; run by an interpreter that has it, not varprop.

Called as ``python neural_tangents_peer.py depth width size batch draws``; prints processor seconds as JSON: of the
analytic kernel (NNGP and NTK), and of one draw of its Monte Carlo estimate of the NNGP alone, both compiled before.
"""

import json
import sys
import time
from collections.abc import Callable

import jax  # type: ignore[import-not-found]
import neural_tangents  # type: ignore[import-not-found]
from jax import random
from neural_tangents import stax


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a second call."""
    jax.block_until_ready(work())
    start = time.process_time()
    jax.block_until_ready(work())
    return time.process_time() - start


def main() -> None:
    """Build the network that varprop calls plain_conv, with He's initialization, and time it."""
    depth, width, size, batch, draws = map(int, sys.argv[1:])
    layers = [
        layer for _ in range(depth) for layer in (stax.Conv(width, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu())
    ]
    init, apply, kernel = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(10))
    data = random.normal(random.PRNGKey(0), (batch, size, size, 3))
    analytic = jax.jit(lambda x: kernel(x, None, ("nngp", "ntk")))
    sampled = neural_tangents.monte_carlo_kernel_fn(init, apply, random.PRNGKey(1), draws)
    found = {"kernel": seconds(lambda: analytic(data)), "draw": seconds(lambda: sampled(data, None, "nngp")) / draws}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
