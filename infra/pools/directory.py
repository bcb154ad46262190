"""Where the pools' replicas listen: one small actor where they register, and which dispatchers ask.

    replica ──report, twice a second──▶ Directory ◀──ask, four times a second── dispatcher

Ray Serve places replicas and knows which live, but not on which port their own server listens. An
address is believed for `KEPT_S` after it was last reported. A replica that stops is a lame duck for
`LAME_DUCK_S`: taken out, but still answering dispatchers that have not looked since. When the actor
is restarted it knows nothing for a moment; it says how long it has been there, so that nobody takes
that for an empty fleet (see `pool_clients`).

No request waits for it. Replicas go on serving while they can't report, dispatchers
keep the last addresses.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray

from infra.head_actor import close_actor, find_actor, open_actor

POOLS_APP = "pools"  # the one Ray Serve application of all pools' replicas
NAME = "fairlead.directory"
REPORT_S = 0.5
KEPT_S = 3.0  # six reports: a replica that is busy for a second is not gone
LAME_DUCK_S = 1.0  # four looks of a dispatcher: so long a replica answers after it was taken out


class Directory:
    """Addresses by pool."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._seen: dict[tuple[str, str], float] = {}
        self._replicas: dict[str, str] = {}  # by address, as Ray calls them

    def report(self, pool: str, address: str, replica: str = "") -> None:
        """A replica of the pool listens there, now."""
        self._seen[pool, address] = time.monotonic()
        self._replicas[address] = replica or address

    def forget(self, pool: str, address: str) -> None:
        """A replica stops listening."""
        self._seen.pop((pool, address), None)

    def addresses(self) -> tuple[float, dict[str, dict[str, str]]]:
        """Seconds since this actor began; of every pool its replicas' names by address."""
        now_s = time.monotonic()
        self._seen = {at: seen for at, seen in self._seen.items() if now_s - seen <= KEPT_S}
        self._replicas = {at: self._replicas[at] for _, at in self._seen}
        found: dict[str, dict[str, str]] = {}
        for pool, address in sorted(self._seen):
            found.setdefault(pool, {})[address] = self._replicas[address]
        return now_s - self._began_s, found


def open_directory() -> ray.actor.ActorHandle[Any]:
    """The cluster's directory, made if there is none."""
    return open_actor(Directory, NAME, if_missing=True)


def close_directory() -> None:
    """End the cluster's directory, if there is one."""
    close_actor(NAME)


def find_directory() -> ray.actor.ActorHandle[Any]:
    """The cluster's directory. Raises ValueError while there is none."""
    return find_actor(NAME)


class DirectoryClient:
    """Talks to the directory from an event loop, without ever holding that up.

    Every method raises whatever Ray raises while the directory can't be reached.
    """

    def __init__(self) -> None:
        self._found: ray.actor.ActorHandle[Any] | None = None
        self._finding: asyncio.Task[ray.actor.ActorHandle[Any]] | None = None

    async def ask(self) -> tuple[float, dict[str, dict[str, str]]]:
        """What the directory says."""
        return await self._call("addresses")

    async def report(self, pool: str, address: str, replica: str) -> None:
        """A replica of the pool listens there, now; `replica` is what Ray calls it."""
        await self._call("report", pool, address, replica)

    async def forget(self, pool: str, address: str) -> None:
        """A replica stops listening."""
        await self._call("forget", pool, address)

    async def _call(self, method: str, *arguments: str) -> Any:
        if self._found is None:
            self._found = await self._find()
        try:
            return await getattr(self._found, method).remote(*arguments)
        except ray.exceptions.RayError:
            self._found = None  # it may have been ended, and another one made
            raise

    async def _find(self) -> ray.actor.ActorHandle[Any]:
        # In a thread, because Ray waits for its head node here, for minutes if that is away; in one
        # alone, however often the caller loses patience.
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(asyncio.to_thread(find_directory))
            self._finding.add_done_callback(lambda found: found.cancelled() or found.exception())
        return await asyncio.shield(self._finding)


async def ask() -> tuple[float, dict[str, dict[str, str]]]:
    """What the directory says, asked once. Raises whatever Ray raises if it can't be reached."""
    return await DirectoryClient().ask()
