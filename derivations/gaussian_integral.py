r"""Gaussian integrals of sums of z^n exp(b z + c z^2) over an interval, in closed form.

Completing the square makes exp(b z + c z^2) times the density of N(0, q) a multiple of that of N(b s, s) with
s = q / (1 - 2 c q). With A(k) the product's value at k, integration by parts gives the truncated moments

    N_n = b s N_{n-1} + (n - 1) s N_{n-2} + s (l^{n-1} A(l) - h^{n-1} A(h))

over (l, h), and N_0 is a difference of error functions.
"""

from __future__ import annotations

import sympy as sp

from varprop.derivations.gaussian import density, q, z
from varprop.derivations.special_functions import erfcx


def gaussian_integral(function: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Expr | None:
    """Return the integral of a function of z times the density of N(0, q) from `low` to `high`.

    Returns
    -------
    Expr or None
        A function of q; None where the function is no sum of z^n exp(b z + c z^2), c <= 0. Sines and cosines are such
        sums over the whole line.

    Examples
    --------
    >>> gaussian_integral(sp.exp(z), -sp.oo, sp.oo)
    exp(q/2)
    >>> gaussian_integral(z**4, 0, sp.oo)
    3*q**2/2
    """
    if (low, high) == (-sp.oo, sp.oo):
        function = function.rewrite((sp.sin, sp.cos), sp.exp)
    low, high, total = sp.sympify(low), sp.sympify(high), sp.S.Zero
    for term in sp.Add.make_args(sp.expand(function)):
        factor, rest = term.as_independent(z, as_Add=False)
        power, exponent = sp.S.Zero, sp.S.Zero
        for part in sp.Mul.make_args(rest):
            if isinstance(part, sp.exp):
                exponent += part.args[0]
            elif part.is_polynomial(z):
                power += sp.degree(part, z)  # expanded, so a power of z or 1
            else:
                return None
        if not exponent.is_polynomial(z) or sp.degree(exponent, z) > 2:
            return None
        a, b, c = (exponent.coeff(z, n) for n in range(3))
        if not c.is_nonpositive:
            return None
        total += factor * sp.exp(a) * _moment(int(power), b, c, low, high)
    return sp.powsimp(sp.expand(total))


def _moment(n: int, b: sp.Expr, c: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Expr:
    s = q / (1 - 2 * c * q)

    def edge(k: sp.Expr, power: int) -> sp.Expr:
        return sp.S.Zero if k.is_infinite else k**power * density(k, q) * sp.exp(b * k + c * k**2)

    moments = [_mass(b, s, low, high)]
    for k in range(1, n + 1):
        earlier = (k - 1) * s * moments[k - 2] if k > 1 else 0
        moments.append(b * s * moments[k - 1] + earlier + s * (edge(low, k - 1) - edge(high, k - 1)))
    return moments[n]


def _mass(b: sp.Expr, s: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Expr:
    scale, root, mean = sp.sqrt(s / q) * sp.exp(b**2 * s / 2), sp.sqrt(2 * s), b * s
    if low.is_infinite and high.is_infinite:
        return scale
    if low.is_infinite or high.is_infinite:
        end, sign = (high, 1) if low.is_infinite else (low, -1)
        distance = sign * (mean - end)
        if (sign * b).is_positive and (sign * end).is_nonpositive:
            # exp(b^2 s / 2) overflows where erfc(distance / root) vanishes, their product does not.
            return sp.sqrt(s / q) * erfcx(distance / root) * sp.exp(b * end - end**2 / (2 * s)) / 2
        return scale * sp.erfc(distance / root) / 2
    return scale * (sp.erf((high - mean) / root) - sp.erf((low - mean) / root)) / 2
