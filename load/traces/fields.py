"""Columns of a trace's file, each checked as it is taken out.

    raw values ──numbers, tokens, times_s──▶ arrays (n,), or a refusal that names the value's line

Values come as they are written. What they mean, and whether they can be, a format asks here.

The one rule: a value that can't be what it should be is refused with its place, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from load.errors import TraceRefused

ZONE = r"(?:Z|[+-]\d\d:?\d\d)$"
# Other ways to write a zone: of pandas, of databases.
ZONES_ALIKE = (
    (r"(?i)\s*(?:UTC|GMT|Z)$", "Z"),
    (r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d)$", r"\1\2:00"),
    (r"\s+([+-]\d\d:?\d\d)$", r"\1"),
)
EPOCH_S_MIN = 1e8  # a number of seconds above is a time since 1970, below one since the beginning
EPOCH_S_MAX = 4_102_444_800.0  # the year 2100
UNITS = ((1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
SHOWN = 40  # characters of a value in a message
LISTED = "\x1f"  # between the texts of a list that is made one text
DATE = "a date and time such as 2023-11-16 18:17:03"


class Fields:
    """Columns of one file, each checked as it is taken out."""

    def __init__(
        self,
        file: str,
        columns: dict[str, Any],
        n: int,
        line_of: Callable[[int], int] | None = None,
        first_row: int = 0,
    ) -> None:
        """`line_of`: where a row of the file is; None where files have no lines."""
        self._file, self._line_of = file, line_of
        self._first = first_row  # of the file's rows
        self._columns = {name: _plain(column) for name, column in columns.items()}
        self.n, self.time_name = n, ""  # the column that times were taken from

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def refuse(self, name: str, row: int, why: str) -> NoReturn:
        """Say what is wrong with a row. Raises TraceRefused."""
        raise TraceRefused(self._file, self.place(row) + f", `{name}`", why)

    def place(self, row: int) -> str:
        """Where a row is, as an editor shows it."""
        row += self._first
        if self._line_of is None:
            return f"row {row} (the first is 0)"
        return f"line {self._line_of(row)}"

    def present(self, name: str) -> NDArray[np.bool_]:
        """Which rows (n,) say anything there."""
        if name not in self._columns:
            return np.zeros(self.n, bool)
        return np.asarray(pc.is_valid(self._columns[name]))

    def raw(self, name: str) -> list[Any]:
        """The values as they are written; None where there are none."""
        return list(self._columns[name].to_pylist()) if name in self._columns else [None] * self.n

    def lists(self, name: str) -> list[list[Any]]:
        """Lists of numbers or texts (n,); empty where there is none."""
        column = self._columns.get(name, pa.nulls(self.n))
        kind = column.type
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not pa.types.is_null(kind) and not (listed and not pa.types.is_nested(kind.value_type)):
            row = int(np.argmax(np.asarray(pc.is_valid(column))))
            shown = str(column[row].as_py())[:SHOWN]
            self.refuse(name, row, f"is {shown!r}: a list of numbers or texts is due")
        return [one or [] for one in column.to_pylist()]

    def coded(self, name: str) -> tuple[NDArray[np.intp], list[str]]:
        """Texts as numbers (n,) of distinct ones: "" where there is none; of a list its texts, with
        LISTED between them.
        """
        column = self._columns[name]
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            texts = pc.cast(column, pa.list_(pa.string())) if len(column) else column
            joined = pc.binary_join(texts, LISTED)  # none where one of them is none
            lost = np.asarray(pc.is_valid(column)) & ~np.asarray(pc.is_valid(joined))
            if lost.any():
                self.refuse(name, int(lost.argmax()), "has nothing at one place of its list")
            column = joined
        elif pa.types.is_integer(kind) or pa.types.is_null(kind):
            column = pc.cast(column, pa.string())
        elif not pa.types.is_string(kind):
            row = int(np.argmax(np.asarray(pc.is_valid(column))))
            self.refuse(name, row, f"is {str(column[row].as_py())[:SHOWN]!r}: a text is due")
        coded = pc.fill_null(column, "").dictionary_encode()
        return coded.indices.to_numpy().astype(np.intp), coded.dictionary.to_pylist()

    def numbers(self, name: str, *, missing: float | None = None) -> NDArray[np.float64]:
        """Finite numbers (n,); where there is none, `missing`, if that is not None."""
        column = self._columns.get(name)
        if column is None:
            column = pa.nulls(self.n, pa.float64())
        if pa.types.is_boolean(column.type) and column.null_count < self.n:
            row = int(np.argmax(np.asarray(pc.is_valid(column))))
            self.refuse(name, row, f"is {column[row].as_py()}: a number is due")
        if column.null_count and missing is None:
            self.refuse(name, int(np.argmin(np.asarray(pc.is_valid(column)))), "is empty")
        try:
            # Nanoseconds since 1970 have more digits than a double: which it loses is below 1 µs.
            values = pc.cast(column, pa.float64(), safe=not pa.types.is_integer(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self._refuse_first(name, column, _number, "a number")
        found = values.to_numpy(zero_copy_only=False).astype(np.float64, copy=True)
        empty = ~np.asarray(pc.is_valid(column))
        bad = ~np.isfinite(found) & ~empty
        if bad.any():
            self.refuse(name, int(bad.argmax()), "is not a finite number")
        if empty.any():
            found[empty] = missing
        return found

    def tokens(self, name: str, *, missing: float | None = None) -> NDArray[np.float64]:
        """Counts of tokens (n,): whole numbers from 0 to ten million."""
        found = self.numbers(name, missing=missing)
        bad = (found < 0.0) | (found > 1e7) | (found != np.floor(found))
        if bad.any():
            row = int(bad.argmax())
            why = f"is {found[row]:.15g}: a whole number from 0 to 10,000,000 is due"
            self.refuse(name, row, why)
        return found

    def times_s(self, name: str, *, per_s: float = 1.0) -> tuple[NDArray[np.float64], bool]:
        """Times (n,) in seconds, and whether they are since 1970.

        A number is so many `per_s` of a second; anything else a date and time of ISO 8601, with a
        zone in every row or in none, which is then UTC.
        """
        column = self._columns[name]
        kind, self.time_name = column.type, name
        if pa.types.is_timestamp(kind):
            self._refuse_empty(name, column)
            return self._stamps_s(name, column), True
        if pa.types.is_string(kind) and not _looks_like_number(column):
            return self._dates_s(name, column), True
        found = self.numbers(name) / per_s
        if (beyond := found > EPOCH_S_MAX).any():
            self._refuse_beyond(name, int(beyond.argmax()), found, per_s)
        return found, bool(len(found) and found.min() >= EPOCH_S_MIN)

    def _refuse_beyond(
        self, name: str, row: int, at_s: NDArray[np.float64], per_s: float
    ) -> NoReturn:
        """A time after the year 2100 is in another unit than its column is to be."""
        why = f"is {at_s[row] * per_s:.15g}, which is after the year 2100"
        for smaller, unit in UNITS:
            if smaller > per_s and at_s[row] * per_s / smaller <= EPOCH_S_MAX:
                why += f": taken for {unit}, divide by {smaller / per_s:,.0f}"
                break
        self.refuse(name, row, why)

    def _stamps_s(self, name: str, column: Any) -> NDArray[np.float64]:
        """Unix time of timestamps of any unit; their zone is told beside them, they are UTC."""
        per_s = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
        found: NDArray[np.float64] = column.cast(pa.int64()).to_numpy() / per_s
        if (beyond := found > EPOCH_S_MAX).any():
            self.refuse(name, int(beyond.argmax()), "is after the year 2100")
        return found

    def _dates_s(self, name: str, column: Any) -> NDArray[np.float64]:
        self._refuse_empty(name, column)
        for written, alike in ZONES_ALIKE:
            column = pc.replace_substring_regex(column, written, alike)
        zoned = np.asarray(pc.match_substring_regex(column, ZONE))
        if zoned.any() and not zoned.all():
            row = int((zoned != zoned[0]).argmax())
            has = "has a time zone and earlier rows have none"
            lacks = "has no time zone and earlier rows have one"
            self.refuse(name, row, has if zoned[row] else lacks)
        kind = pa.timestamp("ns", "UTC") if zoned.any() else pa.timestamp("ns")
        try:
            found = pc.cast(column, kind)
        except pa.ArrowInvalid:
            self._refuse_first(name, column, lambda text: pc.cast(pa.scalar(text), kind), DATE)
        return self._stamps_s(name, found)

    def _refuse_empty(self, name: str, column: Any) -> None:
        if column.null_count:
            self.refuse(name, int(np.argmin(np.asarray(pc.is_valid(column)))), "is empty")

    def _refuse_first(self, name: str, column: Any, parse: Any, wanted: str) -> NoReturn:
        """Find the row that the whole column could not be read for."""
        for row, value in enumerate(column.to_pylist()):
            try:
                if value is not None:
                    parse(value)
            except (ValueError, TypeError, pa.ArrowException):
                shown = str(value)[:SHOWN]
                marks = ", with a point before decimals and no commas" if "," in shown else ""
                self.refuse(name, row, f"is {shown!r}: {wanted} is due{marks}")
        raise TraceRefused(self._file, f"`{name}`", f"is not {wanted} throughout")


def _plain(column: Any) -> Any:
    """The same values in one of few types: text without spaces around it, dates as times."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(column, kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _plain(pc.cast(column, pa.string()))
    if pa.types.is_date(kind):
        return pc.cast(column, pa.timestamp("ms"))
    return pc.utf8_trim_whitespace(column) if pa.types.is_string(kind) else column


def _number(value: object) -> float:
    """As a column of them is read: Python's own takes 1_000, too."""
    if isinstance(value, bool):
        raise TypeError(value)
    return float(pc.cast(pa.scalar(value), pa.float64()).as_py())


def _looks_like_number(column: Any) -> bool:
    first = next((value for value in column.to_pylist()[:100] if value is not None), "0")
    return re.fullmatch(r"\s*[+-]?[\d.,]+(?:[eE][+-]?\d+)?\s*", first) is not None
