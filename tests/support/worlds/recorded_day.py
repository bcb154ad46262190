"""A day of a made-up site for the dashboard: status, history, decisions; nothing of it runs.

The baseline's calls cost `COST["large"]` on average whatever the request, and requests are drawn with known
probabilities, so what routing saves is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infra.dashboard.history import AT, HOURS, History
from infra.dashboard.recorder import TALLY
from infra.dashboard.savings import tallied, written
from infra.status.status import PriceView, Status
from learners.context import N_FEATURES
from streams.alarms import Alarm, Change
from streams.feedback.decisions import DecisionBatch, encode
from streams.feedback.said import NOTHING
from streams.log.contract import DECISIONS
from streams.log.sqlite_log import SqliteLog
from streams.telemetry.fleet_view import ClassView, MixView, PoolView, RouterView
from streams.training.folder import Folder

NOON_MS = 1_760_000_000_000
MODELS = ("small", "medium", "large")
COST = {"small": 0.0004, "medium": 0.002, "large": 0.01}
QUALITY = {"small": 0.71, "medium": 0.82, "large": 0.88}
CHANCE = {"small": 0.62, "medium": 0.28, "large": 0.10}
SAVED = 1.0 - sum(CHANCE[m] * COST[m] for m in MODELS) / COST["large"]
EXPLANATION = {
    "decision_id": "0123456789abcdef01234567", "tenant": "acme", "decided_at_unix_ms": NOON_MS - 90_000,
    "snapshot_version": 8123, "encoder": "wordllama", "policy": "SquareCb(strength=1.0)",
    "preference": {"quality": 1.0, "cost": 20.0, "latency": 0.01, "energy": 0.0},
    "models": [
        {"model": name, "pool": f"{name}-l40s", "chosen": name == "small", "propensity": CHANCE[name],
         "utility": QUALITY[name] - 20 * COST[name], "quality": QUALITY[name], "cost_usd": COST[name],
         "latency_ms": 400.0 + 900.0 * i,
         "reason": "chosen: highest utility, drawn with probability 0.62" if name == "small" else f"{0.02 * i:.2g} points behind the best; probability {CHANCE[name]:.2g}",
         "energy_j": 0.0}
        for i, name in enumerate(MODELS)
    ],
    "neighbours": [
        {"model": MODELS[i % 3], "similarity": 0.97 - 0.03 * i, "quality": round(0.9 - 0.05 * i, 2), "decided_at_unix_ms": NOON_MS - 3_600_000 * i}
        for i in range(6)
    ],
    "prices": {"small-l40s": 0.4, "large-l40s": 1.3},
}  # fmt: skip


def samples(rng: np.random.Generator, n: int = 24 * 60) -> list[dict[str, Any]]:
    """One a minute, the last at noon."""
    found = []
    for i in range(n):
        at_ms = NOON_MS - (n - 1 - i) * 60_000
        day = 0.5 - 0.5 * np.cos(2 * np.pi * (at_ms % 86_400_000) / 86_400_000)
        per_s = 20 + 180 * day + 12 * rng.standard_normal()
        drawn = rng.choice(3, 60, p=[CHANCE[m] for m in MODELS])
        names = [MODELS[j] for j in drawn]
        cost = np.array([COST[m] for m in names]) * rng.lognormal(-0.02, 0.2, 60)
        quality = np.clip([QUALITY[m] + 0.1 * rng.standard_normal() for m in names], 0, 1)
        chance = np.array([CHANCE[m] for m in names])
        tally = tallied(names, chance, {"cost_usd": cost, "quality": quality})
        found.append(
            {
                AT: at_ms, "decisions_per_s": per_s, "refused_per_s": max(0.0, 4 * day - 3.2),
                "arrivals_per_s": per_s, "latency_ms_p50": 0.8 + 0.4 * day, "latency_ms_p99": 2.0 + 3 * day + rng.random(),
                "explored_share": 0.08, "snapshot_age_s": 0.4, "lag_s": float(rng.exponential(0.3)), "alarms": 0,
                "models_per_s": {m: per_s * CHANCE[m] for m in MODELS},
                "replicas": {"small-l40s": 2 + round(4 * day), "large-l40s": 1 + round(2 * day)},
                "ttft_ms_p99": {"small-l40s": 300.0}, "price": {"small-l40s": 0.2 + day, "large-l40s": 0.1 + 1.2 * day},
                "budget_spent": {"acme": i / n}, "quality": float(quality.mean()), "cost_usd": float(cost.mean()),
                "answer_ms": 900.0, "error_share": 0.004, TALLY: written(tally),
            }
        )  # fmt: skip
    return found


def status(*, alarmed: bool = False) -> Status:
    mix = tuple(
        MixView(model=m, pool=f"{m}-l40s", decisions=int(1e6 * CHANCE[m]), explored=int(8e4 * CHANCE[m]), decisions_per_s=150 * CHANCE[m])
        for m in MODELS
    )  # fmt: skip
    cause = "Feedback waits, and for 3 minutes nothing of it was read."
    alarms = (Alarm(name="trainer_stuck", since_ms=NOON_MS - 180_000, cause=cause),)
    changes = (
        Change(
            model="medium",
            target="quality",
            since_ms=NOON_MS - 7_200_000,
            outcomes=840,
            shift=-0.41,
        ),
    )
    return Status(
        snapshot_version=8124, snapshot_age_s=0.4, encoder="wordllama", records=1_204_332, learned=1_190_021,
        duplicate=14_100, moved=0, skipped=0, dead_letter={"bad_ticket": 180, "too_late": 31},
        decided={m: int(9e5 * CHANCE[m]) for m in MODELS}, unanswered={"small": 12_000}, lag_records=42, lag_s=0.3,
        alarms=alarms if alarmed else (), changes=changes, workload={"acme": class_view()},
        router=RouterView(
            replicas=2, decisions_per_s=152.4, explored_share=0.081, refused=5210, refused_per_s=0.6, snapshot_version=8124,
            snapshot_age_ms=400, loop_lag_ms_max=1.2, loop_busy_share=0.31, latency_ms_p50=1.04, latency_ms_p99=4.31, mix=mix,
        ),
        pools={f"{m}-l40s": pool_view(m) for m in MODELS},
        prices={"small-l40s": PriceView(load=0.82, multiple=0.4), "large-l40s": PriceView(load=1.1, multiple=1.3)},
    )  # fmt: skip


def class_view() -> ClassView:
    empty = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    return ClassView(
        counts={"arrivals": 9, "shed": 0}, arrivals_per_s={"10s": 150.0, "1m": 152.4, "5m": 149.0}, prompt_tokens_per_s=1.0,
        prompt_tokens_mean=1.0, prompt_tokens=empty, output_tokens_mean=1.0, output_tokens=empty, prompt_lengths={}, output_lengths={},
    )  # fmt: skip


def pool_view(model: str) -> PoolView:
    return PoolView(
        model=model, gpu="l40s", region="", replicas={"ready": 3}, queued=4, running=31, kv_use=0.6,
        ttft_ms={"p50": 180.0, "p95": 420.0, "p99": 910.0}, tpot_ms={"p50": 11.0, "p95": 18.0, "p99": 30.0}, tokens_per_s=2100.0,
        watts=900.0, joules=1e9, tokens=10**8, attempts=10**6, answered=10**6, failed={"late": 12}, cancelled=40, retried=31,
        hedged=0, escalated=0, rerouted={}, ejections=1, refusals=0, last_resort=0, refuses=(), derived=False, silent_s=0.4,
        capacity_per_s=12.0, capacity_deviation_per_s=1.0, capacity_seen_full=True, learned_from=9000,
    )  # fmt: skip


def decided(log: SqliteLog, rng: np.random.Generator, n: int = 40) -> None:
    """Decisions of the last minute, in the log."""
    chosen, k = rng.choice(3, n, p=[CHANCE[m] for m in MODELS]), len(MODELS)
    columns = {
        "quality": np.array([[QUALITY[m] for m in MODELS]] * n), "cost_usd": np.array([[COST[m] for m in MODELS]] * n),
        "latency_ms": np.full((n, k), 700.0), "utility": np.full((n, k), 0.7),
    }  # fmt: skip
    batch = DecisionBatch(
        ids=[i.to_bytes(12, "big") for i in range(n)], decided_at_ms=NOON_MS - 1000 * np.arange(n, dtype=np.int64),
        tenants=["acme" if i % 3 else "" for i in range(n)], sessions=[""] * n, models=MODELS, pools=[f"{m}-l40s" for m in MODELS],
        chosen=chosen, pool=chosen, propensities=np.tile([CHANCE[m] for m in MODELS], (n, 1)), preference=np.tile([1.0, 20.0, 0.01, 0.0], (n, 1)),
        prompt_tokens=np.full(n, 120.0), snapshot_version=8124, policy="SquareCb(strength=1.0)", encoder="wordllama",
        contexts=np.ones((n, N_FEATURES), np.int8), prompts=["what nobody may see"] * n, said=[NOTHING] * n, **columns,
    )  # fmt: skip
    log.append(DECISIONS, encode([batch]))


class Desk:
    """Implements `infra.dashboard.app.Desk`."""

    def __init__(self, folder: Path, *, alarmed: bool = False, minutes: int = HOURS * 60) -> None:
        rng = np.random.default_rng(0)
        self._path, self._files, self.alarmed = (
            folder / "log.sqlite",
            Folder(str(folder / "snapshots")),
            alarmed,
        )
        self.history().add_all(samples(rng, minutes))
        log = self.log()
        decided(log, rng)
        log.close()

    def status(self) -> Status:
        return status(alarmed=self.alarmed)

    def log(self) -> SqliteLog:
        return SqliteLog(self._path, lambda: NOON_MS)

    def history(self) -> History:
        return History(self._files)

    def baseline(self) -> str:
        return "large"
