"""A replica that stops says what it spent; where its word is lost, another one of its machine does."""

from __future__ import annotations

import asyncio

from memory_log import MemoryLog, Storage
from replicas import replica
from waiting import soon

from serve import shared_memory
from serve.routing.placement import PlacementOptions
from streams.log.contract import TELEMETRY
from streams.telemetry.records import EndedReplica, RouterState, decode
from streams.training.budgets import Budget
from streams.training.folder import Folder
from streams.training.prices import PricingOptions
from streams.training.snapshots import Store

HARD = Budget(name="all", amount=1000, unit="requests", per="day")


def ended(log: MemoryLog) -> list[tuple[str, list[EndedReplica]]]:
    """Who said of whom that they spend no more."""
    reader = log.reader(TELEMETRY, {0: 0})
    found = [decode(record.value) for record in reader.read(1000, 0.0)]
    return [(r.source, r.ended) for r in found if isinstance(r, RouterState) and r.ended]


def test_a_replica_says_at_last_what_it_spent_and_the_next_says_it_again(tmp_path, monkeypatch):
    """The second could not know whether the first's word came through."""
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    storage = Storage()
    log = MemoryLog(storage)
    log.ensure_topics()

    def made():
        placement = PlacementOptions(pricing=PricingOptions(budgets=(HARD,)))
        store = Store(Folder(str(tmp_path / "snapshots")))
        return replica(MemoryLog(storage), store, placement=placement, telemetry_s=0.1)

    async def one_after_the_other() -> tuple[str, str]:
        first, second = made(), made()
        for up in (first, second):
            await up.start()
        await first.stop()
        await soon(lambda: len(ended(log)) > 1)
        await second.stop()
        return first.reporter.source, second.reporter.source

    first, second = asyncio.run(one_after_the_other())
    said = ended(log)
    assert (said[0][0], said[1][0], said[-1][0]) == (first, second, second)
    assert {one.source for _, of in said[:-1] for one in of} == {first}
    assert {one.source for one in said[-1][1]} == {first, second}
    assert all(set(one.spent.values()) == {0} and len(one.spent) == 2 for one in said[-1][1])
