"""Connections to the router that lose no call when a replica dies.

    client ─┬─ channel 0 ── connection ──▶ replica B        replicas share one port; the kernel
            ├─ channel 1 ── connection ──▶ replica A  ✝     gives each *connection* to one of them,
            ├─ channel 2 ── connection ──▶ replica B        and a new one to a replica that lives
            └─ channel 3 ── connection ──▶ replica A  ✝

When a replica dies, two kinds of call are in danger, and each needs its own cure:

  * those it had not yet answered fail at once: they are *retried* on a new connection, which
    reaches a survivor. Choosing a model twice and reporting an outcome twice are both harmless.
  * those that come while the connection is made anew would fail at once too, and by the hundred
    if the first attempt is refused: they *wait for ready*, up to their own time-out.

Measured with two replicas of 5 ms and 4 connections, one replica killed (-9) under closed-loop
callers, five to fifteen times a row (400 callers: `AsyncClient`; the others: threads on bare
stubs with an attempt to connect cut off at 100 ms, the first row with gRPC's own reconnecting):

    callers   cure                                          calls    lost
         32   neither                                      21,846   1,019
         32   waiting alone                                21,136      87   those in flight
         32   both, a budget of 10 tokens                  20,182      38   more than it covers
         64   retrying alone, 1,000 tokens                 58,865      67   reconnecting, refused
         64   both, 1,000 tokens                           60,694       0
        400   both, 200 tokens                             29,956     106   100 in flight on each
        400   both, 1,000 tokens                           65,720       0

and where both replicas die and come back (4 times), or one gets SIGTERM and drains (8 times):

         64   retrying alone; both die                     12,946     686
         64   both cures; both die                         12,941       0   late by 0.3 s
         64   both cures, UNAVAILABLE retried; stopped     26,386     130   see `RETRIED`
         64   both cures, CANCELLED retried too            34,941       0

The price: a router that is down shows as DEADLINE_EXCEEDED after the time-out, not at once.
`healthy()` does not wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import grpc

from fairlead.errors import InvalidOption

# A stopping `grpc.aio` server answers CANCELLED to some calls, most likely those it had not begun,
# even within its grace period. A call cancelled on this side, by closing the client or by its own
# task, is over and is not retried (tried).
RETRIED = ("UNAVAILABLE", "CANCELLED")

OPTIONS = (
    # Without it all channels of a process would share one connection, and so one replica.
    ("grpc.use_local_subchannel_pool", 1),
    # How soon to connect again after a failed attempt, at first and at most. gRPC allows no less
    # than 100 ms; its defaults, 1 s and 2 min, would cost a waiting call its whole time-out.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name, how long one attempt to connect may take. At 100 ms attempts on a busy
    # machine gave up on healthy replicas; TLS across an ocean takes half a second.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A host that vanishes says nothing: ask after 10 s of silence while a call is under way.
    # gRPC stops after two questions without data between, so that servers with default settings,
    # which take more for an attack, keep an idle stream (tried).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A request larger than this is not kept for a retry. Default 256 kB: a batch of 170
    # embeddings of 384 numbers would be lost with its replica.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
    # 1,024 decisions with all their fallbacks may pass gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How often a call is tried, and the budget that keeps retries from becoming a storm.

    The budget is gRPC's, and each connection has its own. It starts with `tokens_max` tokens; a
    failed attempt takes one, a success gives back `tokens_per_success`, and while no more than
    half are left nothing is retried. So retries never exceed `tokens_max / 2` at once, nor 10 % of
    the successes in the long run.
    """

    attempts_max: int = 3  # the first included; gRPC allows 2 to 5
    # Mean wait before the second attempt; before the third, three times that. At least 2: gRPC
    # varies it by a fifth and drops the fraction, and after a wait of 0 ms a call hangs
    # (grpc/grpc#41036; with 1 ms half the calls hung until their time-out, with 2 ms none).
    backoff_ms: int = 10
    backoff_ms_max: int = 100  # with three attempts, a retried call is late by 40 ms on average
    # Half of it must cover the calls in flight on one connection when that breaks, or the rest is
    # lost (measured above). The most gRPC allows: 500 a connection. It is spent once, so against
    # a router that is down for good it adds a second's traffic at most and then nothing.
    tokens_max: int = 1_000
    tokens_per_success: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.attempts_max <= 5:
            raise InvalidOption("RetryOptions", f"attempts_max {self.attempts_max} is not 2 to 5")
        if self.backoff_ms < 2:
            raise InvalidOption("RetryOptions", f"backoff_ms {self.backoff_ms} is not at least 2")
        if not 1 <= self.tokens_max <= 1_000:
            raise InvalidOption("RetryOptions", f"tokens_max {self.tokens_max} is not 1 to 1,000")


def opened(
    grpc_flavour: ModuleType,
    target: str,
    credentials: grpc.ChannelCredentials | None,
    retries: RetryOptions,
    *,
    use_proxy: bool = False,
) -> Any:
    """Return a channel of `grpc` or of `grpc.aio`. It connects when first used.

    A router is in one's own network, and `http_proxy` in the environment is meant for the web: it
    is followed with `use_proxy` only.
    """
    proxy = ("grpc.enable_http_proxy", int(use_proxy))
    options = [*OPTIONS, proxy, ("grpc.service_config", service_config(retries))]
    if credentials is None:
        return grpc_flavour.insecure_channel(target, options=options)
    return grpc_flavour.secure_channel(target, credentials, options=options)


def service_config(retries: RetryOptions) -> str:
    """Return the retry policy as gRPC reads it (grpc/proposal A6)."""
    policy = {
        "maxAttempts": retries.attempts_max,
        "initialBackoff": f"{retries.backoff_ms / 1_000}s",
        "maxBackoff": f"{retries.backoff_ms_max / 1_000}s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": RETRIED,
    }
    return json.dumps(
        {
            # All methods. A stream is retried only while it has had no reply; a dispatcher whose
            # pools have all failed says that it is not to be asked again.
            "methodConfig": [
                {
                    "name": [
                        {"service": "fairlead.v1.Router"},
                        {"service": "fairlead.v1.Dispatcher"},
                    ],
                    "retryPolicy": policy,
                }
            ],
            "retryThrottling": {
                "maxTokens": retries.tokens_max,
                "tokenRatio": retries.tokens_per_success,
            },
        }
    )


def tls(
    root_certificates: bytes | None, credentials: grpc.ChannelCredentials | None
) -> grpc.ChannelCredentials | None:
    """Return the credentials asked for in either way; None: no TLS."""
    if root_certificates is None:
        return credentials
    if credentials is not None:
        raise InvalidOption(
            "client", "root_certificates and credentials are both given; credentials hold both"
        )
    return grpc.ssl_channel_credentials(root_certificates)


def connect(
    target: str, connections: int, root_certificates: bytes | None = None
) -> list[grpc.aio.Channel]:
    """Return so many asyncio channels to a router, for replays and benchmarks."""
    credentials = tls(root_certificates, None)
    return [opened(grpc.aio, target, credentials, RetryOptions()) for _ in range(connections)]
