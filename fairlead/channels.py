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

Measured with two replicas of 5 ms, one of them killed under 64 callers on 4 connections, 64,000
calls and 15 kills a row (both replicas killed and restarted: 13,000 calls and 4 times; stopped
gently with SIGTERM: 5 to 15 times; the first three rows had 32 callers, 20,000 calls, 5 kills):

    neither                                         1,019 lost
    wait for ready alone                               87 lost: those in flight
    both, a budget of 10 tokens                        38 lost: more in flight than the budget has
    retries alone, 1,000 tokens                        67 lost; 686 when both replicas restart
    both, 100 tokens                                    0 lost; 0 when both restart
    stopped gently: both, retrying UNAVAILABLE        130 lost: `grpc.aio` cancels what it had not
                                                          begun, even within the grace period
    stopped gently: both, retrying CANCELLED too        0 lost

The price is that a router which is down shows as DEADLINE_EXCEEDED after the time-out, not at
once; `healthy()` does not wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import grpc

from fairlead.errors import InvalidOption

# CANCELLED comes from a server that stops (see above). A call that is cancelled here, by closing
# the client or by its own task, is over and is not retried (tried).
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
    backoff_ms: int = 10  # mean wait before the second attempt; then three times that
    backoff_ms_max: int = 100  # with three attempts, a retried call is late by 40 ms on average
    # Half of it covers the calls in flight on one connection when it breaks, or else they are
    # lost; 100 calls in flight on each is over ten times what one core can drive at 5 ms a call.
    tokens_max: int = 200  # gRPC allows up to 1,000
    tokens_per_success: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.attempts_max <= 5:
            raise InvalidOption("RetryOptions", f"attempts_max {self.attempts_max} is not 2 to 5")
        if not 1 <= self.tokens_max <= 1_000:
            raise InvalidOption("RetryOptions", f"tokens_max {self.tokens_max} is not 1 to 1,000")


def opened(
    grpc_flavour: ModuleType,
    target: str,
    credentials: grpc.ChannelCredentials | None,
    retries: RetryOptions,
) -> Any:
    """Return a channel of `grpc` or of `grpc.aio`. It connects when first used."""
    options = [*OPTIONS, ("grpc.service_config", service_config(retries))]
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
            # All methods. A stream is retried only while it has had no reply.
            "methodConfig": [{"name": [{"service": "fairlead.v1.Router"}], "retryPolicy": policy}],
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


def connect(target: str, connections: int) -> list[grpc.aio.Channel]:
    """Return so many asyncio channels to a router without TLS, for replays and benchmarks."""
    return [opened(grpc.aio, target, None, RetryOptions()) for _ in range(connections)]
