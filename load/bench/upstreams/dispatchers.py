"""Real dispatchers in this process, in front of misbehaving servers: one for each way of asking.

    settings (TOML in a folder) ─▶ LocalSite ─▶ router ─▶ DispatchReplica, on free ports
                                        └─▶ PoolClients: a pool for each misbehaviour, and "sound"

Every misbehaviour is a model of its own and is stated to be better than the sound one, so that a
greedy policy decides for it first. Dispatchers share nothing, so an ejection belongs to one way.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from load.bench.upstreams.misbehaviour import Json, Misbehaviour
from load.bench.upstreams.server import SOUND
from serve.deploy.dispatch_deployment import router_within
from serve.deploy.dispatch_replica import DispatchReplica
from serve.deploy.explorer import Explorer

# Servers and dispatchers share a process: on a busy machine it is late, not the network.
CONNECT_TIMEOUT_S = 10.0
SITE = """state_dir = "{folder}/state"
[router]
policy = "greedy"
[preference]
cost = 0.0
latency = 0.0
[encoder]
kind = "hashing"
[telemetry]
period_s = 0.0
[dispatch]
replicas = 1
"""


def write_settings(
    folder: Path, misbehaviours: Sequence[Misbehaviour], url: Callable[[str], str]
) -> Path:
    """The settings file; `url` has the base URL of each misbehaviour's number, and of `SOUND`."""
    rows = [_model(one.name, 0.9, url(str(i)), one.pool) for i, one in enumerate(misbehaviours)]
    rows.append(_model(SOUND, 0.5, url(SOUND), {}))
    path = folder / "fairlead.toml"
    path.write_text(SITE.format(folder=folder) + "\n".join(rows))
    return path


def _model(name: str, quality: float, url: str, pool: Json) -> str:
    quoted = json.dumps(name)
    settings = {"connect_timeout_s": CONNECT_TIMEOUT_S} | dict(pool)
    more = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    return f"""[[models]]
name = {quoted}
quality = {quality}
[[pools]]
name = {quoted}
model = {quoted}
backend = "openai"
urls = ["{url}"]
{more}
"""


@asynccontextmanager
async def dispatchers(settings: Path, n: int) -> AsyncIterator[list[DispatchReplica]]:
    """So many dispatchers of one site, while it is entered."""
    async with AsyncExitStack() as up:
        made = [_dispatcher(settings) for _ in range(n)]
        for one in made:
            await one.start()
            up.push_async_callback(one.stop)
        yield made


def _dispatcher(path: Path) -> DispatchReplica:
    """As Ray runs it (`serve.deploy.dispatch_deployment`), but on any free ports of 127.0.0.1."""
    settings = read_settings(path)
    site, options = LocalSite.of(settings, path), settings.dispatchers()
    http = replace(options.replica.http_listener, port=0)
    options = replace(options, port=0, replica=replace(options.replica, http_listener=http))
    router = router_within(settings.deployment(), options, site)
    pages = site.pages(Explorer(router.servicer, router.view))
    return DispatchReplica(router, site.pools(), options.replica, pages=pages)
