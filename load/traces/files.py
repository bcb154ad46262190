"""A trace's file as named columns of raw values: CSV, JSON lines, Parquet, told apart by content.

    path ──first bytes──▶ container ──names──▶ a format is recognised ──its columns──▶ Fields, …
                                                           so many rows at a time, in their order ┘

Names are the same with small and capital letters, spaces, underscores and hyphens or without. CSV
may separate by commas, semicolons, tabs or bars, and begin with a byte order mark; CSV and JSON
lines may be compressed (gzip, zstd).

The one rule: a file that can't be read is refused with the line that is wrong, and what to do.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

import msgspec
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from load.errors import TraceRefused
from load.traces.fields import SHOWN, Fields

Container = Literal["csv", "jsonl", "parquet"]
PARQUET_MAGIC = b"PAR1"
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# What other files begin with, and what is to be done about it.
ELSEWISE = {
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet: unpack it, or save it as CSV, first",
    b"\xff\xfe": "is UTF-16: UTF-8 is read",
    b"\xfe\xff": "is UTF-16: UTF-8 is read",
}
NO_ROWS = ("Empty CSV", "Could not skip initial 1 rows")  # a head alone; without an end of line
SEPARATORS = ",;\t|"
EMPTY = ["", "NaN", "nan", "null", "NULL", "None", "NA"]
csv.field_size_limit(1 << 30)  # a column of prompts has more than csv takes by default
VALUE = re.compile(r"[+-]?[\d.,:T /-]*\d[\d.,:TZ /+-]*")  # no name of a column looks like that


@dataclass(frozen=True, slots=True)
class Head:
    """What a format is recognised by."""

    container: Container
    names: tuple[str, ...]  # of columns, as they are written; nested ones of JSON with dots
    separator: str = ","  # of CSV

    def has(self, needs: Iterable[str]) -> bool:
        """Whether all these columns are there."""
        return {folded(name) for name in self.names}.issuperset(map(folded, needs))


def folded(name: str) -> str:
    """What is the same for all ways to write a column's name."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def head_of(path: Path) -> Head:
    """The container and its columns. Raises TraceRefused."""
    try:
        with opened(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise TraceRefused(str(path), "", f"can't be read: {error.strerror or error}") from None
    if start.startswith(PARQUET_MAGIC):
        return Head("parquet", tuple(_parquet_names(path)))
    for magic, why in ELSEWISE.items():
        if start.startswith(magic):
            raise TraceRefused(path.name, "", why)
    if b"\0" in start:
        raise TraceRefused(path.name, "", "is no text, and no Parquet: CSV or JSON lines are read")
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise TraceRefused(path.name, "", "is empty")
    if text[0] == "{":
        return Head("jsonl", tuple(_leaves(next(_objects(path))[1])))
    if text[0] == "[":
        raise TraceRefused(path.name, "", "is one JSON array: JSON lines, an object each, are read")
    return _csv_head(path)


def opened(path: Path) -> BinaryIO:
    """Its bytes, unpacked. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(4)
    for magic, how in COMPRESSED.items():
        if start.startswith(magic):
            unpacked = pa.input_stream(str(path), compression=how)
            return cast("BinaryIO", io.BufferedReader(unpacked))
    return path.open("rb")


def fields_of(path: Path, head: Head, names: Sequence[str], rows_max: int) -> Iterator[Fields]:
    """These columns of a file, so many rows at a time; those that are not there are left out.
    Raises TraceRefused.
    """
    written = _written(path, head, names)
    try:
        yield from _fields_of(path, head, names, written, rows_max)
    except OSError as error:  # such as half a compressed file
        raise TraceRefused(path.name, "", f"can't be read: {error.strerror or error}") from None


def _fields_of(
    path: Path, head: Head, names: Sequence[str], written: Mapping[str, str], rows_max: int
) -> Iterator[Fields]:
    if head.container == "jsonl":
        yield from _jsonl(path, {name: written.get(name, name) for name in names}, rows_max)
        return
    parquet = head.container == "parquet"
    tables = _parquet_tables(path, written) if parquet else _csv(path, head, written)
    row, line_of = 0, None if parquet else partial(_csv_line, path, head)
    for table in _regrouped(tables, rows_max):
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        yield Fields(path.name, columns, len(table), line_of, first_row=row)
        row += len(table)


def _written(path: Path, head: Head, names: Sequence[str]) -> dict[str, str]:
    """How the file writes those names that it has. Raises TraceRefused where it has one twice."""
    found = {}
    for name in names:
        alike = [one for one in head.names if folded(one) == folded(name)]
        exact = [one for one in alike if one == name]
        if len(exact or alike) > 1:
            columns = " and ".join(f"`{one}`" for one in exact or alike)
            raise TraceRefused(path.name, "", f"has the columns {columns}: one of them is to go")
        if alike:
            found[name] = (exact or alike)[0]
    return found


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


# --- Parquet


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise TraceRefused(path.name, "", f"can't be read as Parquet: {error}") from None


def _parquet_tables(path: Path, written: Mapping[str, str]) -> Iterator[pa.Table]:
    wanted = list(written.values())
    try:
        with pq.ParquetFile(path) as file:
            yield file.schema_arrow.empty_table().select(wanted).rename_columns([*written])
            for group in range(file.num_row_groups):  # asked for all, it reads all at once
                for batch in file.iter_batches(row_groups=[group], columns=wanted):
                    table = pa.Table.from_batches([batch]).select(wanted)
                    yield table.rename_columns([*written])
    except (OSError, pa.ArrowException) as error:
        raise TraceRefused(path.name, "", f"can't be read as Parquet: {error}") from None


# --- CSV


def _csv_head(path: Path) -> Head:
    with _text(path) as file:
        first = file.readline()
    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one))))
    with _text(path) as file:
        names = [name.strip() for name in next(csv.reader(file, delimiter=separator))]
    if all(VALUE.fullmatch(name) for name in names):
        raise TraceRefused(path.name, "line 1", "is a row: the names of the columns are due there")
    return Head("csv", tuple(names), separator)


def _text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(opened(path), encoding="utf-8-sig", errors="replace", newline="")


def _csv(path: Path, head: Head, written: Mapping[str, str]) -> Iterator[pa.Table]:
    # Of columns with one name, only those may be asked for that have another.
    numbered = [
        name if head.names.count(name) == 1 else str(i) for i, name in enumerate(head.names)
    ]
    wanted = list(written.values())
    yield pa.table({name: pa.array([], pa.string()) for name in written})
    try:
        with opened(path) as file:
            reader = arrow_csv.open_csv(
                file,
                read_options=arrow_csv.ReadOptions(column_names=numbered, skip_rows=1),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=head.separator, newlines_in_values=True
                ),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=True,
                    null_values=EMPTY,
                ),
            )
            for batch in reader:
                yield pa.Table.from_batches([batch]).rename_columns([*written])
    except pa.ArrowInvalid as error:
        if not any(words in str(error) for words in NO_ROWS):
            _refuse_csv(path, head, error)


def _csv_line(path: Path, head: Head, row: int) -> int:
    """Where a row begins: empty lines are none, and a text in quotes may have several."""
    with _text(path) as file:
        rows = csv.reader(file, delimiter=head.separator)
        next(rows)
        before, left = rows.line_num, row
        for values in rows:
            if values and not left:
                break
            before, left = rows.line_num, left - bool(values)
        return before + 1


def _refuse_csv(path: Path, head: Head, error: pa.ArrowInvalid) -> NoReturn:
    """With the first line that has another number of values than the head."""
    with _text(path) as file:
        rows = csv.reader(file, delimiter=head.separator)
        for row in rows:
            if row and len(row) != len(head.names):
                why = f"has {len(row)} values, not {len(head.names)} as line 1 has names"
                raise TraceRefused(path.name, f"line {rows.line_num}", why)
    raise TraceRefused(path.name, "", f"can't be read as CSV: {error}")


# --- JSON lines


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object with its line; empty lines are passed over."""
    with opened(path) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                found = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise TraceRefused(path.name, f"line {line}", f"is not JSON: {error}") from None
            if not isinstance(found, dict):
                raise TraceRefused(path.name, f"line {line}", "is not a JSON object")
            yield line, found


def _leaves(found: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in found.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _jsonl(path: Path, written: Mapping[str, str], rows_max: int) -> Iterator[Fields]:
    objects = _objects(path)
    while group := list(islice(objects, rows_max)):
        yield _fields(path, written, group)


def _fields(
    path: Path, written: Mapping[str, str], objects: Sequence[tuple[int, dict[str, Any]]]
) -> Fields:
    lines: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in written}
    for line, found in objects:
        lines.append(line)
        for name, where in written.items():
            values[name].append(_at(found, where))
    columns = {name: _array(path.name, name, of, lines) for name, of in values.items()}
    there = {name: one for name, one in columns.items() if one.null_count < len(one)}
    return Fields(path.name, there, len(lines), lines.__getitem__)


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
        if kind in (list, dict):  # of several types, or too large: as text they can be compared
            return pa.array([None if value is None else _texts(value) for value in values])
        return pa.array([None if value is None else float(value) for value in values])


def _texts(value: list[Any] | dict[str, Any]) -> list[str] | str:
    return [str(one) for one in value] if isinstance(value, list) else str(value)
