"""Makes the landmarks that ship with the package: `python -m load.fit.landmarks DATA_DIR`.

    DATA_DIR/outcomes/*.parquet ─▶ contexts of 17,789 prompts ─k-means─▶ learners/landmarks/*.npz

The same prompts that projections were fitted on (see `load.fit.projections`), as figures only. For
vectors of other encoders there is a generic set: directions drawn at random.

Make them only for a reason: what was learned with other landmarks is learned again from the
history, which holds less than the sums did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learners.context import N_DIRECTIONS, RMS, STEP, Contexts
from learners.estimates.landmarks import GENERIC, N_LANDMARKS, Landmarks, spread_out
from load.fit.projections import TABLES, embeddings_of
from serve.encoders.projections import fitted

SEED = 7
FOLDER = Path(__file__).parents[2] / "learners" / "landmarks"


def main(data_dir: Path) -> None:
    """Write every set that ships."""
    columns = ["prompt", "embedding"]
    tables = [
        pq.read_table(data_dir / "outcomes" / f"{t}.parquet", columns=columns) for t in TABLES
    ]
    prompts = pa.concat_tables(tables)
    tokens = np.array([max(1, len(p) // 4) for p in prompts["prompt"].to_pylist()], np.float32)
    for encoder, embeddings in embeddings_of(prompts):
        contexts = fitted(encoder).contexts(embeddings, tokens)
        save(encoder, Landmarks.fit(spread_out(contexts, SEED), contexts))
    made_up = generic_contexts(4096 + N_LANDMARKS)
    save(GENERIC, Landmarks.fit(made_up[:N_LANDMARKS, :-1].copy(), made_up[N_LANDMARKS:]))


def generic_contexts(n: int) -> Contexts:
    """Contexts (n, 64) of no encoder: random directions and lengths."""
    rng = np.random.default_rng(SEED)
    features = rng.standard_normal((n, N_DIRECTIONS + 2)) * (RMS / STEP)
    features[:, -1] = 1 / STEP
    return np.clip(np.rint(features), -127, 127).astype(np.int8)


def save(name: str, landmarks: Landmarks) -> None:
    """Write a set."""
    file = FOLDER / f"{name}.npz"
    file.write_bytes(landmarks.to_bytes())
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m load.fit.landmarks DATA_DIR")
    main(Path(sys.argv[1]))
