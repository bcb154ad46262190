"""What the engines do, once a second, read from their own pages; and what the site says of them.

    directory ─▶ addresses ─▶ /metrics of each ─▶ Seen   running, waiting, answered so far
    newest snapshot ────────────────────────────▶ Said   load and price of each pool, capacity

The bench compares the two: nothing that Fairlead learned goes into what is measured here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec

from infra.errors import PageUnreadable
from infra.pools.directory import ask
from infra.pools.site import LocalSite
from infra.server_metrics.pages import read_page
from streams.errors import StreamError
from streams.telemetry.capacity import capacities
from streams.training.state import load_fleet, prices_of

LOOK_S, ANSWER_S_MAX = 1.0, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at one engine."""

    at_s: float
    address: str
    running: float
    waiting: float
    finished: float


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest snapshot says of a pool."""

    at_s: float
    load: float
    price: float
    capacity_per_s: float
    deviation_per_s: float
    full: bool
    learned_from: int


@dataclass(slots=True)
class Watched:
    """All looks, by pool."""

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    said: dict[str, list[Said]] = field(default_factory=dict)
    ready: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    addresses: dict[str, list[str]] = field(default_factory=dict)  # now


@asynccontextmanager
async def watching(
    site: LocalSite, session: aiohttp.ClientSession, began_s: float
) -> AsyncIterator[Watched]:
    """A record that grows while this is open."""
    found = Watched()
    task = asyncio.create_task(_watch(site, session, began_s, found))
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(
    site: LocalSite, session: aiohttp.ClientSession, began_s: float, found: Watched
) -> None:
    while True:
        addresses = {pool: list(of) for pool, of in (await ask())[1].items()}
        at_s = time.monotonic() - began_s
        found.addresses = addresses
        found.ready.append((at_s, {pool: len(of) for pool, of in addresses.items()}))
        looks = [(pool, at) for pool, of in addresses.items() for at in of]
        for (pool, _), seen in zip(
            looks,
            await asyncio.gather(*(_look(session, at, at_s) for _, at in looks)),
            strict=True,
        ):
            found.seen.setdefault(pool, []).extend(seen)
        for pool, said in (await asyncio.to_thread(_said, site, at_s)).items():
            found.said.setdefault(pool, []).append(said)
        await asyncio.sleep(LOOK_S)


async def _look(session: aiohttp.ClientSession, address: str, at_s: float) -> list[Seen]:
    """One look, or none where the page does not come."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, PageUnreadable):
        async with asyncio.timeout(ANSWER_S_MAX), session.get(f"http://{address}/metrics") as got:
            page = read_page(await got.text())
        held = {"running": page.running, "waiting": page.waiting}
        return [Seen(at_s=at_s, address=address, finished=page.finished or 0.0, **held)]
    return []


def _said(site: LocalSite, at_s: float) -> dict[str, Said]:
    store = site.store()
    try:
        newest = store.newest()
        manifest = store.load(newest) if newest else None
        fleet = load_fleet(store, manifest) if manifest else None
    except (StreamError, OSError):
        return {}
    if manifest is None or fleet is None:
        return {}
    prices = prices_of(manifest).capacity
    first_token_s = site.fleet.pools[0].target.ttft_s
    return {
        pool: Said(
            at_s=at_s,
            load=one.load or 0.0,
            price=prices[pool].multiple() if pool in prices else 0.0,
            capacity_per_s=one.of.service.capacity_per_s,
            deviation_per_s=one.of.service.deviation_per_s,
            full=one.of.service.full,
            learned_from=one.of.service.finished,
        )
        for pool, one in capacities(fleet, first_token_s).items()
    }


def measured_per_s(seen: Sequence[Seen], slots: int) -> float | None:
    """Answers a second of engines while all their slots were taken; None: they never were."""
    took_s = answered = 0.0
    for _, of in itertools.groupby(sorted(seen, key=lambda s: s.address), lambda s: s.address):
        for before, now in itertools.pairwise(of):
            full = min(before.running, now.running) >= slots
            if full and now.finished >= before.finished and now.at_s - before.at_s < 3 * LOOK_S:
                took_s += now.at_s - before.at_s
                answered += now.finished - before.finished
    return answered / took_s if took_s else None


def changes(ready: Sequence[tuple[float, Mapping[str, int]]], pool: str) -> list[list[float]]:
    """Servers of a pool at the beginning and at each change."""
    found: list[list[float]] = []
    for at_s, by_pool in ready:
        n = by_pool.get(pool, 0)
        if not found or found[-1][1] != n:
            found.append([round(at_s, 1), n])
    return found
