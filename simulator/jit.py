"""The one place that says how functions are compiled.

Kernels run without the interpreter's lock, are cached on disk and keep IEEE arithmetic. The exceptions are a `step`,
whose products and sums may be fused, and a `reduction`, whose sums may be regrouped too: that is safe because both are
fixed in the compiled code, so the result does not depend on threads, and because nothing else about infinities, NaN or
signed zeros is relaxed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numba.extending
import numpy as np
from llvmlite import binding
from numba.core import event
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
Array = NDArray[np.floating]

njit: Any = numba.njit
"""With all of its options, of which some have no types."""

FEATURES = binding.get_host_cpu_features()
if numba.config.CPU_FEATURES is None and FEATURES.get("avx512f"):  # type: ignore[attr-defined]
    # The compiler would use half of a vector, for the sake of old processors' clocks; products beside the loops use
    # whole ones in any case. Draws take a fifth less time so, a MobileNetV2 trial a twentieth.
    numba.config.CPU_FEATURES = FEATURES.flatten() + ",-prefer-256-bit"  # type: ignore[attr-defined]

PIECE = 2**14
"""Numbers that an elementwise function takes at a time."""


def _named(dispatcher: Callable[P, R], function: Callable[P, R]) -> Callable[P, R]:
    """Name a compiled function by what it is made of, for the cache on disk of those that it is compiled into.

    Numba would name it at random where it is a free variable, and compile these again in every process.
    """
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    parts = [getattr(cell, "py_func", cell) for cell in cells]
    names = [f"{part.__module__}.{part.__qualname__}" if callable(part) else repr(part) for part in (function, *parts)]
    dispatcher._set_uuid(" ".join(names))  # type: ignore[attr-defined]
    return dispatcher


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of arrays and scalars on its first call."""
    return _named(njit(nogil=True, cache=True, error_model="numpy")(function), function)


def step(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a part of kernels into each of them: a call with arrays costs as much as the work on a short row.

    A product and the sum that it goes into may be rounded together. It allocates nothing, and so keeps no books on who
    holds an array: with a branch in it they would take as long as a short row.
    """
    policy = njit(nogil=True, cache=True, error_model="numpy", forceinline=True, fastmath={"contract"}, _nrt=False)
    return _named(policy(function), function)


def reduction(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that sums long rows, with leave to regroup the sums into vector lanes and fuse products in."""
    leave: Any = {"reassoc": True, "contract": True}  # a set would have an order of its own in every process
    policy = njit(nogil=True, cache=True, error_model="numpy", forceinline=True, fastmath=leave)
    return _named(policy(function), function)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Let compiled code call a plain function, given to it as a free variable; the cache on disk knows it by name."""
    return numba.extending.register_jitable(function)


@cache
def elementwise(
    function: Callable[[float, float], float], dtype: np.dtype[np.floating]
) -> Callable[[Array, float, Array], None]:
    """Compile a scalar function of (z, parameter) into one of contiguous arrays: called as (z, parameter, out)."""
    policy = numba.vectorize([f"{dtype.name}({dtype.name}, {dtype.name})"], cache=True)  # type: ignore[no-untyped-call]
    compiled = cast(Callable[..., Array], policy(function))

    def run(z: Array, parameter: float, out: Array) -> None:
        # The parameter comes as an array, a piece at a time: vector instructions are only for operands of one stride.
        constant = np.full(min(PIECE, z.size), parameter, dtype)
        source, target = z.reshape(-1), out.reshape(-1)
        for start in range(0, z.size, PIECE):
            piece = source[start : start + PIECE]
            compiled(piece, constant[: piece.size], out=target[start : start + PIECE])

    return run


class CompilationWatch(event.Listener):
    """Calls `announce` once, when the first kernel is compiled that the cache does not hold."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._silent = False

    def on_start(self, event: event.Event) -> None:
        if not self._silent:
            self._silent = True
            self._announce()

    def on_end(self, event: event.Event) -> None:
        """Nothing to do; the base class asks for it."""
