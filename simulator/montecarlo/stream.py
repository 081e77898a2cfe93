"""Filling arrays from the counter-based stream, a chunk at a time so that the compiler finds vectors.

A number depends only on its counter and key, never on the chunk that it was made in. From a word to a normal there is
one loop, in registers; what only one normal in 300 needs is done again where there is one, outside of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varprop.simulator import random
from varprop.simulator.jit import kernel, step
from varprop.simulator.montecarlo.sums import Number, Place

Array = NDArray[np.floating]
Single = NDArray[np.float32]
Double = NDArray[np.float64]
Words = NDArray[np.uint32]
Word = np.integer | int
Counter = tuple[int, int, int]
Key = tuple[int, int]

CHUNK = 256
"""Counters at a time: 1024 words, whose buffer stays in the first-level cache."""

FEW = np.uint64(64)
"""Normals at a time, of which four times in five none lies in the tails: all vectors that a loop works on at once."""

# sqrt(2) erfinv(x) / x as polynomials, highest power first: in w - 2.5 for w = -log(1 - x^2) < 5, where the relative
# error is 1e-7, and in sqrt(w) - 3.4363 up to the largest w of a 32-bit word, where it is 4e-7. Giles's idea of 2012;
# least squares of the relative error at 200 Chebyshev nodes, which `tests/test_random.py` does not trust.
CORE_END, CORE_MIDDLE, TAIL_MIDDLE = np.float32(5), np.float32(2.5), np.float32(3.4363071929559)
CORE = tuple(
    np.float32(c)
    for c in (
        3.9583209598959e-08,
        4.851791004512052e-07,
        -4.981194706488168e-06,
        -6.207880232977914e-06,
        0.00030911510111764073,
        -0.001773041789419949,
        -0.00590812973678112,
        0.34880268573760986,
        2.1233136653900146,
    )
)
TAIL = tuple(
    np.float32(c)
    for c in (
        -1.8470398572389968e-05,
        -0.00025810307124629617,
        0.0009500041487626731,
        -0.0013775629922747612,
        0.0017821529181674123,
        -0.0032876809127628803,
        0.005255623254925013,
        1.4239997863769531,
        4.626368999481201,
    )
)
# log(1 + t) = t - t^2 / 2 + t^3 (...) for 1 + t from 1/sqrt(2) to sqrt(2); Moshier's Cephes, logf, highest power first.
LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
)
LOG_2 = np.float32(math.log(2))
CORE_REACH = 0.9966  # just below the x with w = CORE_END
ROOT_HALF = np.int32(0x3F3504F3)  # bits of sqrt(1/2)
MANTISSA = np.int32(23)
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
WORD, HALF_WORD = np.float32(2.0**-31), np.float32(2.0**-32)
SIGN, LARGEST_WORD = np.int32(31), np.int32(2**31 - 1)

normal_quantile = kernel(random.normal_quantile)


@kernel
def random_unit(word: int) -> float:
    """Return `random.unit_interval` of a word whose sign bit is turned, as `symmetric_units` reads it."""
    return np.float64(np.int32(word)) * 2.0**-32 + (0.5 + 2.0**-33)


@step
def philox_words(start: int, c1: int, c2: int, c3: int, k0: int, k1: int, out: Words) -> None:
    """Write the four words that `random.philox4x32` makes of each counter start, start + 1, ... as a column."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    first_multiplier, second_multiplier = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    first_step, second_step = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    for i in range(out.shape[1]):
        a, b, c, d = np.uint64(start + i), np.uint64(c1), np.uint64(c2), np.uint64(c3)
        x, y = np.uint64(k0), np.uint64(k1)
        for _ in range(10):
            first, second = first_multiplier * a, second_multiplier * c
            a, b, c, d = (second >> half) ^ b ^ x, second & mask, (first >> half) ^ d ^ y, first & mask
            x, y = (x + first_step) & mask, (y + second_step) & mask
        out[0, i], out[1, i], out[2, i], out[3, i] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)


@step
def symmetric_unit(word: Word) -> Number:
    """Return 2 u - 1 for u in the middle of the word's cell of (0, 1), as a signed word: precise about 0."""
    return np.float32(np.int32(word)) * WORD + HALF_WORD


@step
def distance(word: Word) -> np.int32:
    """Return how far u is from 1/2, from 0 to `LARGEST_WORD`."""
    signed = np.int32(word)
    return np.int32(signed ^ np.int32(signed >> SIGN))


