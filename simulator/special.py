"""Special functions that SciPy lacks."""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

# Taylor coefficients (-1)^k / Gamma(k/2 + 1) from k = 2; at x = 1 the last is below 1e-22.
_SERIES = np.array([(-1.0) ** k / math.gamma(k / 2 + 1) for k in range(2, 48)])


def erfcx_tail(x: ArrayLike) -> NDArray[np.float64]:
    r"""Return erfcx(x) - 1 + 2 x / sqrt(pi), the remainder of erfcx after its first two Taylor terms.

    Below 1, where those terms cancel, it is summed from its Taylor series, x >= 0.

    Examples
    --------
    >>> print(f"{float(erfcx_tail(1e-8)):.9e}")  # x^2 to leading order
    9.999999925e-17
    """
    x = np.asarray(x, dtype=np.float64)
    small = np.minimum(x, 1.0)
    series = small * small * np.polynomial.polynomial.polyval(small, _SERIES)
    direct = scipy.special.erfcx(x) - 1 + 2 * x / np.sqrt(np.pi)
    return np.asarray(np.where(x < 1, series, direct), dtype=np.float64)
