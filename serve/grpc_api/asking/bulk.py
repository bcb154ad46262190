"""Many requests in one call: taken in as so many requests, and scored in slices.

    call of n ──enter(n)──▶ under way ──its turn──▶ slice ─▶ slice ─▶ … ──leave(n)──▶ answered
         └─ QueueFull, at once              others' calls ┘

Such calls have an admission of their own, which counts requests: see `admission` for deadlines,
criticalities and tenants. A call of `Route` is not refused because a batch is under way, and a
batch not because callers of `Route` are many. One call at a time has its turn, and between its
slices the event loop turns to all others: so whoever sends single requests waits for a slice, not
for all batches there are. Taking turns loses nothing, because scoring has one thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from learners.criticality import Criticality
from serve.errors import DeadlinePassed, InvalidRequest
from serve.grpc_api.asking.admission import Admission, AdmissionOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import BATCH_MAX

Answer = TypeVar("Answer")
# Callers of batches wait longer: 1,024 requests take 30 to 150 ms alone. At first some ten of the
# largest calls are taken in, at the least two.
BULK = AdmissionOptions(target_s_min=0.25, target_s_max=1.0, limit_min=2048, limit_max=65_536)


class Bulk:
    """Lets calls of many requests in, and gives them their turns. Used from one event loop."""

    def __init__(self, options: AdmissionOptions = BULK) -> None:
        self.admission = Admission(options)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def admitted(
        self, n: int, tenant: str, criticality: int, left_s: float
    ) -> AsyncIterator[None]:
        """Let `n` requests in for the length of a block. Raises QueueFull."""
        began_s = time.monotonic()
        self.admission.enter(tenant, criticality, left_s, now_s=began_s, n=n)
        try:
            yield
        finally:
            ended_s = time.monotonic()
            self.admission.leave(tenant, ended_s - began_s, now_s=ended_s, n=n)

    @asynccontextmanager
    async def turn(self, left_s: float) -> AsyncIterator[None]:
        """Wait for the turn, unless the caller's deadline is sooner. Raises DeadlinePassed."""
        latest_s = time.monotonic() + left_s
        async with self._turn:
            if time.monotonic() > latest_s:
                raise DeadlinePassed("the gRPC deadline passed while other batches were scored")
            yield


async def slices(n: int, size: int) -> AsyncIterator[slice]:
    """Parts of `n` rows, between which others have their turn."""
    for first in range(0, n, size):
        if first:
            await asyncio.sleep(0)
        yield slice(first, first + size)


def or_error(do: Callable[[Any], Answer], of: Any) -> Answer | Exception:
    """What comes of it, or what went wrong: in a call of many that is one request's problem."""
    try:
        return do(of)
    except Exception as error:  # noqa: BLE001 - it becomes a status
        return error


def check_count(field: str, n: int) -> None:
    """Raises InvalidRequest where a call has no requests, or too many."""
    if not 1 <= n <= BATCH_MAX:
        raise InvalidRequest(field, f"{n} long", f"1 to {BATCH_MAX:,} long")


def lowest(requests: Sequence[pb.RouteRequest]) -> Criticality:
    """As critical as a batch is: as the least critical of its requests.

    >>> lowest([pb.RouteRequest(), pb.RouteRequest(criticality=pb.SHEDDABLE_PLUS)]).name
    'SHEDDABLE_PLUS'
    """
    return min((_criticality(one.criticality) for one in requests), default=Criticality.CRITICAL)


def _criticality(number: int) -> Criticality:
    """From the proto's number; what is not known is refused later, each request alone."""
    known = pb.SHEDDABLE <= number <= pb.CRITICAL_PLUS
    return Criticality(number - pb.SHEDDABLE) if known else Criticality.CRITICAL
