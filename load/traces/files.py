"""A trace's file as named columns of raw values: CSV, JSON lines, Parquet, told apart by content.

    path ──first bytes──▶ container ──names──▶ a format is recognised ──its columns──▶ Fields, …
                                                           so many rows at a time, in their order ┘

Values come as they are written. What they mean, and whether they can be, a format asks of
`Fields`; which names the value's line in every refusal.

The one rule: a value that can't be what it should be is refused with its place, never guessed at.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from load.errors import TraceRefused

Container = Literal["csv", "jsonl", "parquet"]
PARQUET_MAGIC = b"PAR1"
# What other files begin with, and what is to be done about it.
ELSEWISE = {
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it first",
    b"\xff\xfe": "is UTF-16: UTF-8 is read",
    b"\xfe\xff": "is UTF-16: UTF-8 is read",
}
ZONE = r"(?:Z|[+-]\d\d:?\d\d)$"
# Other ways to write a zone: of pandas, of databases.
ZONES_ALIKE = (
    (r"(?i)\s*(?:UTC|GMT|Z)$", "Z"),
    (r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d)$", r"\1\2:00"),
    (r"\s+([+-]\d\d:?\d\d)$", r"\1"),
)
EPOCH_S_MIN = 1e8  # a number of seconds above is a time since 1970, below one since the beginning
SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Head:
    """What a format is recognised by."""

    container: Container
    names: frozenset[str]  # of columns; nested ones of JSON with dots


def head_of(path: Path) -> Head:
    """The container and its columns. Raises TraceRefused."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise TraceRefused(path.name, "", f"can't be read: {error.strerror}") from None
    if start.startswith(PARQUET_MAGIC):
        return Head("parquet", frozenset(_parquet_names(path)))
    for magic, why in ELSEWISE.items():
        if start.startswith(magic):
            raise TraceRefused(path.name, "", why)
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise TraceRefused(path.name, "", "is empty")
    if text[0] == "{":
        return Head("jsonl", frozenset(_leaves(next(_objects(path))[1])))
    if text[0] == "[":
        raise TraceRefused(path.name, "", "is one JSON array: JSON lines, an object each, are read")
    return Head("csv", frozenset(_csv_names(path)))


def fields_of(
    path: Path, container: Container, names: Sequence[str], rows_max: int
) -> Iterator[Fields]:
    """These columns of a file, so many rows at a time; those that are not there are left out.
    Raises TraceRefused.
    """
    if container == "jsonl":
        yield from _jsonl(path, names, rows_max)
        return
    tables = _parquet_tables(path, names) if container == "parquet" else _csv(path, names)
    row, counted_from = 0, None if container == "parquet" else 2
    for table in _regrouped(tables, rows_max):
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        yield Fields(path.name, columns, len(table), counted_from, first_row=row)
        row += len(table)


def _regrouped(tables: Iterator[pa.Table], rows_max: int) -> Iterator[pa.Table]:
    """The same rows, `rows_max` in each table but the last; one at least."""
    held = next(tables)
    for table in tables:
        while len(held) > rows_max:
            yield held[:rows_max]
            held = held[rows_max:]
        held = pa.concat_tables([held, table])
    while len(held) > rows_max:
        yield held[:rows_max]
        held = held[rows_max:]
    yield held


