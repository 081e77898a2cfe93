"""A stand-alone Python module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varprop.derivations.printing.code import (
    array_body,
    function_name,
    integrals,
    kinks,
    numeric,
    signature,
    used_parts,
)
from varprop.derivations.theorem import Derivation

_HEAD = '''"""Variance propagation formulas. Arguments are numbers or NumPy arrays."""

import numpy as np
import scipy
'''

_HELPERS = {
    "erfcx_tail": '''

def erfcx_tail(x):
    """erfcx(x) - 1 + 2 x / sqrt(pi), by its Taylor series below 1 where these terms cancel."""
    x = np.asarray(x, dtype=float)
    k = np.arange(2, 50)
    small = np.minimum(x, 1.0)[..., None]
    series = np.sum((-small) ** k / scipy.special.gamma(k / 2 + 1), axis=-1)
    return np.where(x < 1, series, scipy.special.erfcx(x) - 1 + 2 * x / np.sqrt(np.pi))
''',
    "gaussian_mean": '''

def gaussian_mean(function, q, kinks):
    """E[function(z)], z ~ N(0, q), for a function of length 1: Gauss-Legendre rules on panels between kinks."""
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def one(q):
        deviation = np.sqrt(q)
        reach = 12 * deviation
        panels = 2 * int(np.ceil(reach / min(deviation, 1.0)))
        edges = np.union1d(np.linspace(-reach, reach, panels + 1), [kink for kink in kinks if abs(kink) < reach])
        half = np.diff(edges)[:, None] / 2
        z = edges[:-1, None] + half * (1 + nodes)
        return np.sum(half * weights * function(z) * np.exp(-z * z / (2 * q))) / np.sqrt(2 * np.pi * q)

    q = np.asarray(q, dtype=float)
    return np.array([one(each) for each in q.ravel()]).reshape(q.shape)
''',
}


def render(derivations: Sequence[Derivation]) -> str:
    """Return a module with a function for each result."""
    text = "".join(_functions(one, alone=len(derivations) == 1) for one in derivations)
    return _HEAD + used_parts(text, _HELPERS) + text


def _functions(derivation: Derivation, *, alone: bool) -> str:
    return "".join(f"\n\n{line}\n" for line in _blocks(derivation, alone=alone))


def _blocks(derivation: Derivation, *, alone: bool) -> Iterator[str]:
    for name, result in derivation.results.items():
        body = "\n".join("    " * (depth + 1) + line for depth, line in array_body(numeric(result, derivation)))
        title = f'    """{result.meaning}."""'
        yield f"def {function_name(derivation, name, alone=alone)}({signature(derivation, result)}):\n{title}\n{body}"
    for name, function in integrals(derivation):
        inside = function_name(derivation, function, alone=alone)
        yield (
            f"def {function_name(derivation, name, alone=alone)}(q):\n"
            f'    """By quadrature: there is no closed form."""\n'
            f"    return gaussian_mean(lambda z: {inside}(z) ** 2, q, {kinks(derivation)})"
        )
