"""Gaussian weight matrices that are never drawn: only their action on the vectors they meet.

W, of shape (m, n) with i.i.d. N(0, std^2) entries, meets the columns of X (n, p) forward. With X = Q R and orthonormal
columns in Q, W X = std G R with G = W Q / std i.i.d. N(0, 1): as many draws as numbers in the output. Backward, given
W X and all that came after, W off the span of X is still as it was drawn, and independent of the cotangents D (m, p):

    W^T D = Q (std G)^T D + (I - Q Q^T) W'^T D,    W' a fresh draw,

and W'^T D is a Gaussian matrix once more, std H S with S^T S = D^T D and H (n, p) i.i.d. N(0, 1). The law of forward,
backward and both together is that of drawing W; p (m + n) draws and p^2 (m + n) products stand for m n and p m n.

Q is never formed. R is the Cholesky factor of X^T X with pivoting; a column whose part off the others' span is below
`RANK` of its own length, squared, is taken to lie in that span (equal samples, dead units, p > n).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import kernel
from varprop.simulator.montecarlo.draws import COMPLEMENT, WEIGHT, Draws
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.sums import row_product, row_square
from varprop.simulator.network import Conv2d, Linear, Network
from varprop.simulator.weight_law import weight_law

Array = NDArray[np.floating]
Small = NDArray[np.float64]
Exponents = NDArray[np.int64]
Integers = NDArray[np.int64]

RANK = 1e-13
"""Squared sine of the angle below which a vector lies in a span: float64's Gram matrices know it to 1e-16 times a small
factor, and float32 vectors only to 1e-14."""

NORMAL = 110
"""Price of a normal draw, in multiply-adds of a float32 matrix product (1.8 ns against 1/60 ns)."""

PASSES = 110
"""Price, in the same unit, of a number's conversions to float64 and of the passes over it."""

SOLVING = 60
"""Price of a product in the small triangular systems."""

OVERHEAD = 50_000
"""Price of a layer's small calls, which count where layers are tiny."""


def unseen_layers(network: Network, batch: int) -> frozenset[int]:
    """Return the layers for which acting without weights is exact (independent Gaussian weights) and cheaper.

    Drawing costs m n draws and 2 p m n multiply-adds for both directions; acting without weights p (m + n) draws, about
    7 p^2 (m + n) multiply-adds (in float64 but for two products) and systems of size p.
    """
    found = []
    for index, node in enumerate(network.nodes):
        if not isinstance(node.operation, Conv2d | Linear):
            continue
        if weight_law(node, network.framework).distribution != "normal":
            continue
        groups = node.operation.groups if isinstance(node.operation, Conv2d) else 1
        n, m = node.fan_in or 0, node.shape[0] // groups
        p = batch * int(np.prod(node.shape[1:]))
        drawn = groups * m * n * (NORMAL + 2 * p)
        unseen = groups * (p * (m + n) * (NORMAL + PASSES + 7 * p) + SOLVING * p**3) + OVERHEAD
        if unseen < drawn:
            found.append(index)
    return frozenset(found)


@dataclass(slots=True)
class Unseen:
    """One layer's Gaussian matrices, one a trial and group; matrices of vectors have shape (trials * groups, ., p)."""

    std: float
    bias: Array | None
    draws: Draws
    index: int
    pool: Pool
    inputs: Array = field(init=False)
    """X, kept until the way back."""
    _action: Array = field(init=False)
    """G; of a single vector W x, which needs memory of its own only where a bias is added to it."""
    _factor: Small = field(init=False)
    _pivots: Integers = field(init=False)
    _rank: Integers = field(init=False)

    def product(self, x: Array, out: Array) -> None:
        """Write W X."""
        single = x.shape[2] == 1
        self.inputs, self._action = x, out
        if not single or self.bias is not None:
            self._action = self.pool.take(out.shape, lasting=True)
        self.draws.normals(self.index, WEIGHT, self._action)
        if single:
            times_length(x.reshape(-1), len(x), self.std, self._action.reshape(-1))
            if self._action is not out:
                out[...] = self._action
            return
        inputs = self._double(x)
        self._factor, self._pivots, self._rank = factorize(inner(inputs, inputs), RANK)
        self.pool.give(inputs)
        np.matmul(self._action, (self.std * self._factor).astype(x.dtype), out=out)

    def transposed_product(self, d: Array, out: Array, shift: Exponents) -> None:
        """Write W^T D, given W X, which without a bias is the output times 2**`shift`."""
        if out.shape[2] == 1:
            self.draws.normals(self.index, COMPLEMENT, out)
            x, action = self.inputs.reshape(-1), self._action.reshape(-1)
            if self.bias is not None:
                shift = np.zeros_like(shift)
                self.pool.give(self._action)
            complete(x, action, shift, d.reshape(-1), len(out), self.std, out.reshape(-1))
            return
        cotangents = self._double(d)
        factor, _, _ = factorize(inner(cotangents, cotangents), RANK)
        fresh = self.pool.take(out.shape)
        self.draws.normals(self.index, COMPLEMENT, fresh)
        np.matmul(fresh, (self.std * factor).astype(out.dtype), out=out)
        self.pool.give(fresh)
        action = self._double(self._action)
        self.pool.give(self._action)
        known = self.std * inner(action, cotangents)
        self.pool.give(action)
        self.pool.give(cotangents)
        inputs, drawn = self._double(self.inputs), self._double(out)
        solution = in_span(self._factor, self._pivots, self._rank, known, inner(inputs, drawn))
        add_rounded(out.reshape(-1), np.matmul(inputs, solution, out=drawn).reshape(-1))
        self.pool.give(inputs)
        self.pool.give(drawn)

    def _double(self, x: Array) -> Array:
        copy = self.pool.take(x.shape, np.float64)
        copy[...] = x
        return copy


