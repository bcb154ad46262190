"""Feedback about decisions that were never made: genuine tickets, made-up outcomes, some nonsense.

    seed ─▶ decisions ─▶ sealed tickets ─▶ reports (whole, or latency now and quality later)
                                              └─▶ + copies + poison, shuffled

Copies are exact and parts don't overlap, so what is learned does not depend on the order in which
partitions are read: any two runs over the same topic must end in equal bits.

All chance is `rng`, all time `now_ms`; the same ones give the same records.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import msgspec
import numpy as np

from streams.feedback.ticket import CANDIDATE, HEAD, Issuer, Sealer, key_of

N_MODELS, N_POOLS, N_ISSUERS = 6, 8, 4
CANDIDATES = range(4, 9)
SPREAD_MS = 600_000  # decisions are of the last ten minutes
TENANT = b"tenant-7"
POISON = (
    b"{",
    b'{"ticket": 7, "quality": 1.0}',
    b'{"ticket": "AAAA", "quality": 0.5}',
    b'{"ticket": "AAAA"}',
    b'{"ticket": "AAAA", "quality": NaN}',
    b'{"ticket": "AAAA", "quality": 2.0}',
    b"\xff\xfe not even text",
)

Pair = tuple[bytes | None, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What feedback is like, as shares of all records."""

    copies: float = 0.03  # producers that retry send records twice
    poison: float = 0.02
    in_parts: float = 0.5  # of decisions, reported in two records


def made_feedback(
    n: int, sealer: Sealer, encoder: str, now_ms: int, rng: np.random.Generator, mix: Mix
) -> list[Pair]:
    """Make n records as (key, value), in the order to append them; keys are decision ids."""
    n_poison, n_copies = round(n * mix.poison), round(n * mix.copies)
    n_genuine = n - n_poison - n_copies
    genuine: list[Pair] = []
    issuers = [Issuer(int(rng.integers(1 << 56))) for _ in range(N_ISSUERS)]
    while len(genuine) < n_genuine:
        issuer = issuers[int(rng.integers(N_ISSUERS))]
        genuine += _reports(min(256, n_genuine), issuer, sealer, encoder, now_ms, rng, mix)
    del genuine[n_genuine:]
    copies = [genuine[i] for i in rng.integers(0, n_genuine, n_copies)]
    poison = [(None, POISON[i]) for i in rng.integers(0, len(POISON), n_poison)]
    # Shuffled in blocks: parts and copies come soon after, as in life, not all at the end.
    mixed = genuine + copies + poison
    place = np.concatenate([np.arange(n_genuine), rng.uniform(0, n_genuine, n - n_genuine)])
    return [mixed[i] for i in np.argsort(place + rng.uniform(0, 1000, n))]


def _reports(
    n: int,
    issuer: Issuer,
    sealer: Sealer,
    encoder: str,
    now_ms: int,
    rng: np.random.Generator,
    mix: Mix,
) -> list[Pair]:
    """The records about n decisions."""
    heads = _heads(n, encoder, now_ms, rng)
    candidates = np.zeros((n, int(rng.integers(CANDIDATES.start, CANDIDATES.stop))), CANDIDATE)
    candidates["model"] = rng.integers(0, 1 << 63, candidates.shape)
    heads["n_candidates"] = candidates.shape[1]
    ids = issuer.take(n)
    tickets = sealer.seal(ids, heads, candidates, [TENANT] * n)
    found: list[Pair] = []
    for decision_id, ticket, draw in zip(ids, tickets, rng.random((n, 5)).tolist(), strict=True):
        key, text = decision_id.hex().encode(), base64.urlsafe_b64encode(ticket).decode()
        now = {
            "cost_usd": round(0.02 * draw[0], 6),
            "latency_ms": round(50 + 3000 * draw[1], 1),
            "output_tokens": int(2000 * draw[2]),
            "error": bool(draw[3] < 0.02),
        }
        later = {"quality": round(draw[4], 3)}
        parts = [now, later] if rng.random() < mix.in_parts else [now | later]
        found += [(key, msgspec.json.encode({"ticket": text, **part})) for part in parts]
    return found


def _heads(n: int, encoder: str, now_ms: int, rng: np.random.Generator) -> np.ndarray:
    models, pools = (
        np.array([key_of(f"{kind}-{i}") for i in range(count)], np.uint64)
        for kind, count in (("model", N_MODELS), ("pool", N_POOLS))
    )
    heads = np.zeros(n, HEAD)
    heads["decided_at_ms"] = now_ms - rng.integers(0, SPREAD_MS, n)
    heads["encoder"] = key_of(encoder)
    heads["model"] = models[rng.integers(0, N_MODELS, n)]
    heads["pool"] = pools[rng.integers(0, N_POOLS, n)]
    heads["propensity"] = rng.uniform(0.05, 1.0, n)
    heads["expected_cost_usd"] = rng.uniform(0.001, 0.02, n)
    heads["expected_latency_ms"] = rng.uniform(200, 3000, n)
    heads["context"] = rng.integers(-60, 61, (n, HEAD["context"].shape[0]))
    heads["tenant_bytes"] = len(TENANT)
    return heads
