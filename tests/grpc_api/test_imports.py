"""What imports load: clients need grpcio and protobuf alone, and no process what only others use.

Services that only ask a router install no more than these two packages. A replica that only decides
has neither HTTP nor dispatching, a pool's replica has no router, and who reads settings has no Ray:
each would cost start-up time and memory. All packages
are installed where these tests run, so an import that slips in would go unnoticed. Hence a fresh
interpreter, which tells.
"""

from __future__ import annotations

import re
import sys

from fresh_interpreter import ROOT, modules_after

# `grpc` looks for its own extras when imported (grpc_tools, grpc_health, grpc_reflection) and does
# without them; typing_extensions is what grpcio depends on; the other two are its compiled part.
ALLOWED = re.compile(
    r"fairlead|grpc(_tools|_health|_reflection)?|typing_extensions|cython_runtime|_cython_\w+"
    r"|google(\.protobuf|\._upb)?|serve(\.proto(\.fairlead(\.v1)?)?)?"
    # The fields of a request, which need no package but those.
    r"|learners(\.(criticality|option))?|serve\.(errors|routing(\.request)?)"
)
NEEDED_ELSEWHERE = {"numpy", "ray", "faiss", "rich", "typer", "pyarrow", "pydantic", "cryptography"}
STARTS = re.compile(r"from fairlead\.commands\.up import")
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


def package_of(module: str) -> str:
    """What `ALLOWED` speaks of: of shared roots the part that says whose a module is."""
    parts = module.split(".")
    return ".".join(parts[: {"google": 2, "serve": 4, "learners": 2}.get(parts[0], 1)])


def test_importing_the_client_loads_grpc_protobuf_and_our_stubs_and_nothing_else():
    loaded = modules_after("import fairlead") - modules_after("pass")
    packages = {package_of(name) for name in loaded} - sys.stdlib_module_names

    assert {name for name in packages if not ALLOWED.fullmatch(name)} == set()
    assert not packages & NEEDED_ELSEWHERE
    assert "serve.proto.fairlead.v1" in packages


def test_the_check_would_notice():
    assert "numpy" in modules_after("import fairlead, numpy")


def test_deciding_loads_nothing_that_calls_pools():
    loaded = modules_after(f"import {', '.join(DECIDES)}")

    assert {name.partition(".")[0] for name in loaded} & CALLS == set()
    assert loaded & DISPATCHES == set()
    assert loaded >= set(DECIDES)


def test_a_replica_of_a_pool_loads_no_router():
    loaded = modules_after("import infra.pools.pool_replica")

    assert loaded & {*DECIDES, "serve.dispatch.dispatcher", "infra.settings.settings"} == set()


def test_settings_and_a_site_are_read_without_a_cluster_or_its_calls():
    """
    By every command but `up`, which alone starts a cluster.
    """
    loaded = modules_after("import infra.pools.site, fairlead.commands.started")
    starts = [path for path in (ROOT / "fairlead").rglob("*.py") if STARTS.search(path.read_text())]

    assert loaded & {"ray", "aiohttp"} == set()
    assert "infra.settings.settings" in loaded
    assert [path.name for path in starts] == ["command_line.py"]


def test_the_check_would_notice_what_calls_pools():
    loaded = modules_after("import serve.deploy.dispatch_replica")

    assert {name.partition(".")[0] for name in loaded} >= {"starlette", "uvicorn"}
    assert loaded >= DISPATCHES
