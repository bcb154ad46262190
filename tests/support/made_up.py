"""Decisions that were never made, and reports about them: what several test files learn from."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from streams.feedback.ticket import CANDIDATE, HEAD, Issuer, Sealer, key_of

KEY = bytes(range(32))
ENCODER = "hashing-64-test"
NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
MODELS = ("small", "large", "tiny")
SEALER = Sealer([KEY])
# Histories so short that rows are indexed, split into parts and forgotten within a test.
MEMORY = MemoryOptions(history=HistoryOptions(rows_max=40, exact_rows_max=16))


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision and the ticket it came with."""

    decision_id: bytes
    decided_at_ms: int
    ticket: bytes


def heads(n: int, rng: np.random.Generator, **columns: object) -> np.ndarray:
    """Random `HEAD` records (n,), some of their columns given."""
    head = np.zeros(n, HEAD)
    head["decided_at_ms"] = NOW_MS - rng.integers(0, 3_600_000, n)
    head["encoder"] = key_of(ENCODER)
    head["snapshot_version"] = 1001
    head["model"] = [key_of(MODELS[i]) for i in rng.integers(0, len(MODELS), n)]
    head["pool"] = [key_of(f"pool-{i}") for i in rng.integers(0, 2, n)]
    head["propensity"] = rng.uniform(0.1, 1.0, n)
    head["preference"] = (1.0, 10.0, 0.01, 0.5)
    head["expected_cost_usd"] = rng.uniform(1e-5, 1e-2, n)
    head["expected_latency_ms"] = rng.uniform(100.0, 5000.0, n)
    head["context"] = rng.integers(-127, 128, (n, HEAD["context"].shape[0]))
    for name, values in columns.items():
        head[name] = values
    return head


def decided(
    n: int,
    *,
    seed: int = 0,
    issuer: int | None = None,
    sealer: Sealer = SEALER,
    first: int = 0,
    **columns: object,
) -> list[Decided]:
    """n decisions of one issuer, its sequence numbers from `first` on."""
    rng = np.random.default_rng(seed)
    issuing = Issuer(seed + 1 if issuer is None else issuer)
    if first:
        issuing.take(first)
    ids, head = issuing.take(n), heads(n, rng, **columns)
    tickets = sealer.seal(ids, head, np.zeros((n, 0), CANDIDATE), [b"tenant"] * n)
    times = head["decided_at_ms"].tolist()
    return [Decided(*row) for row in zip(ids, times, tickets, strict=True)]


def report(ticket: bytes | str, **fields: object) -> bytes:
    """A feedback record's value as a producer in another language would write it."""
    if isinstance(ticket, bytes):
        ticket = base64.urlsafe_b64encode(ticket).decode()
    return json.dumps({"ticket": ticket, **fields}).encode()


def reports(decisions: Sequence[Decided], *, seed: int = 0) -> list[list[bytes]]:
    """For each decision, the records that report on it: some whole, some in two parts."""
    rng = np.random.default_rng(seed)
    found = []
    for decision in decisions:
        now = {
            "cost_usd": round(float(rng.uniform(1e-6, 0.1)), 9),
            "latency_ms": round(float(rng.uniform(1.0, 60_000.0)), 3),
            "output_tokens": int(rng.integers(0, 4000)),
            "error": bool(rng.integers(0, 2)),
        }
        later = {"quality": round(float(rng.uniform(0.0, 1.0)), 4)}
        parts = [now, later] if rng.integers(0, 2) else [{**now, **later}]
        found.append([report(decision.ticket, **part) for part in parts])
    return found
