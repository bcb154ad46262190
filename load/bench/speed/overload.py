"""More calls than can be answered: what is answered in time, and how soon the rest is refused.

    peak       answers per second to 64 callers who ask again as soon as they are answered
    factor ×   so many calls per second, whatever becomes of them; a tenth is of the top class

    goodput_share   answers within their deadline, in parts of the peak
    reject_p99_ms   from when a refused call was due until it was told
    critical_lost   calls of the top class without an answer in time, in parts of them
    untold_share    refusals by gRPC itself, which say CANCELLED, in parts of all refusals

    critical_lost_reserved   the same load once more, with the top class on the reserved port

The client shares the machine with the server. What each takes is said beside the figures, which are
what they are: `cores` of the client, of the server's event loop, and of its other threads (gRPC's);
`waits`, how many event loops stood ready without a core; and `loop_us_per_answer`, the event loop's
time for each answer in time, refusals included.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from load.bench.speed.calls import SERVICE, message
from load.bench.speed.open_loop import Seen, Stream, drive, quantile_ms
from load.bench.speed.serving import Served
from load.bench.speed.wire import CANCELLED, Ask
from serve.proto.fairlead.v1 import router_pb2 as pb

DEADLINE_MS = 500
TOP_SHARE = 0.1
WARM_S = 1.0  # the limits are found in
AGAIN_S = 0.2  # until the queue is full again; the limits are known


def _streams(
    rng: np.random.Generator, total_per_s: float, top_port: int = 0
) -> tuple[Stream, Stream]:
    """A load; its top class goes to `top_port`, where one is given."""

    def stream(name: str, criticality: int, share: float, port: int = 0) -> Stream:
        ask = Ask.of(f"{SERVICE}Route", message(rng, criticality=criticality), DEADLINE_MS)
        per_s, deadline_s = total_per_s * share, DEADLINE_MS / 1000.0
        return Stream(name=name, ask=ask, per_s=per_s, deadline_s=deadline_s, port=port)

    usual = stream("usual", pb.CRITICAL, 1.0 - TOP_SHARE)
    return usual, stream("top", pb.CRITICAL_PLUS, TOP_SHARE, top_port)


class Spent:
    """Processor time that client and server take from here on."""

    def __init__(self, server: Served) -> None:
        self._server, self._began = server, self._taken(server)

    @staticmethod
    def _taken(server: Served) -> tuple[float, ...]:
        loop_s, others_s = server.loop_cpu_s(), server.cpu_s() - server.loop_cpu_s()
        return time.monotonic(), time.process_time(), loop_s, others_s, server.loop_waited_s()

    def __call__(self, at_work_s: float | None = None) -> tuple[dict[str, float], float]:
        """How many cores each had on average, and the event loop's seconds.

        Of all the time since, unless they were at work for less of it.
        """
        taken = self._taken(self._server)
        wall_s, *spent_s = (now - before for now, before in zip(taken, self._began, strict=True))
        wall_s = at_work_s or wall_s
        names = ("client", "loop", "transport", "waits")
        return {name: s / wall_s for name, s in zip(names, spent_s, strict=True)}, spent_s[1]


def _lost(seen: Seen) -> float:
    """Calls without an answer in time, in parts of all."""
    return 1.0 - seen.in_time / max(1, seen.sent)


async def overloaded(
    server: Served,
    rng: np.random.Generator,
    *,
    peak_per_s: float,
    factor: float,
    seconds: float,
) -> dict[str, Any]:
    """Two runs at a multiple of the peak: on one port, then with the top class on its own."""
    total, port, spent = peak_per_s * factor, server.port, Spent(server)
    seen = await drive(port, _streams(rng, total), WARM_S + seconds, rng, warm_s=WARM_S)
    usual, top, (cores, loop_s) = seen["usual"], seen["top"], spent()
    in_time = usual.in_time + top.in_time
    apart = await drive(
        port, _streams(rng, total, server.reserved_port), AGAIN_S + seconds, rng, warm_s=AGAIN_S
    )
    refused = usual.refused_s + top.refused_s
    untold = usual.statuses.get(CANCELLED, 0) + top.statuses.get(CANCELLED, 0)
    return {
        "goodput_share": in_time / seconds / peak_per_s,
        "reject_p99_ms": quantile_ms(refused, 0.99),
        "critical_lost": _lost(top),
        "critical_lost_reserved": _lost(apart["top"]),
        "untold_share": untold / max(1, len(refused)),
        "cores": cores,
        # What came in while it warmed up took its share of the time, too.
        "loop_us_per_answer": 1e6 * loop_s * seconds / (WARM_S + seconds) / max(1, in_time),
    }
