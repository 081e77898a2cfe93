"""A tile of a matrix product, kept in vector registers while its terms are added up, in LLVM's own instructions.

The compiler makes vector instructions of loops over neighbours, but would store their sums after every few terms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from varprop.simulator.jit import FEATURES

ROWS, VECTORS, BYTES = (8, 2, 64) if FEATURES.get("avx512f") else (6, 2, 32)
"""Rows of a tile, vectors in a row, and bytes of a vector: the sums leave a few registers for what is read."""

BYTE, WORD, PLACE = ir.IntType(8), ir.IntType(32), ir.IntType(64)
TO_READ = WORD(0), WORD(3), WORD(1)
"""Says of a fetch: for reading, into the nearest cache, data."""

FUSED = ("contract",)
MATRICES = (0, 5, 8)


def _tile(ahead: bool) -> Callable[..., None]:
    """Return a function for compiled code; `ahead` also fetches what the next tile to the right will read."""

    @intrinsic
    def write(
        context: Any,
        left: Any,
        first: Any,
        row_step: Any,
        term_step: Any,
        terms: Any,
        right: Any,
        place: Any,
        right_step: Any,
        out: Any,
        to: Any,
        out_step: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        at = types.int64
        signature = types.void(left, at, at, at, at, right, at, at, out, at, at)
        return signature, partial(_generate, ahead)

    return write


def _generate(ahead: bool, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Write the instructions: one loop over the terms."""
    number, bits = context.get_value_type(signature.args[0].dtype), signature.args[0].dtype.bitwidth
    lanes, align = 8 * BYTES // bits, bits // 8
    vector, broadcast = ir.VectorType(number, lanes), ir.VectorType(WORD, lanes)([0] * lanes)
    left, right, out = (context.make_array(signature.args[at])(context, builder, arguments[at]).data for at in MATRICES)
    _, first, row_step, term_step, terms, _, place, right_step, _, to, out_step = arguments

    def neighbours(base: Any, at: Any, vector_index: int) -> Any:
        pointer = builder.gep(base, [builder.add(at, PLACE(vector_index * lanes))])
        return builder.bitcast(pointer, vector.as_pointer())

    rows = [builder.gep(left, [builder.add(first, builder.mul(row_step, PLACE(i)))]) for i in range(ROWS)]
    right = builder.gep(right, [place])
    before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(body)

    builder.position_at_end(body)
    _, weight_at, right_at = counters = [builder.phi(PLACE) for _ in range(3)]
    sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
    read = [builder.load(neighbours(right, right_at, j), align=align) for j in range(VECTORS)]
    for j in range(VECTORS if ahead else 0):
        instruction = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), WORD, WORD, WORD])
        function: Any = cgutils.get_or_insert_function
        fetch = function(builder.module, instruction, "llvm.prefetch.p0i8")
        pointer = builder.bitcast(neighbours(right, right_at, VECTORS + j), BYTE.as_pointer())
        builder.call(fetch, [pointer, *TO_READ])
    added = []
    for row, totals in zip(rows, sums, strict=True):
        lane = builder.insert_element(vector(ir.Undefined), builder.load(builder.gep(row, [weight_at])), WORD(0))
        weight = builder.shuffle_vector(lane, vector(ir.Undefined), broadcast)
        products = [builder.fmul(weight, numbers, flags=FUSED) for numbers in read]
        added.append([builder.fadd(*pair, flags=FUSED) for pair in zip(totals, products, strict=True)])
    steps = (PLACE(1), term_step, right_step)
    counted = [builder.add(index, step) for index, step in zip(counters, steps, strict=True)]
    for index, found in zip((*counters, *chain(*sums)), (*counted, *chain(*added)), strict=True):
        index.add_incoming(index.type(None), before)
        index.add_incoming(found, body)
    builder.cbranch(builder.icmp_signed("<", counted[0], terms), body, after)

    builder.position_at_end(after)
    for i, totals in enumerate(added):
        at = builder.add(to, builder.mul(out_step, PLACE(i)))
        for j, total in enumerate(totals):
            builder.store(total, neighbours(out, at, j), align=align)
    return context.get_dummy_value()


write_tile, write_tile_ahead = _tile(False), _tile(True)
"""Called as write_tile(left, first, row_step, term_step, terms, right, place, right_step, out, to, out_step): writes

    sum_k left[first + i row_step + k term_step] right[place + k right_step + j]    to    out[to + i out_step + j]

for all i below `ROWS`, all j of `VECTORS` vectors, and k from 0 to terms - 1 > 0, in this order; a product and the sum
that it goes into are rounded together. Arrays are flat and of one type, the others places and steps in them.
"""
