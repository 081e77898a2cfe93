"""What gradients through a shortcut and through the branch beside it have in common: both oppose the sum.

Of a sum z = s + b of n channels let b = A s + r be what a branch makes of s, with A random and r nothing that is linear
in s. Later normalisations leave the gradient g at z opposed to z (`opposition`), E[g g'] ~ 1 - 2 o S / tr S with the
covariance S of z over the data. In S there is cov(s, b) = C A' for C = cov(s), so that g knows A, and of what comes
back to s through the branch, A'g, over A with E A'A = a^2

    E[A'g g'] + E[g g'A] = -2 (2 o / tr S) a^2 C,        a^2 tr C = L tr cov(b),

L being the linear share of the branch's variance: (E phi')^2 Var y / Var phi of every activation on the way, one of
normalisations and weights. The squares add up to less by 4 o L var(b) / (n var(z)) of E[g^2], and the opposition at s
is what the two ways have of it alone and twice o L var(b) / var(z), by size: all of o, if nothing but sums and weights
is on the way.

So far that is to first order in o. With T = (1 + w S)^-1, w = 2 o / tr S, it is (Stein, over the entries of A) -2 a^2 w
(tr T / n) tr(T C), where S has left 1 / (1 + 2 o alike) of both (`opposition.within`).

A gradient thus carries, from each sum on, o times the shares L as an opposition between the gradient there and itself:
E[g_c(x) h_c'(x')] ~ -2 o / n E[g^2] cov(z_c, y_c') / var(z) for the gradient h at y. On maps it has an entry for each
offset of x' from x, which every window spreads over its taps. Coherence R comes along, with the part that opposition
has of its mean: E[y phi' (phi - M)] / Var phi of it is left, and of that part L.

Slopes behind the sum know its terms by one another. At two points p, q integration by parts, as in `coherence`, gives

    E[phi'_p phi'_q s_c(p) b_c(q)] = 2 B var(s) var(b) / var(z)^2 * var(z) E phi'^2,

and s is a direction in which the branch makes more of b: of what one gradient of a channel has with itself that counts
as coherence R of two channels does, from the sum on. So B is added to R, and what lasts of it, to the opposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Size, here
from varprop.simulator.theory.opposition import added, spread
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """What a gradient and that at a later sum, which it came from, have in common.

    Attributes
    ----------
    arrived
        The gradient at the sum.
    unit
        By how much of its square products of the two are less for an opposition of one.
    opposition, coherence
        Between the two: see `Gradient`.
    straight
        Whether nothing but sums was on the way.
    """

    arrived: PairKernel
    unit: float
    opposition: Array
    coherence: Array
    straight: bool = True

    def share(self, share: float) -> Crossing:
        """Return it at a term of a sum, of so much of its variance."""
        return replace(self, opposition=self.opposition * share, coherence=self.coherence * share)

    def kept(self, share: float) -> Crossing:
        """Return it behind projections that leave a share of the gradient."""
        return replace(self.share(share), straight=False)

    def gated(self, linear: float, coherent: float) -> Crossing:
        """Return it before an activation, of which these shares are left of opposition and of coherence."""
        opposition = added(self.opposition * linear, self.coherence * (linear - coherent))
        return replace(self, opposition=opposition, coherence=self.coherence * coherent, straight=False)

    def under(self, loads: Array, size: Size) -> Crossing:
        """Return it before a window on a map of a size, given each tap's share in the signal."""
        opposition, coherence = (spread(part, loads, (1, 1), size) for part in (self.opposition, self.coherence))
        return replace(self, opposition=opposition, coherence=coherence, straight=False)


@dataclass(frozen=True)
class Crossed:
    """What the ways from later sums add where they meet, in units of ``exp(log_scale)``.

    Attributes
    ----------
    square
        To the gradient's second moment.
    opposition, coherence
        To it times this second moment.
    """

    square: float = 0.0
    opposition: Array = field(default_factory=lambda: np.zeros((1, 1)))
    coherence: Array = field(default_factory=lambda: np.zeros((1, 1)))


def met(ways: Sequence[Sequence[Crossing]], log_scale: float) -> tuple[Crossed, tuple[Crossing, ...]]:
    """Return what a gradient's ways back have in common where they meet, and what all together have with earlier ones.

    Parameters
    ----------
    ways
        Of each its crossings, that with the sum it met last at the end.
    """
    found = Crossed()
    for one, other in combinations(ways, 2):
        last = next(((a, b) for a in reversed(one) for b in other if a.arrived is b.arrived), None)
        if last is None or last[0].straight == last[1].straight:
            continue
        branch = last[0] if last[1].straight else last[1]
        size = 2.0 * branch.arrived.second_moment * float(np.exp(branch.arrived.log_scale - log_scale))
        found = Crossed(
            found.square - size * branch.unit * here(branch.opposition),
            added(found.opposition, size * branch.opposition),
            added(found.coherence, size * branch.coherence),
        )
    return found, tuple(reduce(_both, parts) for parts in _common(ways))


def _common(ways: Sequence[Sequence[Crossing]]) -> list[list[Crossing]]:
    """Return, sum by sum, the crossings of all ways with those that all of them led through, none of them straight."""
    sums = [crossing.arrived for crossing in ways[0]]
    parts = [[crossing for way in ways for crossing in way if crossing.arrived is arrived] for arrived in sums]
    return [found for found in parts if len(found) == len(ways) and not any(crossing.straight for crossing in found)]


def _both(one: Crossing, other: Crossing) -> Crossing:
    opposition, coherence = added(one.opposition, other.opposition), added(one.coherence, other.coherence)
    return replace(one, opposition=opposition, coherence=coherence)
