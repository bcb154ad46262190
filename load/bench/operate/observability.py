"""What observing costs: processor time of a decision with telemetry and traces, and without.

Two servers that differ in `telemetry.period_s` and `tracing.endpoint` alone answer the same closed
loop one after the other; the share is of medians, because a busy machine is as busy for both.
Metrics are computed from snapshots by `fairlead up`, not where requests are decided.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from threading import Thread

from load.bench.operate.fuzzing.target import Target
from load.bench.speed.calls import unary_per_s
from serve.proto.fairlead.v1 import router_pb2 as pb

WARM_S = 0.5
EXPORTER = "opentelemetry.exporter"  # of the extra `tracing`


class _Taken(BaseHTTPRequestHandler):
    """Takes spans, and keeps none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not said."""


@contextmanager
def collector() -> Iterator[str]:
    """Where traces may be sent for the length of a `with` block; "" where nothing can send them."""
    if importlib.util.find_spec(EXPORTER) is None:
        yield ""
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Taken)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def cost_share(
    observed: Target, plain: Target, turns: int, seconds: float, say: Callable[[str], None]
) -> float:
    """Of a decision's processor time; below zero is noise."""
    message = pb.RouteRequest(text="What is a fairlead?").SerializeToString()
    took: dict[int, list[float]] = {id(observed): [], id(plain): []}
    for one in (observed, plain):
        await unary_per_s(one.grpc_port, message, WARM_S)
    for turn in range(turns):
        say(f"decisions with telemetry and without: {turn + 1} of {turns} …")
        for one in (observed, plain) if turn % 2 else (plain, observed):
            began_s = one.cpu_s()
            answered = seconds * await unary_per_s(one.grpc_port, message, seconds)
            took[id(one)].append((one.cpu_s() - began_s) / max(1.0, answered))
    return round(1.0 - median(took[id(plain)]) / median(took[id(observed)]), 4)
