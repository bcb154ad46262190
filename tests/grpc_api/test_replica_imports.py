"""A replica that only decides loads nothing of what calls pools: neither HTTP nor dispatching.

An import that slips in would cost every router its start-up time and memory, and go unnoticed.
Hence a fresh interpreter, which tells.
"""

from __future__ import annotations

import pytest
from fresh_interpreter import modules_after

DECIDES = (
    "serve.deploy.replica",
    "serve.grpc_api.servicer",
    "serve.grpc_api.listener",
    "serve.routing.decider",
    "serve.routing.live",
)
CALLS = {"starlette", "uvicorn", "aiohttp", "openai", "ray"}
DISPATCHES = {
    "serve.dispatch.dispatcher",
    "serve.deploy.dispatch_replica",
    "serve.grpc_api.dispatch_servicer",
    "serve.dispatch.race",
    "serve.openai_api.app",
    "serve.openai_api.http_listener",
}


@pytest.mark.parametrize("module", DECIDES)
def test_deciding_loads_nothing_that_calls_pools(module):
    loaded = modules_after(f"import {module}")

    assert {name.partition(".")[0] for name in loaded} & CALLS == set()
    assert loaded & DISPATCHES == set()
    assert module in loaded


def test_the_check_would_notice():
    loaded = modules_after("import serve.deploy.dispatch_replica")

    assert {name.partition(".")[0] for name in loaded} >= {"starlette", "uvicorn"}
    assert loaded >= DISPATCHES
