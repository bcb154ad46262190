"""Outcome tables: for every prompt, what each model's answer was worth and what it cost.

With all models' results known, any router can be replayed against reality: whichever model it
chooses, the table says what would have come of it.

    python -m load.data.tables SOURCE.parquet     rebuilds a bundled table from its source

Two tables are bundled, with embeddings by all-MiniLM-L6-v2:

    llmrouter_dc   5,989 prompts × 9 models, estimated costs; on it routing pays
                   ulab-uiuc/LLMRouter, MIT
    paretobandit   3,559 prompts × 4 models, measured costs
                   ParetoBandit/ParetoBandit, Apache-2.0

They have figures only, no prompt's text. Embeddings are kept as 8-bit numbers, prompt lengths as
characters / 4.

A table is only figures; which of them a router gets to see is the replay's business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from load.errors import TableRefused

# Name → who measured it, under which licence: said wherever a figure of it is shown.
BUNDLED = {
    "llmrouter_dc": "ulab-uiuc/LLMRouter, MIT",
    "paretobandit": "ParetoBandit/ParetoBandit, Apache-2.0",
}
QUALITY, COST = "quality:", "cost_usd:"
Encode = Callable[[list[str]], NDArray[np.float32]]  # texts (n,) to vectors (n, dim)
MODELS_MIN, PROMPTS_MIN = 2, 64  # with less there is nothing to choose, or nothing to learn
USD_MIN, USD_MAX = 0.0, 1e4  # of one call
NONE: NDArray[np.float32] = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeTable:
    """n prompts, k models."""

    name: str
    models: tuple[str, ...]  # (k,)
    embeddings: NDArray[np.float32]  # (n, dim)
    prompt_tokens: NDArray[np.int64]  # (n,)
    quality: NDArray[np.float64]  # (n, k) 0 to 1
    cost_usd: NDArray[np.float64]  # (n, k) US dollars per call
    texts: tuple[str | None, ...] | None = None  # (n,) of the prompts, where they were read

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def mean_cosine(self) -> float:
        """Of any two embeddings, on average; near one where they are nearly parallel."""
        rows = self.embeddings.astype(np.float64)
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
        return float(mean @ mean)

    def take(self, rows: NDArray[np.intp]) -> OutcomeTable:
        """The prompts at `rows`, in that order."""
        return OutcomeTable(
            self.name,
            self.models,
            self.embeddings[rows],
            self.prompt_tokens[rows],
            self.quality[rows],
            self.cost_usd[rows],
            None if self.texts is None else tuple(self.texts[row] for row in rows.tolist()),
        )

    def only(self, models: Sequence[str]) -> OutcomeTable:
        """These models' columns, in that order."""
        columns = [self.models.index(model) for model in models]
        return OutcomeTable(
            self.name,
            tuple(models),
            self.embeddings,
            self.prompt_tokens,
            self.quality[:, columns],
            self.cost_usd[:, columns],
            self.texts,
        )

    def shuffled(self, seed: int, n_max: int) -> OutcomeTable:
        """At most `n_max` prompts in an order of their own for every seed."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(order[:n_max])


def bundled(name: str) -> OutcomeTable:
    """A table of `BUNDLED`: they come with the package."""
    with resources.as_file(resources.files("load") / "data" / f"{name}.parquet") as path:
        return read(path)


def csv_table(path: Path) -> pa.Table:
    """Texts may have several lines; without being told, the reader cuts the file between them.

    Raises OSError, ArrowException.
    """
    return pyarrow.csv.read_csv(
        path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    )


FORMS: Mapping[str, tuple[str, Callable[[Path], pa.Table]]] = {
    ".parquet": ("Parquet", pq.read_table),
    ".csv": ("CSV", csv_table),
    ".jsonl": ("JSON lines", pyarrow.json.read_json),
}


def read(
    path: Path,
    encode: Encode | None = None,
    *,
    where_missing: Encode | None = None,
    encoded_max: int | None = None,
    priced: bool = True,
    with_texts: bool = False,
) -> OutcomeTable:
    """A Parquet, CSV or JSON-lines file with the columns that docs/decisions.md lists.

    With `encode`, embeddings are made of the texts instead of read; with `where_missing`, if there
    are none. Of more than `encoded_max` texts so many are drawn, and no other prompts are in the
    table. What need not be `priced` may lack costs, which are 0 then. Texts are kept `with_texts`,
    where there are any. Raises TableRefused, naming column and row.
    """
    if not path.is_file():
        raise TableRefused(path.name, "", None, f"there is no file {path}")
    form, reader = FORMS.get(path.suffix.lower(), FORMS[".parquet"])
    try:
        table = reader(path)
    except (OSError, pa.ArrowException, json.JSONDecodeError) as error:
        raise TableRefused(path.name, "", None, f"can't be read as {form}: {error}") from None
    check = _Check(path.name, table)
    encode = encode or (None if check.has_embeddings() else where_missing)
    models = tuple(c.removeprefix(QUALITY) for c in table.column_names if c.startswith(QUALITY))
    if "" in models:
        check.refuse(QUALITY, None, "names no model")
    if len(models) < MODELS_MIN:
        check.refuse(QUALITY + "<model>", None, f"is there for {len(models)} models, two are least")
    if len(table) < PROMPTS_MIN:
        check.refuse("", None, f"has {len(table)} rows, {PROMPTS_MIN} are least")
    rows = np.arange(len(table))
    if encode and encoded_max:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:encoded_max])
    vectors = NONE if encode else check.embeddings()
    texts = check.texts() if encode else []  # encoded when all else is known to be right
    quality = [check.figures(QUALITY + model, 0.0, most=1.0) for model in models]
    cost = [
        check.figures(COST + model, USD_MIN, most=USD_MAX)
        if priced or COST + model in table.column_names
        else np.zeros(len(table))
        for model in models
    ]
    return OutcomeTable(
        path.stem,
        models,
        encode([texts[row] for row in rows.tolist()]) if encode else vectors,
        check.prompt_tokens()[rows],
        np.stack(quality, axis=1)[rows],
        np.stack(cost, axis=1)[rows],
        check.kept_texts(rows) if with_texts else None,
    )


class _Check:
    """Columns of one file, each checked as it is taken out."""

    def __init__(self, name: str, table: pa.Table) -> None:
        self._name, self._table = name, table

    def refuse(self, column: str, row: int | None, why: str) -> NoReturn:
        """Say what is wrong. Raises TableRefused."""
        raise TableRefused(self._name, column, row, why)

    def has_embeddings(self) -> bool:
        """Whether there are any."""
        return "embedding" in self._table.column_names

    def embeddings(self) -> NDArray[np.float32]:
        """The prompts' vectors (n, dim), all of one length, finite, and none all zeros."""
        if not self.has_embeddings() and "prompt" in self._table.column_names:
            self.refuse("embedding", None, "is missing; --encoder makes embeddings of `prompt`")
        column = self._column("embedding")
        if pa.types.is_string(column.type):  # in a CSV file: "[0.1, 0.2]"
            column = self._lists(column)
        if not pa.types.is_fixed_size_list(column.type) and not pa.types.is_list(column.type):
            self.refuse("embedding", None, f"is {column.type}, a list of numbers is needed")
        lengths = np.array(column.combine_chunks().value_lengths().fill_null(0))
        if (lengths != lengths[0]).any() or not lengths[0]:
            row = int((lengths != lengths[0]).argmax())
            self.refuse("embedding", row, f"has {lengths[row]} numbers, {lengths[0]} in row 0")
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.astype(np.float32).reshape(len(column), -1)
        bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
        if bad.any():
            self.refuse("embedding", int(bad.argmax()), "is not finite, or all zeros")
        return vectors

    def _lists(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Texts that are JSON lists of numbers, as lists."""
        found = []
        for row, text in enumerate(column.to_pylist()):
            try:
                found.append([float(number) for number in json.loads(text)])
            except (ValueError, TypeError):
                self.refuse("embedding", row, f"is {text!r:.40}, a JSON list of numbers is needed")
        return pa.chunked_array([pa.array(found, pa.list_(pa.float64()))])

    def prompt_tokens(self) -> NDArray[np.int64]:
        """The prompts' lengths (n,); a quarter of the characters where only texts are given."""
        if "prompt_tokens" in self._table.column_names:
            return self.figures("prompt_tokens", 0, most=1e7).astype(np.int64)
        if "prompt" not in self._table.column_names:
            self.refuse("prompt_tokens", None, "is missing, and so is `prompt`")
        return np.array([max(1, len(text) // 4) for text in self.texts()], np.int64)

    def texts(self) -> list[str]:
        """The prompts' texts (n,)."""
        texts = self._column("prompt").to_pylist()
        wrong = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text]
        if wrong:
            self.refuse("prompt", wrong[0], f"is {texts[wrong[0]]!r:.40}, a text is needed")
        return texts

    def kept_texts(self, rows: NDArray[np.intp]) -> tuple[str | None, ...] | None:
        """The prompts at `rows`, None where there is none; None where there are none at all."""
        if "prompt" not in self._table.column_names:
            return None
        texts = self._table["prompt"].take(rows).to_pylist()
        return tuple(text if isinstance(text, str) and text else None for text in texts)

    def figures(self, name: str, least: float, *, most: float) -> NDArray[np.float64]:
        """A column of numbers (n,) within bounds."""
        try:
            values = self._column(name).to_numpy().astype(np.float64)
        except (ValueError, TypeError):
            self.refuse(name, None, f"is {self._table[name].type}, numbers are needed")
        bad = ~((values >= least) & (values <= most))  # also what is not a number
        if bad.any():
            row = int(bad.argmax())
            if np.isnan(values[row]):
                self.refuse(name, row, "is missing or no number; every model's result is needed")
            self.refuse(name, row, f"is {values[row]:g}, allowed is {least:g} to {most:g}")
        return values

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._table.column_names:
            self.refuse(name, None, "is missing")
        return self._table[name]


def write(table: OutcomeTable, path: Path) -> None:
    """Write figures only, embeddings at unit scale in 8 bits (their direction is what counts)."""
    peak = np.abs(table.embeddings).max(axis=1, keepdims=True)
    small = np.rint(table.embeddings / peak * 127).astype(np.int8)
    columns = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(small.ravel()), small.shape[1]),
        "prompt_tokens": pa.array(table.prompt_tokens.astype(np.int32)),
    }
    for column, model in enumerate(table.models):
        columns[QUALITY + model] = pa.array(table.quality[:, column].astype(np.float32))
        columns[COST + model] = pa.array(table.cost_usd[:, column].astype(np.float32))
    pq.write_table(pa.table(columns), path, compression="zstd", compression_level=19)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(read(source), Path(__file__).parent / source.name)
