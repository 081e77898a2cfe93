"""What if the net were deeper, or started otherwise?  Run: python tests/tutorials/what_if_sweep.py

The same from a shell, with everything kept in a folder so that it can be stopped and continued:

    varprop sweep mlp --depth 4:64:log5 --init he_normal,glorot_normal,default --activation relu,tanh --out runs
"""

from __future__ import annotations

from varprop.simulator.sweep.points import points
from varprop.simulator.sweep.run import sweep
from varprop.simulator.sweep.tables import summary_rows


def main() -> None:
    """Sweep and print; a function of its own, because the points run in processes that import this file."""
    # Every combination of the values of these axes; what is left out keeps the network's default.
    chosen = points(
        ["mlp"],
        {"init": ["he_normal", "glorot_normal", "default"], "activation": ["relu", "tanh"], "depth": [4, 16, 64]},
    )
    rows = summary_rows(chosen, sweep(chosen))

    # A row a point: what the whole net does to signal and gradient, how deep it can be, and a verdict in words.
    print(f"{'init':14} {'activation':10} {'depth':>5} {'trainable depth':>16}  verdict")
    for row in rows:
        limit = row["trainable_depth"]
        told = "no limit" if limit is None else f"{limit:.0f}"
        print(f"{row['init']:14} {row['activation']:10} {row['depth']:5} {told:>16}  {row['verdict']}")


if __name__ == "__main__":
    main()
