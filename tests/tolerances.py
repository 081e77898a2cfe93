"""Every bound that the tests of theory use, and why it is what it is.

A bound is a statement about rounding, about a truncated expansion, about the order of a neglected term, or about
sampling noise in standard errors. Where a prediction is compared with a Monte Carlo run, the bounds on the relative
difference are those that the package documents (`varprop.simulator.compare`), and count only beyond `BEYOND` standard
errors of the run itself.
"""

from __future__ import annotations

BEYOND = 4.0
"""Standard errors; a normal deviate is further out once in 16,000 draws."""

SHARE_BEYOND = 0.01
"""Share of exact layers that may lie beyond `BEYOND`: a mean of skewed log-normal draws strays further than a normal."""

MEAN_SQUARE_Z = (0.5, 2.0)
"""Of many z-scores. It is 1 for honest standard errors; layers of one run share draws, which leaves few independent
scores a seed, and ten seeds leave their mean square within a factor of two."""

ROUNDING = 1e-12
"""float64 sums of up to a few hundred terms in another order, relative to the largest."""

DEEP_ROUNDING = 1e-9
"""Hundreds of layers' rounding: 300 steps of a few 1e-14 each, and room for logs."""

SERIES = 1e-6
"""Dual activations from 40 Hermite terms and a tail term: c^41 times the tail, which at |c| <= 0.5 is below 1e-12 for
jumps and at |c| <= 0.9 below 1e-6 for smooth functions, in units of the second moment."""

QUADRATURE = 1e-6
"""Law of a quadratic form: composite Gauss-Legendre on a logarithmic grid that is cut at exp(-25)."""

SAMPLED = 5e-3
"""Averages over sampled channels: 512 draws at a few thousand points, about 2e5 weakly dependent values of spread 1."""

NEXT_ORDER = 2e-4
"""What is left of a 1/B law after one step of Richardson extrapolation from B = 64 and 256: c / (64 * 256)."""

PRINTED = 6e-4
"""Numbers known to three or four printed digits, half a unit in the last place at most, and the cubature's 2^-15 nodes."""

LIMIT = 2e-3
"""A rate's approach to its limit after 1000 layers: ln 2 / 1000 times an order-one constant."""

WIDTH_256 = 0.02
"""Infinite-width prediction of five layers at width 256: depth / width, times an order-one constant."""

RATE = (-1.3, -0.7)
"""Exponent of the finite-width error between widths 8 and 64. One is the theory; the next order, up to a third of the
first at width 8, moves it by less than 0.2, and the run's standard errors by less than 0.1. Excludes 1/2 and 2."""

MOBILENET = {"forward median": 0.005, "forward worst": 0.05, "step median": 0.02, "step worst": 0.15}
"""Documented accuracy of theory for MobileNetV2 with BN; `worst` counts the excess over `BEYOND` standard errors."""
