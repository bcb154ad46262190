"""What a row of history takes of a replica and of the disk, measured in a process of its own.

    a trainer's snapshot of n rows ──▶ Loader ──▶ Live, searched ──▶ resident memory
                                                                        − the same of few rows

Memory all told: the rows, the index over them, what is kept to load the next snapshot from, and
what is allocated and not given back. Beside it, what the history takes on disk. Each per row.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from learners.estimates.estimator import BlendOptions
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from load.bench.speed.child import child
from load.bench.speed.known import known
from load.bench.speed.scorer import BATCH, NEIGHBOURS_SHARE, requests
from load.bench.speed.serving import N_MODELS, Stated
from serve.routing.live import Live, LiveOptions
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, Saver, State

# Rows of the replica that is measured first: it has loaded and compiled all there is, and has an
# index over all its rows, as the other one.
FEW = 10_000
ENCODER = "bench"


def of_replica(rows: int) -> dict[str, float]:
    """Bytes per row, `memory` of a replica and `snapshot` on disk; `view_cpu_s` of a view of all.

    A view is made of every snapshot, in a thread beside the event loop.
    """
    with child(__name__, str(rows)) as up:
        found: dict[str, float] = json.loads(up.said)
        return found


# --- in the child


def resident_bytes() -> int:
    """Memory of this process that is its own, or its share of what others have, too."""
    gc.collect()
    with suppress(OSError, AttributeError):  # where the C library has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    found = re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def memory_of(rows: int) -> MemoryOptions:
    """Options under which so many rows are kept."""
    return MemoryOptions(history=HistoryOptions(rows_max=max(1000, rows)))


def saved(folder: Path, rows: int) -> int:
    """A snapshot of so many rows; bytes of its history on disk."""
    store, rng = Store(Folder(str(folder))), np.random.default_rng(0)
    names = list(Stated(N_MODELS).read().names)
    store.claim()
    learned = known(names, ENCODER, 0, rng, rows // N_MODELS, memory_of(rows))
    version = Saver(store).save(State(ENCODER, learned), 0)
    blobs = store.load(version).blobs.items()
    return sum(blob.size for name, blob in blobs if name.startswith("history/"))


def replica_of(folder: Path, rows: int) -> tuple[object, float]:
    """What a router replica holds of a snapshot, once it has answered; seconds for its view."""
    loader = Loader(Store(Folder(str(folder))), ENCODER, memory_of(rows), with_seen=False)
    loaded = loader.load_newest()
    assert loaded is not None
    blend = BlendOptions(neighbours_share=NEIGHBOURS_SHARE)
    options = LiveOptions(blend=blend)
    learned = loaded[0].learned
    began_s = time.thread_time()
    with learned.history.at_hand():  # as `LiveView` does
        live = Live(Stated(N_MODELS).read(), learned, ENCODER, options)
    view_s = time.thread_time() - began_s
    loader.let_go()
    live.estimator.estimate(requests(BATCH, np.random.default_rng(1)).contexts)
    return (loader, loaded, live), view_s


def main(arguments: Sequence[str]) -> None:
    """Measure, say so, and wait to be stopped."""
    rows = int(arguments[0])
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        on_disk = saved(many, rows) - saved(few, FEW)
        replica, _ = replica_of(few, FEW)
        before = resident_bytes()
        del replica
        replica, view_s = replica_of(many, rows)
        more = resident_bytes() - before
        del replica
    memory, snapshot = more / (rows - FEW), on_disk / (rows - FEW)
    found = {"memory": memory, "snapshot": snapshot, "view_cpu_s": view_s}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
