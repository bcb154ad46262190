"""A replica that only decides loads nothing of what calls pools: neither HTTP nor dispatching.

An import that slips in would cost every router its start-up time and memory, and go unnoticed.
Hence a fresh interpreter, which tells.
"""

from __future__ import annotations

import pytest
from test_client_imports import modules_after

DECIDES = ("serve.replica", "serve.servicer", "serve.listener", "serve.decider", "serve.live")
CALLS = {"starlette", "uvicorn", "aiohttp", "openai", "ray"}
DISPATCHES = {
    "serve.dispatcher",
    "serve.dispatch_replica",
    "serve.dispatch_servicer",
    "serve.race",
    "serve.openai_http",
    "serve.http_listener",
}


@pytest.mark.parametrize("module", DECIDES)
def test_deciding_loads_nothing_that_calls_pools(module):
    loaded = modules_after(f"import {module}")

    assert {name.partition(".")[0] for name in loaded} & CALLS == set()
    assert loaded & DISPATCHES == set()
    assert module in loaded


def test_the_check_would_notice():
    loaded = modules_after("import serve.dispatch_replica")

    assert {name.partition(".")[0] for name in loaded} >= {"starlette", "uvicorn"}
    assert loaded >= DISPATCHES