def inner(x: Array, y: Array) -> Small:
    """Return X^T Y of every pair of float64 matrices."""
    product: Small = np.matmul(x.swapaxes(1, 2), y)
    return product


@kernel
def add_rounded(total: Array, term: Array) -> None:
    """Add numbers to others of less precision, rounded once."""
    for k in range(total.size):
        total[k] = total.dtype.type(np.float64(total[k]) + term[k])


@kernel
def times_length(x: Array, stack: int, std: float, out: Array) -> None:
    """Overwrite g, the action of W on x / |x| over std, with std |x| g = W x, for the single vectors of a stack."""
    n, m = np.uint64(x.size // stack), np.uint64(out.size // stack)
    for s in range(stack):
        first, start = np.uint64(s) * n, np.uint64(s) * m
        factor = x.dtype.type(std * np.sqrt(row_square(x, first, first + n)))
        for i in range(start, start + m):
            out[i] *= factor


@kernel
def complete(x: Array, product: Array, shift: Exponents, d: Array, stack: int, std: float, out: Array) -> None:
    """Overwrite fresh normals with W^T d, given W x, for the single vectors of a stack.

    With the fresh h that is std |d| (h - x (x . h) / |x|^2) + x (W x . d) / |x|^2. W x is `product` * 2**`shift`, which
    has a number for every trial.
    """
    n, m = np.uint64(x.size // stack), np.uint64(d.size // stack)
    number = x.dtype.type
    for s in range(stack):
        first, start = np.uint64(s) * n, np.uint64(s) * m
        square, fresh = row_square(x, first, first + n), std * np.sqrt(row_square(d, start, start + m))
        along = 0.0
        if square > 0.0:
            power = np.ldexp(1.0, shift[s * len(shift) // stack])
            along = row_product(product, d, start, start + m) * power - fresh * row_product(x, out, first, first + n)
            along /= square
        scale, known = number(fresh), number(along)
        for i in range(first, first + n):
            out[i] = scale * out[i] + known * x[i]


@kernel
def factorize(gram: Small, tolerance: float) -> tuple[Small, Integers, Integers]:
    """Return factors R with R^T R = gram, by Cholesky's method with pivoting; a stack of matrices.

    Returns
    -------
    factor
        Shape of `gram`, columns in its order, rows in the order of pivots; rows beyond the rank are zero.
    pivots
        Shape (stack, p): row k of the factor is zero in the columns of earlier pivots.
    rank
        Shape (stack,): pivots until what is left of every diagonal entry is at most `tolerance` of what it was.
    """
    stack, p, _ = gram.shape
    factor, pivots, rank = np.zeros(gram.shape), np.empty((stack, p), np.int64), np.empty(stack, np.int64)
    left = np.empty(p)
    for s in range(stack):
        r, order = factor[s], pivots[s]
        for j in range(p):
            order[j], left[j] = j, gram[s, j, j]
        rank[s] = p
        for k in range(p):
            best, place = tolerance, -1
            for j in range(k, p):
                column = order[j]
                if left[column] > best * gram[s, column, column]:
                    best, place = left[column] / gram[s, column, column], j
            if place < 0:
                rank[s] = k
                break
            order[k], order[place] = order[place], order[k]
            pivot = order[k]
            r[k, pivot] = np.sqrt(left[pivot])
            for j in range(k + 1, p):
                column = order[j]
                value = gram[s, pivot, column]
                for i in range(k):
                    value -= r[i, pivot] * r[i, column]
                r[k, column] = value / r[k, pivot]
                left[column] -= r[k, column] ** 2
    return factor, pivots, rank


@kernel
def in_span(factor: Small, pivots: Integers, rank: Integers, known: Small, found: Small) -> Small:
    """Return M with X M = Q (`known` - Q^T V), given found = X^T V and X = Q R: what the span of X adds to V.

    M = R^-1 (known - R^-T found) on the pivots' rows, 0 elsewhere.
    """
    stack, p, columns = found.shape
    out = np.zeros(found.shape)
    # A row is worked on in memory of its own: loops within one array are not turned into vector instructions.
    right, row = np.empty((p, columns)), np.empty(columns)
    for s in range(stack):
        r, order = factor[s], pivots[s]
        for k in range(rank[s]):
            pivot = order[k]
            row[:] = found[s, pivot]
            for i in range(k):
                entry = r[i, pivot]
                for j in range(columns):
                    row[j] -= entry * right[i, j]
            for j in range(columns):
                right[k, j] = row[j] / r[k, pivot]
        for k in range(rank[s]):
            right[k] = known[s, k] - right[k]
        for k in range(rank[s] - 1, -1, -1):
            row[:] = right[k]
            for i in range(k + 1, rank[s]):
                entry, other = r[k, order[i]], order[i]
                for j in range(columns):
                    row[j] -= entry * out[s, other, j]
            for j in range(columns):
                out[s, order[k], j] = row[j] / r[k, order[k]]
    return out
