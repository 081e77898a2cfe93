"""The memory that maps live in, kept from one block of trials to the next."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

from varprop.simulator.network import Shape

Array = NDArray[np.floating]
Memory = NDArray[np.uint8]

HUGE = 2**26
"""Bytes above which memory is not kept for reuse: maps of different sizes would pile up, and fresh pages, in large
units, cost little beside the passes over so large a map."""

LINE = 64
"""Bytes of a cache line, where arrays begin: vectors that straddle two lines take twice the time to load."""


class Pool:
    """Arrays for a thread: a block of trials asks for the same ones as the block before it.

    Lasting arrays, which wait for the way back, each keep memory of their own size. All others take the memory that
    was given back last, which the caches still hold; every piece of it is as large as the largest of them. Not for
    several threads at once. Measured: a MobileNetV2 trial at 32x32 takes a tenth more time with fresh arrays, and a
    twentieth more where every size has memory of its own.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._lasting: dict[int, list[Memory]] = {}
        self._passing: list[Memory] = []
        self._largest = 0
        self._starts: dict[int, int] = {}
        """Where arrays begin in each piece of memory."""
        self._lent: set[int] = set()
        """Which memory is out as lasting arrays."""

    def take(self, shape: Shape, dtype: DTypeLike | None = None, lasting: bool = False) -> Array:
        """Return an array with undefined values, of the pool's own type unless another is asked for."""
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        size = math.prod(shape) * wanted.itemsize
        memory = self._lasting_memory(size) if lasting else self._passing_memory(size)
        return np.ndarray(shape, wanted, memory, self._starts[id(memory)])

    def give(self, array: Array) -> None:
        """Take back an array that nobody reads any more; a huge one goes back to the system."""
        memory = array.base
        assert memory is not None
        free = self._passing
        if id(memory) in self._lent:
            self._lent.remove(id(memory))
            free = self._lasting.setdefault(memory.size, [])
        if memory.size <= HUGE + LINE:
            free.append(memory)

    def _lasting_memory(self, size: int) -> Memory:
        free = self._lasting.get(size + LINE)
        memory = free.pop() if free else self._fresh(size)
        self._lent.add(id(memory))
        return memory

    def _passing_memory(self, size: int) -> Memory:
        if size > HUGE:
            return self._fresh(size)
        self._largest = max(self._largest, size)
        while self._passing:
            memory = self._passing.pop()
            if memory.size >= self._largest + LINE:
                return memory
        return self._fresh(self._largest)

    def _fresh(self, size: int) -> Memory:
        memory = np.empty(size + LINE, np.uint8)
        self._starts[id(memory)] = -memory.ctypes.data % LINE
        return memory
