"""A history of a million rows and more: what adding, searching, merging and saving it takes.

    rows in batches ──▶ History ──settle──▶ index: built, extended, thinned   (the trainer)
                            └──▶ snapshot ──▶ searched, also while another index is made

Contexts come in topics, as prompts do: a hundred rows each. Recall is of the nearest 32, against an
exact search. Rates are per second of processor time; latency beside a merge is by the clock, since
what a search waits for is the other's use of the machine.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES, STEP, Contexts, unit_directions
from learners.estimates.history import Directions, History, HistoryOptions, Rows, no_rows
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.nearest import ivf
from load.bench.speed import held
from load.bench.speed.open_loop import quantile_ms
from load.bench.speed.scorer import BATCH, cpu_us
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, Saver, State

Say = Callable[[str], None]
ROWS_PER_TOPIC = 100
TOPIC_SPREAD, OWN_SPREAD = 0.6 / STEP, 0.4 / STEP  # of a feature: between topics, and within one
TOGETHER = 8192  # rows per batch, as the trainer reads
ASKED, NEAREST = 512, 32
EXACT_TOGETHER = 100_000


def measure(n: int, seed: int, say: Say) -> dict[str, Any]:
    """All of a history of `n` rows."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(0.0, TOPIC_SPREAD, (max(1, n // ROWS_PER_TOPIC), N_FEATURES))
    options = HistoryOptions(rows_max=n)
    history = History(options)
    found: dict[str, Any] = {"rows": n}

    def keep(**figures: Any) -> None:
        """Say what is measured as soon as it is: the whole may take an hour."""
        found.update(figures)
        say(f"{figures}")

    add_cpu_s, add_wall_s = _added(history, n, topics, rng)
    keep(add_per_s=n / add_cpu_s, add_wall_s=add_wall_s)
    asked = unit_directions(_contexts(ASKED, topics, rng))
    contexts = history.rows["contexts"]
    keep(search=_searched(history, asked, contexts))
    keep(snapshot=_saved(history, options))
    new = unit_directions(_contexts(TOGETHER, topics, rng))
    kept = np.sort(rng.choice(history.n_indexed, history.n_indexed * 8 // 9, replace=False))
    index: Any = history.index
    merge = {"extend": _beside(lambda: ivf.extended(index, new), index, asked)}
    merge["thin"] = _beside(lambda: ivf.thinned(index, kept), index, asked)
    merge["build"] = _beside(partial(ivf.built, Directions(contexts)), index, asked)
    keep(merge=merge)
    of_replica = held.of_replica(n)
    view_cpu_s = of_replica.pop("view_cpu_s")
    keep(bytes_per_row=of_replica, view_cpu_s=view_cpu_s)
    return found


def _contexts(n: int, topics: np.ndarray, rng: np.random.Generator) -> Contexts:
    own = rng.normal(0.0, OWN_SPREAD, (n, N_FEATURES))
    found = np.clip(topics[rng.integers(0, len(topics), n)] + own, -127, 127).astype(np.int8)
    found[:, BIAS_FEATURE] = BIAS
    return found


def _rows(first: int, n: int, topics: np.ndarray, rng: np.random.Generator) -> Rows:
    rows = no_rows(n)
    rows["issuers"][:] = rng.integers(0, 4, n)
    rows["sequences"][:] = np.arange(first, first + n)
    rows["decided_at_ms"][:] = np.arange(first, first + n)
    rows["models"][:] = rng.integers(0, 8, n)
    rows["tenant_hashes"][:] = rng.integers(1, 9, n)
    rows["contexts"][:] = _contexts(n, topics, rng)
    rows["targets"][:] = rng.integers(0, 1000, rows["targets"].shape)
    rows["known"][:] = True
    return rows


def _added(
    history: History, n: int, topics: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Seconds of processor and of the clock that appending and settling took."""
    cpu_s = wall_s = 0.0
    for first in range(0, n, TOGETHER):
        rows = _rows(first, min(TOGETHER, n - first), topics, rng)
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        history.append(rows)
        history.settle()
        cpu_s += time.process_time() - began_cpu_s
        wall_s += time.perf_counter() - began_s
    return cpu_s, wall_s


def _searched(history: History, asked: np.ndarray, contexts: Contexts) -> dict[str, float]:
    """Recall, and microseconds of processor time of a search."""
    index: Any = history.index
    n = history.n_indexed
    _, near = index.search(asked, NEAREST)
    exact = _exact(asked, contexts[:n])
    hits = [len(set(a) & set(b)) for a, b in zip(near.tolist(), exact.tolist(), strict=True)]
    one, many = asked[:1], asked[:BATCH]
    return {
        "recall_at_32": float(np.mean(hits)) / NEAREST,
        "lists": float(index.nlist),
        "probes": float(index.nprobe),
        "one_us": cpu_us(lambda: index.search(one, NEAREST), 50),
        "batch64_us": cpu_us(lambda: index.search(many, NEAREST), 5) / BATCH,
    }


def _exact(asked: np.ndarray, contexts: Contexts) -> np.ndarray:
    """The truly nearest rows (n, 32), found some rows at a time."""
    heap = faiss.ResultHeap(len(asked), NEAREST, keep_max=True)
    for first in range(0, len(contexts), EXACT_TOGETHER):
        flat = faiss.IndexFlatIP(N_FEATURES)
        flat.add(unit_directions(contexts[first : first + EXACT_TOGETHER]))
        similarity, row = flat.search(asked, NEAREST)
        heap.add_result(similarity, row + first)
    heap.finalize()
    found: np.ndarray = heap.I
    return found


def _beside(merge: Callable[[], object], index: Any, asked: np.ndarray) -> dict[str, float]:
    """Processor time of a merge, and what searches took meanwhile, in milliseconds."""
    took_s: list[float] = []
    cpu_s: list[float] = []

    def work() -> None:
        began_s = time.thread_time()
        merge()
        cpu_s.append(time.thread_time() - began_s)

    merging = threading.Thread(target=work)
    merging.start()
    row = 0
    while merging.is_alive():
        began_s = time.perf_counter()
        index.search(asked[row % len(asked)][None], NEAREST)
        took_s.append(time.perf_counter() - began_s)
        row += 1
        time.sleep(0.001)  # a thousand requests a second
    merging.join()
    return {
        "cpu_ms": 1000.0 * cpu_s[0],
        "search_p50_ms": quantile_ms(took_s, 0.5),
        "search_p99_ms": quantile_ms(took_s, 0.99),
        "searches": float(len(took_s)),
    }


def _saved(history: History, options: HistoryOptions) -> dict[str, float]:
    """Seconds to save and to load, by the clock, and bytes of the history."""
    memory = MemoryOptions(history=options)
    learned = Learned(memory)
    learned.history = history
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Folder(str(Path(folder) / "store")))
        store.claim()
        began_s = time.perf_counter()
        version = Saver(store).save(State(held.ENCODER, learned), 0)
        save_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        Loader(store, held.ENCODER, memory, with_seen=False).load(version)
        blobs = store.load(version).blobs.items()
        return {
            "save_s": save_s,
            "load_s": time.perf_counter() - began_s,
            "bytes": float(sum(blob.size for name, blob in blobs if name.startswith("history/"))),
        }
