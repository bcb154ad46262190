"""What the loop is doing: accounts of feedback, lag, alarms. Read from the log and the snapshots.

    newest snapshot's counts, fleet + log's ends ─▶ Status ─▶ `fairlead status`, Prometheus metrics

Nothing has to be running for it: what is not reachable is said to be so.

A number here is the one that recovery would start from, not a process's memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.status.budgets import BudgetView, budget_views
from infra.status.change import ChangeView, change_view
from streams.alarms import (
    Alarm,
    Change,
    Condition,
    first_of_each,
    posted_alarms,
    posted_changes,
    posted_conditions,
)
from streams.errors import LogTruncated, LogUnavailable, SnapshotDamaged
from streams.feedback.report import NANO_USD
from streams.feedback.ticket import key_of
from streams.log.contract import DECISIONS, FEEDBACK, Log
from streams.telemetry import fleet_view
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.fleet_view import ClassView, PoolView, RouterView
from streams.training.audit import DECIDED, UNANSWERED
from streams.training.budgets import Accounts, Budget
from streams.training.change import ChangeOptions
from streams.training.prices import SPENT, WASTED
from streams.training.snapshots import Manifest, Store
from streams.training.state import load_fleet, prices_of
from streams.training.trainer import (
    DEAD,
    DUPLICATE,
    LEARNED,
    MOVED,
    PROBED,
    RECORDS,
    SKIPPED,
)

READ_S = 2.0  # for the records that say how long ago something was appended
RECORDS_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceView:
    """What one scarce thing is worth."""

    load: float  # 1: as much as there should be
    multiple: float  # price, in multiples of what it costs to have


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look. Counts are since the state began; `None` where the log can't be reached."""

    snapshot_version: int  # 0: nothing has been learned yet
    snapshot_age_s: float | None  # 0 also where its clock was ahead of this one
    encoder: str
    records: int  # feedback records read
    learned: int  # of them, with at least one new value
    duplicate: int
    moved: int  # handed to the shard they belong to
    skipped: int  # lost by the log before they were read
    dead_letter: dict[str, int] = field(default_factory=dict)  # by reason
    late: int = 0  # the dead letters that came too late
    decided: dict[str, int] = field(default_factory=dict)  # audited decisions, by model
    unanswered: dict[str, int] = field(default_factory=dict)  # of them, without any feedback
    lag_records: int | None = None
    lag_s: float | None = None
    alarms: tuple[Alarm, ...] = ()  # see `streams.alarms`
    changes: tuple[Change, ...] = ()  # models that are not what they were, by target
    conditions: tuple[Condition, ...] = ()  # what keeps pools from having their replicas
    # US dollars by pool: for answers, and for calls that answered nobody.
    spent_usd: dict[str, float] = field(default_factory=dict)
    paid_in_vain_usd: dict[str, float] = field(default_factory=dict)
    probed_usd: dict[str, float] = field(default_factory=dict)  # likewise, bought to learn from
    # What telemetry says; see `streams.telemetry.fleet_view`.
    telemetry: dict[str, int] = field(default_factory=dict)  # records by what became of them
    workload: dict[str, ClassView] = field(default_factory=dict)  # by class
    router: RouterView | None = None  # None where no router ever reported
    pools: dict[str, PoolView] = field(default_factory=dict)  # by pool
    prices: dict[str, PriceView] = field(default_factory=dict)  # by pool; also budget and power
    budgets: dict[str, BudgetView] = field(default_factory=dict)  # by name, see `[[budgets]]`
    change: ChangeView | None = None  # None where `change.mode` is off

    def json(self) -> dict[str, object]:
        """As plain JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        for name in ("workload", "pools", "prices", "budgets"):
            found[name] = {key: asdict(view) for key, view in found[name].items()}
        for view in found["workload"].values():  # counts stand beside what else is said of a class
            view.update(view.pop("counts"))
        alarms = [alarm.json() for alarm in self.alarms]
        changes = [change.json() for change in self.changes]
        router = self.router and asdict(self.router)
        change = self.change and self.change.json()
        conditions = [condition.json() for condition in self.conditions]
        said = {"alarms": alarms, "changes": changes, "conditions": conditions, "change": change}
        return found | {"router": router} | said


def look(
    store: Store,
    log: Log,
    now_ms: int,
    silence_s: float,
    pools: Sequence[str] = (),
    budgets: Sequence[Budget] = (),
    change: ChangeOptions | None = None,
) -> Status:
    """Look at store and log once. Raises OSError if the store can't be reached.

    Money is counted by the keys of pools; those of `pools` are shown by their names.
    """
    manifest = _newest(store)
    about: Mapping[str, Any] = manifest.about if manifest else {}
    counts: Mapping[str, int] = about.get("counts", {})
    offsets = {int(p): int(o) for p, o in about.get("offsets", {}).items()}
    alarms = posted_alarms(store.folder, now_ms)
    alarms += _no_room(store, now_ms)
    lag_records, lag_s = None, None
    try:
        lag_records, lag_s = _lag(log, offsets, now_ms)
        alarms += _not_learning(log, int(about.get("learned_at_ms", 0)), silence_s)
    except LogUnavailable as error:
        alarms.append(Alarm(name="log_unreachable", since_ms=now_ms, cause=str(error)))
    if lost := counts.get(SKIPPED):
        cause = f"{lost} feedback records were lost by the log before being read."
        alarms.append(Alarm(name="feedback_lost", since_ms=now_ms, cause=cause))
    fleet = _fleet(store, manifest)
    return Status(
        snapshot_version=manifest.version if manifest else 0,
        snapshot_age_s=max(0, now_ms - int(about["published_at_ms"])) / 1000 if manifest else None,
        encoder=str(about.get("encoder", "")),
        records=counts.get(RECORDS, 0),
        learned=counts.get(LEARNED, 0),
        duplicate=counts.get(DUPLICATE, 0),
        moved=counts.get(MOVED, 0),
        skipped=counts.get(SKIPPED, 0),
        dead_letter=_under(counts, DEAD),
        late=counts.get(f"{DEAD}too_late", 0),
        decided=_under(counts, DECIDED),
        unanswered=_under(counts, UNANSWERED),
        lag_records=lag_records,
        lag_s=lag_s,
        alarms=tuple(first_of_each(alarms)),
        changes=tuple(posted_changes(store.folder, now_ms)),
        conditions=tuple(posted_conditions(store.folder, now_ms)),
        spent_usd=_usd(counts, SPENT, pools),
        paid_in_vain_usd=_usd(counts, WASTED, pools),
        probed_usd=_usd(counts, PROBED, pools),
        telemetry={**_under(counts, "telemetry."), "missing": fleet.missing},
        workload=fleet_view.workload(fleet, now_ms),
        router=fleet_view.router(fleet, now_ms) if fleet.routers or fleet.totals.mix else None,
        pools=fleet_view.pools(fleet, now_ms),
        prices=_prices(manifest),
        budgets=budget_views(budgets, _accounts(manifest), fleet.routers.values(), now_ms),
        change=change_view(change, counts, store.folder),
    )


def _newest(store: Store) -> Manifest | None:
    for version in reversed(store.versions()):
        try:
            return store.load(version)
        except SnapshotDamaged:
            continue
    return None


def _fleet(store: Store, manifest: Manifest | None) -> FleetState:
    """The fleet of a snapshot; an empty one where it can't be read."""
    if manifest is not None:
        with suppress(SnapshotDamaged):  # pruned just now; the rest was read before
            return load_fleet(store, manifest)
    return FleetState()


