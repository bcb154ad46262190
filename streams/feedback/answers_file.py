"""Answers that somebody has judged already, read from a file: CSV, JSON lines or Parquet.

    text, model, quality, cost_usd[, latency_ms]      a row for each answer

They are how a new model is known before its first request, and many models from one set of
prompts. Instead of `text` a row may have `embedding`, a list of numbers, for routers that are given
vectors, and `prompt_tokens`, the prompt's length.

A file is taken whole or not at all. Whatever is wrong is said with its row; rows are
counted from 1, the heading not included.
"""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from streams.errors import AnswersRefused
from streams.feedback.report import COST_USD_MAX, LATENCY_MS_MAX
from streams.feedback.ticket import content_ids

TEXT_BYTES_MAX = 65_536
PROMPT_TOKENS_MAX = 10_000_000
ROWS_MAX = 10_000_000
PROBLEMS_MAX = 20  # that are said; the rest is counted


class Answer(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One row: what a model's answer to a prompt was worth, and what it took."""

    text: Annotated[str, Meta(min_length=1)] | None = None
    embedding: Annotated[list[float], Meta(min_length=1)] | None = None
    prompt_tokens: Annotated[int, Meta(ge=1, le=PROMPT_TOKENS_MAX)] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=200)]
    quality: Annotated[float, Meta(ge=0.0, le=1.0)]
    cost_usd: Annotated[float, Meta(ge=0.0, le=COST_USD_MAX)]
    latency_ms: Annotated[float, Meta(ge=0.0, le=LATENCY_MS_MAX)] | None = None

    @property
    def content(self) -> bytes:
        """All that it says, so that it can be told from others."""
        prompt = self.text.encode() if self.text is not None else self.packed_embedding
        latency_ms = math.nan if self.latency_ms is None else self.latency_ms
        figures = struct.pack("<3d", self.quality, self.cost_usd, latency_ms)
        length = b"" if self.prompt_tokens is None else struct.pack("<q", self.prompt_tokens)
        return figures + self.model.encode() + b"\0" + prompt + length

    @property
    def packed_embedding(self) -> bytes:
        """Its vector as little-endian 32-bit floats."""
        numbers = self.embedding or ()
        return struct.pack(f"<{len(numbers)}f", *numbers)


FIELDS = Answer.__struct_fields__


def read_answers(path: Path) -> list[Answer]:
    """All rows, each once however often it is there. Raises AnswersRefused."""
    answers: list[Answer] = []
    problems: list[str] = []
    n_wrong = 0
    for number, row in enumerate(_rows(path), 1):
        if number > ROWS_MAX:
            raise AnswersRefused(str(path), (f"more than {ROWS_MAX:,} rows: split the file",), 1)
        try:
            answers.append(_checked(row))
        except (msgspec.ValidationError, ValueError) as error:
            n_wrong += 1
            problems.append(f"row {number}: {error}")
            del problems[PROBLEMS_MAX:]
    if n_wrong:
        raise AnswersRefused(str(path), tuple(problems), n_wrong)
    if not answers:
        raise AnswersRefused(str(path), (f"it has no rows; each needs {', '.join(FIELDS)}",), 1)
    contents = content_ids([answer.content for answer in answers])
    return list(dict(zip(contents, answers, strict=True)).values())


def _checked(row: object) -> Answer:
    """Raises ValueError and ValidationError, saying what is wrong."""
    if isinstance(row, Exception):
        raise row
    answer = msgspec.convert(row, Answer, strict=False)
    for name in ("quality", "cost_usd", "latency_ms"):
        if (value := getattr(answer, name)) is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, but must be finite")
    if (answer.text is None) == (answer.embedding is None):
        raise ValueError("it needs `text`, or `embedding` instead")
    if answer.text is not None and len(answer.text.encode()) > TEXT_BYTES_MAX:
        raise ValueError(f"text has {len(answer.text.encode())} bytes; at most {TEXT_BYTES_MAX}")
    return answer


def _rows(path: Path) -> Iterator[object]:
    """Rows as mappings, or the error that reading one gave. Raises AnswersRefused."""
    readers = {".csv": _of_csv, ".jsonl": _of_lines, ".ndjson": _of_lines, ".parquet": _of_parquet}
    read = readers.get(path.suffix.lower())
    if read is None:
        wanted = ", ".join(readers)
        raise AnswersRefused(str(path), (f"its name must end in one of {wanted}",), 1)
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise AnswersRefused(str(path), (f"it can't be read: {error}",), 1) from error


def _of_csv(path: Path) -> Iterator[object]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file, restkey=""):
            if "" in row:
                yield ValueError(f"it has more cells than the heading: {row['']}")
            else:
                yield {name: value for name, value in row.items() if value not in ("", None)}


def _of_lines(path: Path) -> Iterator[object]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _decoded(line)


def _decoded(line: bytes) -> object:
    try:
        return _without_nulls(msgspec.json.decode(line, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return ValueError(f"it is no JSON object: {error}")


def _of_parquet(path: Path) -> Iterator[object]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from map(_without_nulls, batch.to_pylist())


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}
