"""More calls than can be answered: what is answered in time, and how soon the rest is refused.

    peak       answers per second to 64 callers who ask again as soon as they are answered
    factor ×   so many calls per second, whatever becomes of them; a tenth is of the top class

    goodput_share   answers within their deadline, in parts of the peak
    reject_p99_ms   from when a refused call was due until it was told
    critical_lost   calls of the top class without an answer in time, in parts of them
    untold_share    refusals by gRPC itself, which say CANCELLED, in parts of all refusals

The client shares the machine with the server: what it takes of the processors is in the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from load.bench.speed.calls import SERVICE, message
from load.bench.speed.open_loop import Stream, drive, quantile_ms
from load.bench.speed.wire import CANCELLED, Ask
from serve.proto.fairlead.v1 import router_pb2 as pb

DEADLINE_MS = 500
TOP_SHARE = 0.1
WARM_S = 1.0  # the limits are found in


def _stream(name: str, rng: np.random.Generator, criticality: int, per_s: float) -> Stream:
    ask = Ask.of(f"{SERVICE}Route", message(rng, criticality=criticality), DEADLINE_MS)
    return Stream(name=name, ask=ask, per_s=per_s, deadline_s=DEADLINE_MS / 1000.0)


async def overloaded(
    port: int, rng: np.random.Generator, *, peak_per_s: float, factor: float, seconds: float
) -> dict[str, Any]:
    """One run at a multiple of the peak."""
    total = peak_per_s * factor
    streams = (
        _stream("usual", rng, pb.CRITICAL, total * (1.0 - TOP_SHARE)),
        _stream("top", rng, pb.CRITICAL_PLUS, total * TOP_SHARE),
    )
    seen = await drive(port, streams, WARM_S + seconds, rng, warm_s=WARM_S)
    usual, top = seen["usual"], seen["top"]
    refused = usual.refused_s + top.refused_s
    untold = usual.statuses.get(CANCELLED, 0) + top.statuses.get(CANCELLED, 0)
    return {
        "goodput_share": (usual.in_time + top.in_time) / seconds / peak_per_s,
        "reject_p99_ms": quantile_ms(refused, 0.99),
        "critical_lost": 1.0 - top.in_time / max(1, top.sent),
        "untold_share": untold / max(1, len(refused)),
    }
