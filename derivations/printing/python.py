"""A stand-alone Python module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varprop.derivations.printing.code import array_body, function_name, integrals, kinks, numeric, used_arguments
from varprop.derivations.theorem import Derivation

_HEAD = '''"""Variance propagation formulas. Arguments are numbers or NumPy arrays."""

import numpy as np
import scipy
'''

_TAIL = '''

def erfcx_tail(x):
    """erfcx(x) - 1 + 2 x / sqrt(pi), by its Taylor series below 1 where these terms cancel."""
    x = np.asarray(x, dtype=float)
    k = np.arange(2, 50)
    small = np.minimum(x, 1.0)[..., None]
    series = np.sum((-small) ** k / scipy.special.gamma(k / 2 + 1), axis=-1)
    return np.where(x < 1, series, scipy.special.erfcx(x) - 1 + 2 * x / np.sqrt(np.pi))
'''

_QUADRATURE = '''

def gaussian_mean(function, q, kinks=()):
    """E[function(z)], z ~ N(0, q), for a function of length 1: Gauss-Legendre rules on panels between kinks."""
    deviation = float(np.sqrt(q))
    reach = 12 * deviation
    panels = 2 * int(np.ceil(reach / min(deviation, 1.0)))
    edges = np.union1d(np.linspace(-reach, reach, panels + 1), [kink for kink in kinks if abs(kink) < reach])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = np.diff(edges)[:, None] / 2
    z = edges[:-1, None] + half * (1 + nodes)
    return float(np.sum(half * weights * function(z) * np.exp(-z * z / (2 * q))) / np.sqrt(2 * np.pi * q))
'''


def render(derivations: Sequence[Derivation]) -> str:
    """Return a module with a function for each result."""
    text = "".join(_functions(one, alone=len(derivations) == 1) for one in derivations)
    extras = (_TAIL if "erfcx_tail(" in text else "") + (_QUADRATURE if "gaussian_mean(" in text else "")
    return _HEAD + extras + text


def _functions(derivation: Derivation, *, alone: bool) -> str:
    return "".join(f"\n\n{line}\n" for line in _blocks(derivation, alone=alone))


def _blocks(derivation: Derivation, *, alone: bool) -> Iterator[str]:
    for name, result in derivation.results.items():
        arguments = ", ".join(
            f"{symbol}={derivation.defaults[symbol]}" if symbol in derivation.defaults else str(symbol)
            for symbol in used_arguments(result)
        )
        body = "\n".join("    " * (depth + 1) + line for depth, line in array_body(numeric(result, derivation)))
        title = f'    """{result.meaning}."""'
        yield f"def {function_name(derivation, name, alone=alone)}({arguments}):\n{title}\n{body}"
    for name, function in integrals(derivation):
        inside = function_name(derivation, function, alone=alone)
        yield (
            f"def {function_name(derivation, name, alone=alone)}(q):\n"
            f'    """By quadrature: there is no closed form."""\n'
            f"    return gaussian_mean(lambda z: {inside}(z) ** 2, q, {kinks(derivation)})"
        )
