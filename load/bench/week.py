"""A week and more of default operation on the default log, in virtual time: does it level off?

    decisions, feedback, telemetry ──▶ SqliteLog ──▶ Trainer ──▶ snapshots
                                          ▲ retention ──┘

The log, the trainer, the snapshots and their retention are the real ones with their defaults; the
clock is virtual, and a small share of the traffic stands for all of it: so many decisions, records
and bytes less, with bounds in bytes that are as much smaller. Sizes are those of all the traffic.

What is bounded by number or time is not scaled, only what is counted in bytes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from infra.settings.settings import Settings
from infra.settings.site_options import LogChoice
from load.bench.recovery.made_feedback import Mix, made_feedback
from load.bench.recovery.made_telemetry import made_telemetry
from streams.feedback import decisions
from streams.feedback.said import NOTHING
from streams.feedback.ticket import Sealer
from streams.log.contract import DECISIONS, FEEDBACK, TELEMETRY
from streams.log.sqlite_log import SqliteLog
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import Trainer

ENCODER, KEY = "made-up", bytes(range(32))
BEGIN_MS = 1_790_000_000_000
DAY_S = 86_400
MODELS = ("small", "large", "tiny")
PER_RECORD = 6  # decisions: two replicas at 50/s write four records a second each
TELEMETRY_PER_S = 8  # records: two routers' workloads and states, and a few pools
REPORTS = Mix(copies=0.01, poison=0.0, in_parts=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeekOptions:
    """What is simulated."""

    days: int = 10  # retention is seven
    decisions_per_s: float = 50.0
    share: float = 1 / 400  # of the traffic
    tick_s: int = 960


@dataclass(frozen=True, slots=True, kw_only=True)
class DayEnd:
    """How large everything is at the end of a day, for the whole traffic."""

    day: int
    log_bytes: float
    dropped_records: float
    seen_decisions: float
    snapshot_bytes: int  # not scaled: rows and statistics are bounded by number
    resident_bytes: int  # of this process, likewise


def measure(options: WeekOptions, say: Callable[[str], None]) -> dict[str, object]:
    """Simulate; sizes by day, and by how much the last day added."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        days = list(_days(options, Path(folder), say))
    last, before = days[-1], days[-2]
    return {
        "options": asdict(options),
        "days": [asdict(day) for day in days],
        "log_growth_last_day": last.log_bytes / before.log_bytes - 1.0,
        "seen_growth_last_day": last.seen_decisions / before.seen_decisions - 1.0,
        "resident_growth_last_day": last.resident_bytes / before.resident_bytes - 1.0,
        "took_s": time.monotonic() - began_s,
    }


def _days(options: WeekOptions, folder: Path, say: Callable[[str], None]) -> Iterator[DayEnd]:
    now_ms, settings = [BEGIN_MS], Settings()
    trainer_options = settings.deployment().trainer
    bytes_max = round(settings.options(LogChoice).retention_bytes_max * options.share)
    log = SqliteLog(folder / "log.sqlite", lambda: now_ms[0], bytes_max)
    store, sealer = Store(Folder(str(folder / "snapshots"))), Sealer([KEY])
    trainer = Trainer(log, store, sealer, ENCODER, trainer_options, lambda: now_ms[0])
    rng, n_written = np.random.default_rng(1), 0
    for day in range(1, options.days + 1):
        for _ in range(DAY_S // options.tick_s):
            now_ms[0] += options.tick_s * 1000
            n_written += _tick(options, log, sealer, now_ms[0], rng)
            while trainer.step():
                pass
        log_bytes = (folder / "log.sqlite").stat().st_size  # beside it, a few MB of write-ahead log
        held = sum(log.end_offsets(t)[0] - log.first_offsets(t)[0] for t in _topics())
        end = DayEnd(
            day=day,
            log_bytes=log_bytes / options.share,
            dropped_records=(n_written - held) / options.share,
            seen_decisions=len(trainer.state.seen) / options.share,
            snapshot_bytes=sum(p.stat().st_size for p in folder.rglob("snapshots/blobs/*")),
            resident_bytes=_resident_bytes(),
        )
        say(
            f"day {day}: log {end.log_bytes / 1e9:.1f} GB, {end.seen_decisions / 1e6:.1f} M "
            f"decisions seen, snapshots {end.snapshot_bytes / 1e6:.0f} MB, resident "
            f"{end.resident_bytes / 1e6:.0f} MB"
        )
        yield end
    trainer.close()
    log.close()


def _topics() -> tuple[str, ...]:
    return (DECISIONS, FEEDBACK, TELEMETRY)


def _tick(
    options: WeekOptions, log: SqliteLog, sealer: Sealer, now_ms: int, rng: np.random.Generator
) -> int:
    """What is logged in one tick; how many records."""
    seconds = options.tick_s * options.share
    n = round(options.decisions_per_s * seconds)
    made = [_decided(PER_RECORD, now_ms, rng) for _ in range(n // PER_RECORD)]
    batches = [decisions.encode([batch])[0] for batch in made]
    feedback = made_feedback(round(1.5 * n), sealer, ENCODER, now_ms, rng, REPORTS)
    telemetry = made_telemetry(round(TELEMETRY_PER_S * seconds), now_ms, rng)
    for topic, records in ((DECISIONS, batches), (FEEDBACK, feedback), (TELEMETRY, telemetry)):
        log.append(topic, records)
    return len(batches) + len(feedback) + len(telemetry)


def _decided(n: int, now_ms: int, rng: np.random.Generator) -> decisions.DecisionBatch:
    k = len(MODELS)
    return decisions.DecisionBatch(
        ids=[rng.bytes(12) for _ in range(n)],
        decided_at_ms=np.full(n, now_ms),
        tenants=["default"] * n,
        sessions=[""] * n,
        models=MODELS,
        pools=("a", "b"),
        chosen=rng.integers(0, k, n),
        pool=rng.integers(0, 2, n),
        propensities=rng.dirichlet(np.ones(k), n),
        utility=rng.random((n, k)),
        quality=rng.random((n, k)),
        cost_usd=rng.random((n, k)),
        latency_ms=1000.0 * rng.random((n, k)),
        preference=np.ones((n, 4)),
        prompt_tokens=np.full(n, 100.0),
        snapshot_version=1001,
        policy="SquareCb(gamma=1000.0)",
        encoder=ENCODER,
        contexts=rng.integers(-60, 61, (n, 64)).astype(np.int8),
        said=[NOTHING] * n,
        prompts=[None] * n,
    )


def _resident_bytes() -> int:
    """Memory of this process that is in use now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("a Linux kernel says VmRSS")
