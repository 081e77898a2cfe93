"""Levels where two paths meet: the law of a point's second moment behind a sum.

Terms that are Gaussian given the layers before them make a Gaussian sum, of level l = s_1 l_1 + s_2 l_2 for terms of
shares s_k in the expected second moment. Levels of paths that parted somewhere know of one another: given that of the
last node that both come from they are independent, and so their joint law is the sum over its nodes.

On the way back, given the sum z, a term is z_k = r_k z + a rest that knows nothing of what comes later, r_k = s_k l_k /
l, so that with D = |dL/dz|^2 and A_k = z_k dL/dz

    E[A_k^2 / q_k - D | z] = r_k (A^2 / q - D).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.level_law import Law, Returned, of_mean_one, spread_out

Array = NDArray[np.float64]

_RARE = 1e-9  # mass of a node below which what it goes with is not known


@dataclass(frozen=True)
class Meeting:
    """From the levels of two terms to those of their sum.

    Attributes
    ----------
    plain, shared
        For each term matrices of shape (its nodes, nodes of the sum): the law of the sum's level given the term's, and
        the same times the term's share in the sum.
    correlation
        Of the terms' levels.
    """

    plain: tuple[Array, Array]
    shared: tuple[Array, Array]
    correlation: float


def meet(laws: tuple[Law, Law], joint: Array, shares: tuple[float, float]) -> tuple[Law, Meeting]:
    """Return the law of a sum's levels.

    Parameters
    ----------
    laws
        Of the terms.
    joint
        Weights of pairs of their nodes, shape (nodes of the first, nodes of the second).
    shares
        Of the terms in the expected second moment.
    """
    first, second = (share * law.levels for share, law in zip(shares, laws, strict=True))
    levels = first[:, None] + second
    logs = np.log(np.maximum(levels, 1e-300))
    nodes, matrix = spread_out(logs.reshape(-1, 1), joint.reshape(-1, 1))
    to_nodes = matrix(np.ones((logs.size, 1))).reshape(*logs.shape, -1)
    law = of_mean_one(nodes, np.einsum("ij,ijn->n", joint, to_nodes))
    given = _given(joint), _given(joint.T)
    plain = np.einsum("ij,ijn->in", given[0], to_nodes), np.einsum("ji,ijn->jn", given[1], to_nodes)
    ratios = first[:, None] / levels, second / levels
    shared = (
        np.einsum("ij,ij,ijn->in", given[0], ratios[0], to_nodes),
        np.einsum("ji,ij,ijn->jn", given[1], ratios[1], to_nodes),
    )
    apart = [one.levels - one.mean(one.levels) for one in laws]
    size = np.sqrt(np.prod([one.mean(field**2) for one, field in zip(laws, apart, strict=True)]))
    correlation = float(apart[0] @ joint @ apart[1] / size) if size > 0.0 else 0.0
    return law, Meeting(plain, shared, correlation)


def parted(meeting: Meeting, term: int, found: Returned) -> Returned:
    """Return the gradient at a sum as a function of the level of one of the terms."""
    return Returned(meeting.plain[term] @ found.square, meeting.shared[term] @ found.excess)


def _given(joint: Array) -> Array:
    """Return the law of the second number given the first; where that hardly happens, the second's own."""
    own, other = joint.sum(axis=1, keepdims=True), joint.sum(axis=0)
    known = np.abs(own) > _RARE
    return np.where(known, joint / np.where(known, own, 1.0), other)
