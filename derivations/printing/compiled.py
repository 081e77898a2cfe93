"""A stand-alone Python module whose functions numba compiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varprop.derivations.printing.code import (
    function_name,
    integrals,
    jit_body,
    kinks,
    numeric,
    signature,
    used_parts,
)
from varprop.derivations.theorem import Derivation

_HEAD = '''"""Variance propagation formulas, compiled by numba. Arguments are numbers or NumPy arrays."""

import math

import numpy as np
from numba import njit, vectorize
'''

_HELPERS = {
    "erf": '''

@vectorize
def erf(x):
    """Error function."""
    return math.erf(x)
''',
    "erfc": '''

@vectorize
def erfc(x):
    """Complementary error function."""
    return math.erfc(x)
''',
    "ndtr": '''

@vectorize
def ndtr(x):
    """Normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
''',
    "erfcx": '''

@vectorize
def erfcx(x):
    """exp(x^2) erfc(x); beyond 25 its asymptotic series."""
    if x < 25.0:
        return math.exp(x * x) * math.erfc(x)
    y = 1.0 / (2.0 * x * x)
    series = 1.0 - y * (1.0 - 3.0 * y * (1.0 - 5.0 * y * (1.0 - 7.0 * y * (1.0 - 9.0 * y))))
    return series / (x * math.sqrt(math.pi))
''',
    "erfcx_tail": '''

@vectorize
def erfcx_tail(x):
    """erfcx(x) - 1 + 2 x / sqrt(pi), by its Taylor series below 1 where these terms cancel."""
    if x >= 1.0:
        return erfcx(x) - 1.0 + 2.0 * x / math.sqrt(math.pi)
    total, power = 0.0, x * x
    for k in range(2, 50):
        total += power / math.gamma(0.5 * k + 1.0)
        power *= -x
    return total
''',
    "gammainc": '''

@vectorize
def gammainc(s, x):
    """Regularised lower incomplete gamma function for s = 3/2, 5/2, ..."""
    if x < s + 1.0:
        term = math.exp(s * math.log(x) - x - math.lgamma(s + 1.0))
        total, k = term, 0
        while term > 1e-17 * total:
            k += 1
            term *= x / (s + k)
            total += term
        return total
    upper = math.erfc(math.sqrt(x))
    for k in range(int(s)):
        upper += math.exp((k + 0.5) * math.log(x) - x - math.lgamma(k + 1.5))
    return 1.0 - upper
''',
    "digamma": '''

@vectorize
def digamma(x):
    """Slope of log Gamma, x > 0: recurrence, then the asymptotic series."""
    total = 0.0
    while x < 12.0:
        total -= 1.0 / x
        x += 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * 691 / 32760)))))
    return total + math.log(x) - 0.5 / x - series
''',
    "trigamma": '''

@vectorize
def trigamma(x):
    """Second derivative of log Gamma, x > 0: recurrence, then the asymptotic series."""
    total = 0.0
    while x < 12.0:
        total += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * (5 / 66 - y * 691 / 2730)))))
    return total + 1.0 / x + 0.5 * y + series / x
''',
    "gaussian_mean_square": '''

NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)


@njit
def gaussian_mean_square(function, q, kinks):
    """E[function(z)^2], z ~ N(0, q), for a function of length 1: Gauss-Legendre rules on panels between kinks."""
    reach = 12.0 * math.sqrt(q)
    total, low = 0.0, -reach
    for part in range(len(kinks) + 1):
        high = min(max(kinks[part], low), reach) if part < len(kinks) else reach
        panels = math.ceil((high - low) / min(math.sqrt(q), 1.0))
        for i in range(panels):
            half, panel = 0.5 * (high - low) / panels, 0.0  # a sum of sums: a single one rounds too often
            for k in range(len(NODES)):
                z = low + half * (2 * i + 1 + NODES[k])
                panel += half * WEIGHTS[k] * function(z) ** 2 * math.exp(-z * z / (2.0 * q))
            total += panel
        low = high
    return total / math.sqrt(2.0 * math.pi * q)
''',
}


def render(derivations: Sequence[Derivation]) -> str:
    """Return a module with a compiled function for each result."""
    text = "".join(f"\n\n{block}\n" for one in derivations for block in _blocks(one, alone=len(derivations) == 1))
    return _HEAD + used_parts(text, _HELPERS) + text


def _blocks(derivation: Derivation, *, alone: bool) -> Iterator[str]:
    for name, result in derivation.results.items():
        body = "\n".join("    " * (depth + 1) + line for depth, line in jit_body(numeric(result, derivation)))
        head = f"def {function_name(derivation, name, alone=alone)}({signature(derivation, result)}):"
        yield f'@njit\n{head}\n    """{result.meaning}."""\n{body}'
    for name, function in integrals(derivation):
        inside = function_name(derivation, function, alone=alone)
        places = f"np.array({kinks(derivation)})" if kinks(derivation) else "np.empty(0)"
        yield (
            f"@vectorize\ndef {function_name(derivation, name, alone=alone)}(q):\n"
            '    """By quadrature: there is no closed form."""\n'
            f"    return gaussian_mean_square({inside}, q, {places})"
        )
