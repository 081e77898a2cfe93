"""The counter-based random stream: Philox words, and the normal quantile that turns a word into a normal.

A word depends only on a key (the seed) and a counter (purpose, trial, layer, position), so that a draw is the same
whichever thread asks for it and in whichever order. The functions are scalar and in plain arithmetic: they run as
they are in Python and compiled, where integers are 64 bits wide and wrap.
"""

from __future__ import annotations

import math

MASK = 0xFFFFFFFF

# Wichura's coefficients, highest power first: a ratio of two polynomials of degree 7 for the centre, one for the tails.
CENTRE_ABOVE = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
CENTRE_BELOW = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
TAIL_ABOVE = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
TAIL_BELOW = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)


def philox4x32(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """Return the four 32-bit words that Philox4x32-10 makes of a counter and a key.

    Parameters
    ----------
    c0, c1, c2, c3
        The counter, four 32-bit words.
    k0, k1
        The key, two 32-bit words.

    References
    ----------
    .. [1] J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.

    Examples
    --------
    >>> [f"{word:08x}" for word in philox4x32(0, 0, 0, 0, 0, 0)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        # Masked after the shift: the product fills 64 bits, and a compiled shift copies the sign bit.
        high, low = (first >> 32) & MASK, first & MASK
        c0, c1, c2, c3 = ((second >> 32) & MASK) ^ c1 ^ k0, second & MASK, high ^ c3 ^ k1, low
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def unit_interval(word: int) -> float:
    """Return the middle of the word's cell among 2**32 equal cells of (0, 1): never 0 or 1, mean exactly 1/2."""
    return (word + 0.5) * 2.0**-32


def normal_quantile(p: float) -> float:
    """Return z with P(N(0, 1) < z) = p, to a relative error of about 1e-15.

    Holds for exp(-25) <= p <= 1 - exp(-25), which covers every value of `unit_interval`: draws reach 6.3 deviations.

    References
    ----------
    .. [1] M. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37
       (1988), 477-484, routine PPND16 without its far tail.

    Examples
    --------
    >>> round(normal_quantile(0.975), 12)
    1.95996398454
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        r, factor = 0.180625 - q * q, q
        above, below = CENTRE_ABOVE, CENTRE_BELOW
    else:
        r, factor = math.sqrt(-math.log(min(p, 1.0 - p))) - 1.6, math.copysign(1.0, q)
        above, below = TAIL_ABOVE, TAIL_BELOW
    numerator, denominator = above[0], below[0]
    for k in range(1, 8):
        numerator, denominator = numerator * r + above[k], denominator * r + below[k]
    return factor * numerator / denominator