@step
def depth(word: Word, span: Number, rest: Number) -> Number:
    """Return -log(1 - x^2) for x = span (2 u - 1), given 1 - span too.

    1 - x^2 comes from the distances to the ends, so that nothing cancels near 1.
    """
    end = rest + span * (np.float32(np.int32(LARGEST_WORD - distance(word))) * WORD + HALF_WORD)
    bits = np.float32(end * (TWO - end)).view(np.int32)
    exponent = np.int32(np.int32(bits - ROOT_HALF) >> MANTISSA)
    t = np.int32(bits - np.int32(exponent << MANTISSA)).view(np.float32) - ONE
    y = polynomial(LOG, t)
    return max(-(t + t * t * (y * t - HALF) + np.float32(exponent) * LOG_2), ZERO)


@step
def polynomial(coefficients: tuple[Number, ...], x: Number) -> Number:
    """Return the value of a polynomial of degree 8."""
    y = coefficients[0]
    for k in range(1, 9):
        y = y * x + coefficients[k]
    return y


@step
def normals(
    words: Words, first: Place, count: Place, span: Number, rest: Number, scale: Number, out: Single
) -> np.int32:
    """Write scale sqrt(2) erfinv(x) for x = span (2 u - 1), right where x is in the core; return the largest distance.

    Words and normals lie at the same places, from `first` on.
    """
    farthest = np.int32(0)
    for k in range(count):
        word = words[first + k]
        away = distance(word)
        farthest = away if away > farthest else farthest
        core = polynomial(CORE, depth(word, span, rest) - CORE_MIDDLE)
        out[first + k] = symmetric_unit(word) * span * core * scale
    return farthest


@step
def tails(
    words: Words, first: Place, count: Place, span: Number, rest: Number, scale: Number, out: Single, near: Word
) -> None:
    """Write over what `normals` wrote where x is not in the core, which it is up to a distance `near`."""
    for k in range(first, first + count):
        w = depth(words[k], span, rest) if distance(words[k]) > near else ZERO
        if w >= CORE_END:
            tail = polynomial(TAIL, np.sqrt(w) - TAIL_MIDDLE)
            out[k] = symmetric_unit(words[k]) * span * tail * scale


@kernel
def fill_single(out: Single, scale: float, span: float, normal: bool, counter: Counter, key: Key) -> None:
    """Write scale times the normal quantile of (1 + span x) / 2, or times x itself, for x uniform on (-1, 1).

    Row r of `out` has the counter (., layer, trial + r, purpose), and in it number chunk * 1024 + word * 256 + i is
    word `word` of position chunk * 256 + i. In float32 from end to end, with a relative error below 1e-6.
    """
    words = np.empty((4, CHUNK), np.uint32)
    flat = words.reshape(-1)
    factor, part, rest = np.float32(scale), np.float32(span), np.float32(1.0 - span)
    near = np.int32(min(CORE_REACH / span, 1.0) * LARGEST_WORD)
    rows, size = out.shape
    for row in range(rows):
        for start in range(0, size, 4 * CHUNK):
            piece = out[row, start : start + 4 * CHUNK]
            philox_words(start // 4, counter[0], counter[1] + row, counter[2], key[0], key[1], words)
            if not normal:
                for i in range(piece.size):
                    piece[i] = symmetric_unit(flat[i]) * factor
                continue
            end = np.uint64(piece.size)
            for first in range(np.uint64(0), end, FEW):
                count = min(FEW, end - first)
                if normals(flat, first, count, part, rest, factor, piece) > near:
                    tails(flat, first, count, part, rest, factor, piece, near)


@kernel
def fill_double(out: Double, scale: float, span: float, normal: bool, counter: Counter, key: Key) -> None:
    """Write what `fill_single` writes, to float64's precision."""
    words = np.empty((4, CHUNK), np.uint32)
    flat = words.reshape(-1)
    rows, size = out.shape
    for row in range(rows):
        for start in range(0, size, 4 * CHUNK):
            piece = out[row, start : start + 4 * CHUNK]
            philox_words(start // 4, counter[0], counter[1] + row, counter[2], key[0], key[1], words)
            for k in range(piece.size):
                u = random_unit(flat[k])
                if normal:
                    piece[k] = scale * normal_quantile((1.0 - span) / 2 + span * u)
                else:
                    piece[k] = scale * (2.0 * u - 1.0)
