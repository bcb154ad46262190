"""Telemetry of processes that never were: routers, pools and a dispatcher, some records nonsense.

    seed ─▶ sources ─▶ windows of a second ─▶ records ─▶ + repeats + poison, sources interleaved

All chance is `rng`, all time `now_ms`; the same ones give the same records.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streams.telemetry.records import (
    AnyTelemetry,
    ClassWindow,
    DispatchState,
    DispatchWindow,
    MixWindow,
    PoolState,
    ReplicaStates,
    RouterState,
    Workload,
    encode,
)

N_SOURCES = 6
WINDOW_MS = 1000
TENANTS = ("default", "acme", "globex")
MODELS = ("small", "large")
POISON = (b"", b"{", b'{"kind": "pool"}', b'{"kind": "weather"}', b"\xff\xfe")

Pair = tuple[bytes | None, bytes]


def made_telemetry(n: int, now_ms: int, rng: np.random.Generator) -> list[Pair]:
    """About n records as (key, value), in the order to append them; they end at `now_ms`."""
    n_windows = max(1, n // N_SOURCES)
    names = [f"{int(rng.integers(1 << 62)):016x}" for _ in range(N_SOURCES)]
    made: list[Pair] = []
    for window in range(n_windows):
        to_ms = now_ms - (n_windows - 1 - window) * WINDOW_MS
        for number in rng.permutation(N_SOURCES).tolist():
            record = _record(number, names[number], window, to_ms, rng)
            made += encode([record]) * (2 if rng.random() < 0.1 else 1)
            if rng.random() < 0.05:
                made.append((None, POISON[int(rng.integers(len(POISON)))]))
    return made


def _record(
    number: int, source: str, sequence: int, to_ms: int, rng: np.random.Generator
) -> AnyTelemetry:
    """The record of one source; every source is of one kind."""
    of: dict[str, Any] = {
        "source": source,
        "sequence": sequence,
        "from_unix_ms": to_ms - WINDOW_MS,
        "to_unix_ms": to_ms,
    }
    if number == 4:
        return _replicas(2, rng, of)
    kind = number % 4
    if kind == 0:
        return Workload(classes=[_class_window(name, rng) for name in TENANTS], **of)
    if kind == 1:
        mix = [
            MixWindow(model=m, pool=f"{m}-pool", decisions=int(rng.integers(9)), explored=0)
            for m in MODELS
        ]
        return RouterState(mix=mix, refused=int(rng.integers(3)), snapshot_version=1001, **of)
    if kind == 2:
        return PoolState(
            pool="small-pool",
            model="small",
            replica=f"replica-{number}",
            gpu="l4",
            queued=int(rng.integers(9)),
            running=int(rng.integers(9)),
            kv_use=float(rng.random()),
            watts=70.0,
            joules=float(rng.uniform(0.0, 70.0)),
            tokens=int(rng.integers(2000)),
            ttft_ms=_histogram(rng),
            tpot_ms=_histogram(rng),
            **of,
        )
    window = DispatchWindow(
        pool="small-pool",
        attempts=int(rng.integers(9)),
        answered=int(rng.integers(9)),
        failed={"unreachable": int(rng.integers(3))},
        rerouted={"large-pool": int(rng.integers(3))},
    )
    return DispatchState(pools=[window], **of)


def _replicas(n: int, rng: np.random.Generator, of: dict[str, Any]) -> ReplicaStates:
    """Replicas that are reported on together."""
    return ReplicaStates(
        pool="large-pool",
        model="large",
        replica=[f"large-{i}" for i in range(n)],
        state=["ready"] * n,
        queued=rng.integers(9, size=n).tolist(),
        running=rng.integers(9, size=n).tolist(),
        kv_use=rng.random(n).tolist(),
        load=rng.random(n).tolist(),
        watts=[300.0] * n,
        joules=rng.uniform(0.0, 300.0, n).tolist(),
        tokens=int(rng.integers(9000)),
        ttft_ms=_histogram(rng),
        tpot_ms=_histogram(rng),
        **of,
    )


def _class_window(name: str, rng: np.random.Generator) -> ClassWindow:
    n = int(rng.integers(1, 20))
    return ClassWindow(name=name, arrivals=n, prompt_tokens_sum=100 * n, prompt_tokens=[(27, n)])


def _histogram(rng: np.random.Generator) -> list[tuple[int, int]]:
    buckets = np.unique(rng.integers(100, 130, 6)).tolist()
    return [(bucket, int(rng.integers(1, 9))) for bucket in buckets]
