"""An emulated server on a port of this machine, and what it emulates, for tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai

from infra.capacity.fleet import Emulation
from infra.emulator.performance import Performance
from infra.emulator.power import Power
from infra.pools.emulated_server import EmulatedServer
from serve.openai_api.http_listener import HttpListener, HttpListenerOptions

# A token in 1 ms, a thousand tokens of a prompt in 10.
PERFORMANCE = Performance(
    fixed_s=0.001,
    per_sequence_s=0.0,
    per_context_token_s=0.0,
    per_prompt_token_s=0.00001,
    request_s=0.0,
    prefill_tokens_max=8192,
    kv_tokens_max=100_000,
    sequences_max=64,
    derived=False,
    source="made up",
)
POWER = Power(idle_w=100.0, decode_w=300.0, prefill_w=500.0)


def emulation(**changed: object) -> Emulation:
    """One that answers in about 20 words."""
    plain = {
        "performance": PERFORMANCE,
        "power": POWER,
        "context_tokens_max": 4096,
        "output_tokens": 20.0,
        "speed": 10.0,
    }
    return Emulation(**plain | changed)


class Up:
    """A server that is up."""

    def __init__(self, server: EmulatedServer, port: int) -> None:
        self.server, self.port = server, port
        self.root, self.url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/v1"

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="any", max_retries=0, timeout=60)


@asynccontextmanager
async def emulated(**changed: object) -> AsyncIterator[Up]:
    """A server of `emulation(**changed)`, on the running loop."""
    seconds = itertools.count(1_700_000_000)
    server = EmulatedServer("m", emulation(**changed), time.monotonic, lambda: next(seconds))
    listener = HttpListener(server.app, HttpListenerOptions(port=0, grace_s=0.5))
    await listener.start()
    try:
        yield Up(server, listener.port)
    finally:
        await listener.stop()
