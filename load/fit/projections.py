"""Fits the projections that ship with the package: `python -m load.fit.projections DATA_DIR`.

    DATA_DIR/outcomes/*.parquet ─▶ embeddings of 17,789 prompts ─▶ Projection.fit
                                                         ─▶ serve/projections/<vectors>.npz

What ships is figures only: a mean and 62 directions per encoder, and no prompt. They come from

    llmrouter_dc   5,989 prompts   ulab-uiuc/LLMRouter       MIT
    mmlu_pro      11,800 prompts   TIGER-AI-Lab/MMLU-Pro     Apache-2.0

all-MiniLM-L6-v2 from the tables' `embedding` column, the others from their `prompt` column.

paretobandit and llmdrift are not among the sources: what is measured on them is measured on prompts
that the projection has not seen. On the other two it has seen the embeddings, never an outcome;
docs/decisions.md says what difference that makes. Fit only for a reason: the same data on another
processor may give other last bits, and with any other bit routers refuse the histories they have.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.context import Projection
from serve.encoders.hashing import Hashing
from serve.encoders.projections import FITTED_DIMS, HASHING, MINILM, WORDLLAMA
from serve.encoders.wordllama import WordLlama

TABLES = ("llmrouter_dc", "mmlu_pro")
SOURCE = (
    "Principal directions of the prompts of ulab-uiuc/LLMRouter (MIT) and "
    "TIGER-AI-Lab/MMLU-Pro (Apache-2.0), embedded by {encoder}; made by load/fit/projections.py"
)
FOLDER = Path(__file__).parents[2] / "serve" / "projections"


def main(data_dir: Path) -> None:
    """Write every projection that ships."""
    tables = [
        pq.read_table(data_dir / "outcomes" / f"{name}.parquet", columns=["prompt", "embedding"])
        for name in TABLES
    ]
    for encoder, embeddings in embeddings_of(pa.concat_tables(tables)):
        save(encoder, embeddings)


def embeddings_of(prompts: pa.Table) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each fitted encoder's name with its embeddings (n, dim) of the prompts."""
    held = prompts["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    yield MINILM, held.astype(np.float32).reshape(len(prompts), -1)

    texts = prompts["prompt"].to_pylist()
    yield WORDLLAMA, WordLlama(unused(WORDLLAMA)).encode(texts)
    yield HASHING, Hashing(FITTED_DIMS[HASHING], unused(HASHING)).encode(texts)


def unused(encoder: str) -> Projection:
    """An encoder must carry some projection, which its own vectors do not depend on."""
    return Projection.random(FITTED_DIMS[encoder], np.random.default_rng(0))


def save(encoder: str, embeddings: NDArray[np.float32]) -> None:
    """Fit, and write the figures with a word on where they come from."""
    projection = Projection.fit(embeddings)
    file = FOLDER / f"{encoder}.npz"
    np.savez(
        file,
        mean=projection.mean,
        directions=projection.directions.astype(np.float16),
        source=np.array(SOURCE.format(encoder=encoder)),
    )
    print(f"{file}: {len(embeddings):,} prompts, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m load.fit.projections DATA_DIR")
    main(Path(sys.argv[1]))