def _accounts(manifest: Manifest | None) -> Accounts:
    return prices_of(manifest).accounts if manifest else {}


def _prices(manifest: Manifest | None) -> dict[str, PriceView]:
    """What is scarce, and what it costs."""
    if manifest is None:
        return {}
    found = prices_of(manifest)
    named = {**found.capacity, "(budget)": found.budget, "(power)": found.power}
    return {
        name: PriceView(load=price.load, multiple=price.multiple())
        for name, price in named.items()
        if name in found.capacity or price.load
    }


def _under(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {n.removeprefix(prefix): c for n, c in sorted(counts.items()) if n.startswith(prefix)}


def _usd(counts: Mapping[str, int], prefix: str, pools: Sequence[str]) -> dict[str, float]:
    """What was spent by pool; by the pool's key in hexadecimal where its name is not known."""
    names = {f"{key_of(pool):016x}": pool for pool in pools}
    found = _under(counts, prefix)
    return {names.get(key, key): nano_usd / NANO_USD for key, nano_usd in found.items()}


def _lag(log: Log, offsets: Mapping[int, int], now_ms: int) -> tuple[int, float]:
    """Records not learned yet, and the age of the oldest of them. Raises LogUnavailable."""
    first, end = log.first_offsets(FEEDBACK), log.end_offsets(FEEDBACK)
    waiting = {p: max(offsets.get(p, 0), first[p]) for p in end}
    waiting = {p: offset for p, offset in waiting.items() if offset < end[p]}
    ages_s = [(now_ms - at_ms) / 1000 for at_ms in _times(log, FEEDBACK, waiting).values()]
    return sum(end[p] - o for p, o in waiting.items()), max(ages_s, default=0.0)


def _not_learning(log: Log, learned_at_ms: int, silence_s: float) -> list[Alarm]:
    """An alarm if decisions went on for long after the last learning. Raises LogUnavailable."""
    since_ms, until_ms = _silence(log, learned_at_ms)
    silent_s = (until_ms - since_ms) / 1000
    if silent_s <= silence_s:
        return []
    cause = f"Nothing was learned for {silent_s / 60:.1f} minutes while decisions went on."
    return [Alarm(name="learning_stopped", since_ms=since_ms, cause=cause)]


def _no_room(store: Store, now_ms: int) -> list[Alarm]:
    """An alarm if nothing can be written where snapshots are."""
    try:
        store.folder.probe()
    except OSError as error:
        return [Alarm(name="disk_full", since_ms=now_ms, cause=f"Writing a file failed: {error}.")]
    return []


def _silence(log: Log, learned_at_ms: int) -> tuple[int, int]:
    """From the last learning (or the first decision) to the last decision, Unix ms."""
    first, end = log.first_offsets(DECISIONS), log.end_offsets(DECISIONS)
    full = [p for p in end if end[p] > first[p]]
    newest = _times(log, DECISIONS, {p: end[p] - 1 for p in full})
    oldest = {} if learned_at_ms else _times(log, DECISIONS, {p: first[p] for p in full})
    since_ms = learned_at_ms or min(oldest.values(), default=0)
    return since_ms, max(newest.values(), default=since_ms)


def _times(log: Log, topic: str, offsets: Mapping[int, int]) -> dict[int, int]:
    """When the log took the record at an offset, by partition: by one reader for all of them."""
    found: dict[int, int] = {}
    reader = log.reader(topic, offsets)
    until_s = time.monotonic() + READ_S
    try:
        while set(found) != set(offsets) and (left_s := until_s - time.monotonic()) > 0:
            for record in reader.read(RECORDS_MAX, left_s):
                found.setdefault(record.partition, record.appended_at_ms)
    except LogTruncated:
        pass  # retention passed just now; the rest is enough
    finally:
        reader.close()
    return found
