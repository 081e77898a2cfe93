"""A stand-alone C99 file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from varprop.derivations.printing.code import (
    c_body,
    function_name,
    integrals,
    kinks,
    numeric,
    used_arguments,
    used_parts,
)
from varprop.derivations.theorem import Derivation

_HEAD = """/* Variance propagation formulas. */
#define _GNU_SOURCE
#include <math.h>
"""

_HELPERS = {
    "erfcx": """
/* exp(x^2) erfc(x); beyond 25 its asymptotic series. */
static double erfcx(double x) {
    if (x < 25.0) return exp(x * x) * erfc(x);
    const double y = 1.0 / (2.0 * x * x);
    return (1.0 - y * (1.0 - 3.0 * y * (1.0 - 5.0 * y * (1.0 - 7.0 * y * (1.0 - 9.0 * y))))) / (x * sqrt(M_PI));
}
""",
    "erfcx_tail": """
/* erfcx(x) - 1 + 2 x / sqrt(pi), by its Taylor series below 1 where these terms cancel. */
static double erfcx_tail(double x) {
    if (x >= 1.0) return erfcx(x) - 1.0 + 2.0 * x / sqrt(M_PI);
    double sum = 0.0, power = x * x;
    for (int k = 2; k < 50; k++, power *= -x) sum += power / tgamma(0.5 * k + 1.0);
    return sum;
}
""",
    "gammainc": """
/* Regularised lower incomplete gamma function for s = 3/2, 5/2, ... */
static double gammainc(double s, double x) {
    if (x < s + 1.0) {
        double term = exp(s * log(x) - x - lgamma(s + 1.0)), sum = term;
        for (int k = 1; term > 1e-17 * sum; k++) sum += term *= x / (s + k);
        return sum;
    }
    double upper = erfc(sqrt(x));
    for (int k = 0; k < (int)s; k++) upper += exp((k + 0.5) * log(x) - x - lgamma(k + 1.5));
    return 1.0 - upper;
}
""",
    "polygamma": """
/* First (m = 0) and second (m = 1) derivative of log Gamma, x > 0: recurrence, then the asymptotic series. */
static double polygamma(int m, double x) {
    double sum = 0.0;
    for (; x < 12.0; x += 1.0) sum += m ? 1.0 / (x * x) : -1.0 / x;
    const double y = 1.0 / (x * x);
    if (m)
        return sum + 1.0 / x + y / 2.0
            + y / x * (1.0 / 6 - y * (1.0 / 30 - y * (1.0 / 42 - y * (1.0 / 30 - y * (5.0 / 66 - y * 691.0 / 2730)))));
    return sum + log(x) - 0.5 / x
        - y * (1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132 - y * 691.0 / 32760)))));
}
""",
    "gaussian_mean_square": """
/* E[f(z)^2] for z ~ N(0, q) and an f of length 1: Gauss-Legendre rules on panels between kinks, which are in order. */
static double gaussian_mean_square(double (*f)(double), double q, const double *kinks, int count) {
    static const double nodes[6] = {0.1252334085114689, 0.3678314989981802, 0.5873179542866175,
                                    0.7699026741943047, 0.9041172563704749, 0.9815606342467192};
    static const double weights[6] = {0.2491470458134028, 0.2334925365383548, 0.2031674267230659,
                                      0.1600783285433462, 0.1069393259953184, 0.0471753363865118};
    const double reach = 12.0 * sqrt(q);
    double sum = 0.0, low = -reach;
    for (int part = 0; part <= count; part++) {
        const double high = part < count ? fmin(fmax(kinks[part], low), reach) : reach;
        const long panels = (long)ceil((high - low) / fmin(sqrt(q), 1.0));
        for (long i = 0; i < panels; i++) {
            const double half = 0.5 * (high - low) / (double)panels, middle = low + half * (double)(2 * i + 1);
            double panel = 0.0; /* a sum of sums: a single one rounds too often */
            for (int k = 0; k < 12; k++) {
                const double z = middle + (k % 2 ? half : -half) * nodes[k / 2], value = f(z);
                panel += half * weights[k / 2] * value * value * exp(-z * z / (2.0 * q));
            }
            sum += panel;
        }
        low = high;
    }
    return sum / sqrt(2.0 * M_PI * q);
}
""",
}


def render(derivations: Sequence[Derivation]) -> str:
    """Return a file with a function for each result."""
    text = "".join(f"\n{block}\n" for one in derivations for block in _blocks(one, alone=len(derivations) == 1))
    return _HEAD + used_parts(text, _HELPERS) + text


def _blocks(derivation: Derivation, *, alone: bool) -> Iterator[str]:
    for name, result in derivation.results.items():
        arguments = ", ".join(f"double {symbol}" for symbol in used_arguments(result))
        body = "\n".join("    " * (depth + 1) + line for depth, line in c_body(numeric(result, derivation)))
        head = f"double {function_name(derivation, name, alone=alone)}({arguments})"
        yield f"/* {result.meaning} */\n{head} {{\n{body}\n}}"
    for name, function in integrals(derivation):
        inside = function_name(derivation, function, alone=alone)
        head = f"double {function_name(derivation, name, alone=alone)}(double q)"
        places = kinks(derivation)
        cuts = f"(const double[]){{{', '.join(map(repr, places))}}}" if places else "0"
        body = f"    return gaussian_mean_square({inside}, q, {cuts}, {len(places)});"
        yield f"/* by quadrature: there is no closed form */\n{head} {{\n{body}\n}}"
