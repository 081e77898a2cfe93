"""The linear map that gives points of one covariance another one, and moves them least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROUNDING = 1e-12  # share of the largest eigenvalue below which a direction is not there


def transport(found: Array, wanted: Array) -> Array:
    """Return the symmetric A with A found A = wanted that moves points of the one covariance least.

    That is Monge's map between normal laws, A = R (R found R)^-1/2 R with R^2 = wanted (Olkin & Pukelsheim, "The
    distance between two random vectors with given dispersion matrices", Linear Algebra and its Applications 48, 1982,
    theorem 4; Peyre & Cuturi, "Computational Optimal Transport", 2019, remark 2.31), as far as the points vary at all.
    """
    root = _power(wanted, 0.5)
    return np.asarray(root @ _power(root @ found @ root, -0.5) @ root)


def _power(matrix: Array, exponent: float) -> Array:
    """Return a power of a covariance, of which directions without variance stay without."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    live = values > max(float(values[-1]), 0.0) * _ROUNDING
    return np.asarray((vectors[:, live] * values[live] ** exponent) @ vectors[:, live].T)
