"""Products and lengths as LLVM's own vectors, where a loop is not compiled to what it could be.

    x (n, rows) ─┐
                 ├─▶ sums (n, width): 4 requests × 64 bytes of columns, while all rows go by
    matrix ──────┘   (rows, width)

A loop over columns reads and writes each sum once per row, which takes more of a processor's time
than the products do. LLVM does not find out by itself that the sums of a tile could stay in
registers. So they are written as its own instructions, on vectors that it divides to fit any
processor (the "micro-kernel" of matrix multiplication, Goto & van de Geijn 2008).

Each sum adds its rows two by two, in their order, whatever the number of requests: so the bits do
not depend on the size of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from learners.kernels.compiled import WIDE, inlined

BLOCK = 4  # requests of a tile: their sums and the rows fit the 16 registers of any processor
VECTOR_BYTES = 64  # columns of a tile
I64 = ir.IntType(64)


class _Tile:
    """The instructions of one tile of `n` requests."""

    def __init__(self, n: int, context: Any, builder: Any, kinds: Any, values: Any) -> None:
        self.builder, self.bytes_each = builder, kinds[0].dtype.bitwidth // 8
        *arrays, self.request, self.column, self.n_rows = values
        made = [
            context.make_array(kind)(context, builder, one)
            for kind, one in zip(kinds[:3], arrays, strict=True)
        ]
        self.arrays = [(one.data, builder.extract_value(one.shape, 1)) for one in made]
        lanes = VECTOR_BYTES // self.bytes_each
        self.vector = ir.VectorType(context.get_value_type(kinds[0].dtype), lanes)
        self.nothing = ir.Constant(self.vector, ir.Undefined)
        self.first_lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        self.requests = [builder.add(self.request, I64(i)) for i in range(n)]
        zeros = ir.Constant(self.vector, [0.0] * lanes)
        self.sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(n)]

    def _at(self, array: int, row: Any, column: Any) -> Any:
        data, width = self.arrays[array]
        place = self.builder.add(self.builder.mul(row, width), column)
        return self.builder.gep(data, [place])

    def _vector_at(self, array: int, row: Any) -> Any:
        place = self._at(array, row, self.column)
        return self.builder.bitcast(place, self.vector.as_pointer())

    def _product(self, request: Any, row: Any, numbers: Any) -> Any:
        """One number of a request, times a row of the tile."""
        number = self.builder.load(self._at(0, request, row))
        single = self.builder.insert_element(self.nothing, number, I64(0))
        everywhere = self.builder.shuffle_vector(single, self.nothing, self.first_lane)
        return self.builder.fmul(everywhere, numbers)

    def add(self, *rows: Any) -> None:
        """Add what some rows contribute, together, to all requests' sums."""
        builder = self.builder
        numbers = [builder.load(self._vector_at(1, row), align=self.bytes_each) for row in rows]
        for request, to in zip(self.requests, self.sums, strict=True):
            terms = [
                self._product(request, row, one) for row, one in zip(rows, numbers, strict=True)
            ]
            total = terms[0] if len(terms) == 1 else builder.fadd(*terms)
            builder.store(builder.fadd(builder.load(to), total), to)

    def add_all(self) -> None:
        """Go through the rows, two by two, and write down the sums."""
        builder, paired = self.builder, self.builder.and_(self.n_rows, I64(-2))
        with cgutils.for_range_slice(builder, I64(0), paired, I64(2), I64) as (row, _):
            self.add(row, builder.add(row, I64(1)))
        with cgutils.for_range_slice(builder, paired, self.n_rows, I64(1), I64) as (row, _):
            self.add(row)
        for request, to in zip(self.requests, self.sums, strict=True):
            builder.store(builder.load(to), self._vector_at(2, request), align=self.bytes_each)


def _tile(n: int) -> Callable[..., None]:
    """A function of kernels: the sums of `n` requests from one on, of a tile's columns."""

    def of(_: Any, x: Any, matrix: Any, sums: Any, first: Any, column: Any, n_rows: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            _Tile(n, context, builder, signature.args, values).add_all()
            return context.get_dummy_value()

        places = (types.int64 for _ in (first, column, n_rows))
        return types.void(x, matrix, sums, *places), code

    made: Callable[..., None] = intrinsic(of)
    return made


_one, _several = _tile(1), _tile(BLOCK)


@inlined
def product(x: Any, matrix: Any, n: Any, triangle: Any, sums: Any) -> None:
    """`sums` = x `matrix`, of the first n requests; their numbers are whole, side by side.

    Rows of `x` and `sums` are a multiple of BLOCK, unless there is one; those beyond n may hold
    anything. `width` is whole vectors. In a `triangle` rows have nothing before their own columns.
    """
    rows, width = matrix.shape
    step = VECTOR_BYTES // x.itemsize
    for column in range(0, width, step):
        n_rows = min(rows, column + step) if triangle else rows
        if n == 1:
            _one(x, matrix, sums, 0, column, n_rows)
        else:
            for first in range(0, n, BLOCK):
                _several(x, matrix, sums, first, column, n_rows)


def _squares_of(_: Any, row: Any, lanes: Any) -> Any:
    """Fill in `lanes` (WIDE,) with sums of squares of the row's whole vectors."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0].dtype
        vector = ir.VectorType(context.get_value_type(kind), WIDE)
        numbers, into = (
            context.make_array(of)(context, builder, value)
            for of, value in zip(signature.args, values, strict=True)
        )
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * WIDE))
        end = builder.and_(builder.extract_value(numbers.shape, 0), I64(-WIDE))
        with cgutils.for_range_slice(builder, I64(0), end, I64(WIDE), I64) as (at, _):
            place = builder.bitcast(builder.gep(numbers.data, [at]), vector.as_pointer())
            here = builder.load(place, align=kind.bitwidth // 8)
            builder.store(builder.fadd(builder.load(total), builder.fmul(here, here)), total)
        place = builder.bitcast(into.data, vector.as_pointer())
        builder.store(builder.load(total), place, align=kind.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(row, lanes), code


_squares: Callable[..., None] = intrinsic(_squares_of)


@inlined
def length(row: Any, lanes: Any) -> Any:
    """‖row‖, squares being added in lanes (WIDE,), then the lanes in turn, then what is left."""
    _squares(row, lanes)
    total = np.float32(0.0)
    for lane in range(WIDE):
        total += lanes[lane]
    for j in range(len(row) - len(row) % WIDE, len(row)):
        total += row[j] * row[j]
    return math.sqrt(total)