class Fields:
    """Columns of one file, each checked as it is taken out."""

    def __init__(
        self,
        file: str,
        columns: dict[str, Any],
        n: int,
        counted_from: int | None,
        lines: Sequence[int] = (),
        first_row: int = 0,
    ) -> None:
        """`counted_from`: the line of row 0, None where files have no lines; or all `lines`."""
        self._file, self._from, self._lines = file, counted_from, lines
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
        if self._lines:
            return f"line {self._lines[row]}"
        row += self._first
        return f"row {row} (the first is 0)" if self._from is None else f"line {row + self._from}"

    def present(self, name: str) -> NDArray[np.bool_]:
        """Which rows (n,) say anything there."""
        if name not in self._columns:
            return np.zeros(self.n, bool)
        return np.asarray(pc.is_valid(self._columns[name]))

    def raw(self, name: str) -> list[Any]:
        """The values as they are written; None where there are none."""
        return list(self._columns[name].to_pylist()) if name in self._columns else [None] * self.n

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
            self.refuse(name, row, f"is {found[row]:g}: a whole number from 0 to 10,000,000 is due")
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
            return pc.cast(column, pa.timestamp("ns")).cast(pa.int64()).to_numpy() / 1e9, True
        if pa.types.is_string(kind) and not _looks_like_number(column):
            return self._dates_s(name, column), True
        found = self.numbers(name) / per_s
        return found, bool(len(found) and found.min() >= EPOCH_S_MIN)

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
            self._refuse_first(
                name, column, lambda text: pc.cast(pa.scalar(text), kind), "a date and time"
            )
        return found.cast(pa.int64()).to_numpy() / 1e9

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
                self.refuse(name, row, f"is {str(value)[:SHOWN]!r}: {wanted} is due")
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
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)  # type: ignore[arg-type]  # refused where it can't


def _looks_like_number(column: Any) -> bool:
    first = next((value for value in column.to_pylist()[:100] if value is not None), "0")
    return re.fullmatch(r"\s*[+-]?[\d.]+(?:[eE][+-]?\d+)?\s*", first) is not None


# --- containers


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise TraceRefused(path.name, "", f"can't be read as Parquet: {error}") from None


def _parquet_tables(path: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    there = set(_parquet_names(path))
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in names if name in there]
            yield file.schema_arrow.empty_table().select(wanted)
            for group in range(file.num_row_groups):  # asked for all, it reads all at once
                for batch in file.iter_batches(row_groups=[group], columns=wanted):
                    yield pa.Table.from_batches([batch]).select(wanted)
    except (OSError, pa.ArrowException) as error:
        raise TraceRefused(path.name, "", f"can't be read as Parquet: {error}") from None


def _csv_names(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise TraceRefused(path.name, "line 1", "separates its columns by other than commas")
    return names


def _csv(path: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    there = _csv_names(path)
    wanted = [name for name in names if name in there]
    yield pa.table({name: pa.array([], pa.string()) for name in wanted})
    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=there, skip_rows=1),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=True,
                null_values=["", "NaN", "nan", "null", "NULL", "None", "NA"],
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):  # a head and no rows
            raise TraceRefused(path.name, "", f"can't be read as CSV: {error}") from None


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object with its line; empty lines are passed over."""
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                found = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TraceRefused(path.name, f"line {line}", f"is not JSON: {error}") from None
            if not isinstance(found, dict):
                raise TraceRefused(path.name, f"line {line}", "is not a JSON object")
            yield line, found


def _leaves(found: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in found.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _jsonl(path: Path, names: Sequence[str], rows_max: int) -> Iterator[Fields]:
    objects = _objects(path)
    while group := list(islice(objects, rows_max)):
        yield _fields(path, names, group)


def _fields(
    path: Path, names: Sequence[str], objects: Sequence[tuple[int, dict[str, Any]]]
) -> Fields:
    lines: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in names}
    for line, found in objects:
        lines.append(line)
        for name in names:
            values[name].append(_at(found, name))
    columns = {name: _array(path.name, name, of, lines) for name, of in values.items()}
    there = {name: one for name, one in columns.items() if one.null_count < len(one)}
    return Fields(path.name, there, len(lines), None, lines)


def _at(found: Any, name: str) -> Any:
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _array(file: str, name: str, values: list[Any], lines: Sequence[int]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        kind = type(next(value for value in values if value is not None))
        for line, value in zip(lines, values, strict=True):
            if (
                value is not None
                and type(value) is not kind
                and {type(value), kind} != {int, float}
            ):
                shown = f"is {str(value)[:SHOWN]!r}: {kind.__name__} is due, as in earlier lines"
                raise TraceRefused(file, f"line {line}, `{name}`", shown) from None
        return pa.array([None if value is None else float(value) for value in values])
