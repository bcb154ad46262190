"""Outcome tables: for every prompt, what each model's answer was worth and what it cost.

With all models' results known, any router can be replayed against reality: whichever model it
chooses, the table says what would have come of it.

    python -m load.data.tables SOURCE.parquet     rebuilds the bundled table from its source

The bundled table is `paretobandit`: 3,559 prompts × 4 models with measured costs, from
ParetoBandit/ParetoBandit (Apache-2.0); embeddings by all-MiniLM-L6-v2. It has figures only, no
prompt's text. Embeddings are kept as 8-bit numbers, prompt lengths as characters / 4.

The one rule: a table is only figures; which of them a router gets to see is the replay's business.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

BUNDLED = "paretobandit"
QUALITY, COST = "quality:", "cost_usd:"


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeTable:
    """n prompts, k models."""

    name: str
    models: tuple[str, ...]  # (k,)
    embeddings: NDArray[np.float32]  # (n, dim)
    prompt_tokens: NDArray[np.int64]  # (n,)
    quality: NDArray[np.float64]  # (n, k) 0 to 1
    cost_usd: NDArray[np.float64]  # (n, k) US dollars per call

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: NDArray[np.intp]) -> OutcomeTable:
        """The prompts at `rows`, in that order."""
        return OutcomeTable(
            self.name,
            self.models,
            self.embeddings[rows],
            self.prompt_tokens[rows],
            self.quality[rows],
            self.cost_usd[rows],
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
        )

    def shuffled(self, seed: int, n_max: int) -> OutcomeTable:
        """At most `n_max` prompts in an order of their own for every seed."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(order[:n_max])


def bundled() -> OutcomeTable:
    """The table that comes with the package."""
    with resources.as_file(resources.files("load") / "data" / f"{BUNDLED}.parquet") as path:
        return read(path)


def read(path: Path) -> OutcomeTable:
    """A table in the form of `write`, or a source table with `prompt` instead of a length.

    Raises OSError, and ValueError if columns are missing.
    """
    table = pq.read_table(path)
    models = tuple(c.removeprefix(QUALITY) for c in table.column_names if c.startswith(QUALITY))
    if not models or "embedding" not in table.column_names:
        raise ValueError(
            f"{path} is no outcome table: it needs `embedding` and, for every model, "
            f"`{QUALITY}<model>` and `{COST}<model>`"
        )
    if "prompt_tokens" in table.column_names:
        prompt_tokens = table["prompt_tokens"].to_numpy()
    else:
        prompt_tokens = np.array([max(1, len(p) // 4) for p in table["prompt"].to_pylist()])
    embedding = table["embedding"].combine_chunks()
    return OutcomeTable(
        path.stem,
        models,
        embedding.flatten().to_numpy().astype(np.float32).reshape(len(table), -1),
        prompt_tokens.astype(np.int64),
        np.stack([table[QUALITY + m].to_numpy().astype(np.float64) for m in models], axis=1),
        np.stack([table[COST + m].to_numpy().astype(np.float64) for m in models], axis=1),
    )


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
