"""Pools on Ray for real: placed on logical GPUs, found, replaced, and answering what is dispatched.

One Ray cluster for the whole file: starting it takes longer than any of the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Self

import openai
import psutil
import pytest
import ray
from ray import serve as ray_serve
from waiting import until

from fairlead import Client, DispatchRequest, Ended, FairleadError, Piece, Request, Routed
from infra.autoscaling.live.ray_status import applications
from infra.capacity.fleet import PoolPlan
from infra.cluster import cluster
from infra.cluster.cluster import Running, local_ray, running
from infra.errors import ClusterFailed
from infra.pools.directory import LAME_DUCK_S, POOLS_APP, DirectoryClient, find_directory
from infra.pools.pool_clients import ASK_S, PoolClients
from infra.pools.pool_replica import PoolDeployment
from infra.pools.ports import free_ports
from infra.settings.settings import read_settings
from infra.status.status import look
from streams.clock import now_ms
from streams.training.prices import SPENT
from streams.training.trainer import LEARNED

PROGRAM = Path(__file__).parents[1] / "support" / "servers" / "openai_program.py"
PATIENCE_S = 120.0
WORDS = 20
POOL = "small-h100"  # of two replicas


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True) if alive(p.pid)}


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine, which passes for one with GPUs. It leaves no process behind."""
    before = children()
    with local_ray({"gpu_h100_sxm": 3.0, "GPU": 1.0}):
        yield
    until(lambda: children() <= before, "Ray's processes to end")


# Ray Serve's own, for calls between deployments, is at all addresses whatever is set (2.60); it asks
# for Ray's token.
EVERYWHERE = "ray::ServeReplica"


def test_ray_listens_on_the_loopback_alone():
    """
    Its gcs, raylet, agents and workers: whoever reaches them may run code.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            listening = process.net_connections("tcp")
            found += [(process.name(), at.laddr.ip) for at in listening if at.status == "LISTEN"]
    ours = {(name, ip) for name, ip in found if not EVERYWHERE.startswith(name)}

    assert {"gcs_server", "raylet"} <= {name for name, _ in ours}
    assert {ip.removeprefix("::ffff:") for _, ip in ours} == {"127.0.0.1"}


class Following:
    """`PoolClients` on an event loop of their own."""

    def __init__(self, plan: PoolPlan) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._plan = plan

    def run(self, work: Awaitable) -> object:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        self._pools = PoolClients([self._plan], DirectoryClient().ask)
        self.run(self._pools.start())
        return self

    def __exit__(self, *failure: object) -> None:
        self.run(self._pools.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def addresses(self) -> set[str]:
        return set(self._pools.endpoints(self._plan.name))


# --- all of it -------------------------------------------------------------------------------------


def settings_file(folder: Path) -> Path:
    port, dispatch, http = free_ports(3)
    path = folder / "fairlead.toml"
    command = [sys.executable, str(PROGRAM), "{host}", "{port}", f"--children={folder}/pids"]
    path.write_text(f"""
state_dir = "{folder}/state"
[router]
replicas = 1
[listener]
port = {port}
grace_s = 1
[dispatch]
replicas = 1
port = {dispatch}
http_port = {http}
[encoder]
kind = "hashing"
[[gpus]]
name = "h100_sxm"
usd_per_hour = 1.9
available = 3
[[models]]
name = "small"
shape = "Llama-3.1-8B-Instruct"
precision = "bf16"
output_tokens = {WORDS}
usd_per_1m_output_tokens = 1.0
[[models]]
name = "large"
shape = "Qwen3-32B"
output_tokens = {WORDS}
usd_per_1m_output_tokens = 10.0
[[models]]
name = "program"
[[pools]]
name = "{POOL}"
model = "small"
backend = "emulated"
gpu = "h100_sxm"
replicas = 2
speed = 50
[[pools]]
name = "large-h100"
model = "large"
backend = "emulated"
gpu = "h100_sxm"
residency = "cold"
load_s = 10
speed = 50
[[pools]]
name = "program-here"
model = "program"
backend = "openai"
command = {command!r}
""")
    return path


def test_deployment_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    """
    First of this file: there must be nothing running yet. The machine loses the address after the look.
    """
    monkeypatch.setattr(cluster, "why_not", lambda port, host: "")
    path = settings_file(tmp_path)
    path.write_text(path.read_text().replace("[listener]", '[listener]\nhost = "192.0.2.7"'))

    with (
        pytest.raises(ClusterFailed, match=r"Failed to bind to address 192\.0\.2\.7"),
        running(read_settings(path), path),
    ):
        pass

    assert ray_serve.status().applications == {}


@pytest.fixture(scope="module")
def up(ray_cluster, tmp_path_factory) -> Iterator[tuple[Running, Path]]:
    folder = tmp_path_factory.mktemp("up")
    path = settings_file(folder)
    with running(read_settings(path), path) as router:
        yield router, folder
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    # Whatever was started has been stopped: programs, applications, the directory, listeners.
    assert not any(map(alive, pids))
    assert ray_serve.status().applications == {}
    with pytest.raises(ValueError, match="directory"):
        find_directory()
    for address in (router.address, router.dispatch, router.openai.split("/")[2]):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address.split(":"))


def ask(up: Running, text: str, model: str, **options: object) -> list:
    route = Request(text=text, allowed_models=[model])
    with Client(up.dispatch, timeout_s=PATIENCE_S) as client:
        return list(client.dispatch(DispatchRequest(route=route, **options), timeout_s=PATIENCE_S))


def words(events: list) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


@pytest.mark.parametrize("model", ["small", "large"])
def test_dispatched_request_is_answered_whole(up, model):
    """
    Over gRPC: who answers, every word in order, what it took.
    """
    events = ask(up[0], f"Tell me of the sea, {model} one.", model)

    first, *pieces, last = events
    assert isinstance(first, Routed)
    assert isinstance(last, Ended)
    assert (first.model, first.pool) == (model, f"{model}-h100")
    assert last.output_tokens > 0
    assert words(pieces) == "".join(f"w{i} " for i in range(last.output_tokens))
    assert last.cost_usd == pytest.approx(
        last.output_tokens * {"small": 1e-6, "large": 1e-5}[model]
    )
    assert [attempt.outcome for attempt in last.attempts] == ["answered"]


def test_official_client_of_openai_is_answered(up):
    """
    Streamed and whole, by the router's choice and by name.
    """
    asked = [{"role": "user", "content": "Who wrote Moby-Dick?"}]
    with openai.OpenAI(
        base_url=up[0].openai, api_key="any", max_retries=0, timeout=PATIENCE_S
    ) as client:
        whole = client.chat.completions.create(model="small", messages=asked)
        chunks = list(
            client.chat.completions.create(
                model="small", messages=asked, stream=True, stream_options={"include_usage": True}
            )
        )
        anyone = client.chat.completions.create(model="auto", messages=asked)
        named = {model.id for model in client.models.list()}

    n = whole.usage.completion_tokens
    text = "".join(f"w{i} " for i in range(n))
    assert whole.choices[0].message.content == text
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == n
    assert anyone.choices[0].message.content
    assert {"small", "large", "program"} <= named


def test_program_is_a_replica_like_any_other(up):
    """
    It is found on its port, and its usage is what it says.
    """
    events = ask(up[0], "Who are you?", "program")

    pid, _ = (up[1] / "pids").read_text().split()
    assert words(events) == f"{pid} over"
    assert (events[-1].prompt_tokens, events[-1].output_tokens) == (7, 2)


def test_program_that_dies_is_replaced(up):
    """
    Ray Serve sees it and starts another one, which answers.
    """
    old, child = (int(pid) for pid in (up[1] / "pids").read_text().split())

    os.kill(old, signal.SIGKILL)

    def answered() -> str:
        with contextlib.suppress(FairleadError):
            return words(ask(up[0], "Are you there?", "program"))
        return ""

    text = until(answered, "an answer")
    assert text.endswith(" over")
    assert int(text.split()[0]) != old
    until(lambda: not alive(child), "what it left behind to end")


def counts(up: Running) -> tuple[int, int]:
    """Records learned, and nano-dollars spent on answers, as the newest snapshot has them."""
    store = up.site.store()
    newest = store.newest()
    found = store.load(newest).about["counts"] if newest else {}
    spent = sum(value for name, value in found.items() if name.startswith(SPENT))
    return found.get(LEARNED, 0), spent


def test_what_dispatched_requests_took_is_learned(up):
    """
    Nobody but the dispatcher reports it; its decisions are answered.
    """
    asked = [f"Question {i}" for i in range(5)]
    before = counts(up[0])

    ended = [ask(up[0], text, "large")[-1] for text in asked]

    nano_usd = sum(round(end.cost_usd * 1e9) for end in ended)
    until(lambda: counts(up[0])[0] >= before[0] + len(asked), "learning")
    until(lambda: counts(up[0])[1] >= before[1] + nano_usd, "the money to be counted")


def test_status_shows_pools_as_they_report_of_themselves_and_as_they_are_called(up):
    """
    Emulated replicas report what goes on inside them, dispatchers what became of their calls. A
    server that reports nothing is seen by its callers.
    """
    for model in ("small", "program"):
        ask(up[0], "What is a fairlead?", model)

    def shown():
        log = up[0].site.log()
        try:
            names = [POOL, "program-here"]
            found = look(up[0].site.store(), log, now_ms(), 600.0, names)
        finally:
            log.close()
        emulated, program = found.pools.get(POOL), found.pools.get("program-here")
        reports = (
            emulated and program and emulated.tokens and emulated.answered and program.answered
        )
        return found if reports and emulated.replicas.get("ready") == 2 and program.tokens else None

    found = until(shown, "telemetry")
    pool = found.pools[POOL]
    assert (pool.model, pool.gpu, pool.derived) == ("small", "h100_sxm", False)
    assert pool.ttft_ms["p50"] > 0.0
    assert pool.joules > 0.0
    assert found.spent_usd[POOL] > 0.0
    assert found.workload["default"].output_tokens_mean > 0.0


def test_what_ray_serve_says_is_read_as_its_own_function_reads_it(up):
    """
    Which takes ten times as long.
    """
    until(lambda: applications() == ray_serve.status().applications != {}, "both to say the same")


def test_replicas_are_as_important_as_any_other_process(up):
    """
    Ray would let everybody else's computing go first.
    """
    ours, found = psutil.Process(), set()
    for process in ours.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            found.add(process.nice())

    assert found == {ours.nice()}


def test_router_only_decides_on_its_own_port(up):
    """
    It takes no dispatches: its replicas load nothing that calls pools.
    """
    with Client(up[0].address, timeout_s=PATIENCE_S) as client:
        decision = client.route("Who decides?", allowed_models=["large"])
        client.send_feedback(decision.ticket, quality=0.5)
        with pytest.raises(FairleadError, match="Dispatch"):
            list(client.dispatch(DispatchRequest(route=Request(text="x")), timeout_s=PATIENCE_S))

    assert (decision.model, decision.pool) == ("large", "large-h100")


# --- the directory ---------------------------------------------------------------------------------


@pytest.fixture
def pool(up) -> PoolPlan:
    return next(plan for plan in up[0].site.fleet.pools if plan.name == POOL)


def replicas() -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    ours = f"SERVE_REPLICA::{POOLS_APP}#{POOL}#"
    return [a["name"] for a in named if a["name"].startswith(ours)]


def test_replicas_take_their_logical_gpus(pool):
    """
    Two and one are all that this machine claims to have: a fourth replica would find no place.
    """
    assert ray.cluster_resources()["gpu_h100_sxm"] == 3.0
    assert ray.available_resources().get("gpu_h100_sxm", 0.0) == 0.0


def test_killed_replica_is_replaced_and_its_address_goes(pool):
    """
    Ray Serve brings another one up; until the address has gone, health passes it over.
    """
    with Following(pool) as following:
        before = until(lambda: len(following.addresses()) == 2 and following.addresses(), "both")

        ray.kill(ray.get_actor(replicas()[0], namespace="serve"))

        until(lambda: following.addresses() - before, "a new address")
        after = until(lambda: len(following.addresses()) == 2 and following.addresses(), "two")
        assert len(after & before) == 1


def test_killed_directory_comes_back_and_no_endpoint_is_lost_meanwhile(pool):
    """
    Whoever follows it keeps what it knew, and the new one soon knows everybody again.
    """
    with Following(pool) as following:
        until(lambda: len(following.addresses()) == 2, "both")
        before, seen = following.addresses(), set()
        old = ray.get(find_directory().addresses.remote())[0]

        ray.kill(find_directory(), no_restart=False)

        def complete() -> bool:
            seen.add(frozenset(following.addresses()))
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                age_s, known = ray.get(find_directory().addresses.remote(), timeout=1.0)
                return age_s < old and set(known.get(POOL, ())) == before
            return False

        until(complete, "a directory that knows both")
        assert seen == {frozenset(before)}


class Stopped(PoolDeployment):
    """Ended by the test, not once more when it is collected."""

    def __del__(self) -> None: ...


def test_replica_that_stops_answers_until_dispatchers_have_looked_again(pool, up, monkeypatch):
    """
    It is taken out of the directory first: who still has its address is not refused, for as long as
    four looks take.
    """
    sleep, resting, over = asyncio.sleep, asyncio.Event(), asyncio.Event()

    async def rest(seconds: float) -> None:
        if seconds == LAME_DUCK_S:
            resting.set()
        await (over.wait() if seconds == LAME_DUCK_S else sleep(seconds))

    monkeypatch.setattr(asyncio, "sleep", rest)
    assert LAME_DUCK_S >= 4 * ASK_S

    async def stopped() -> None:
        replica, directory = object.__new__(Stopped), DirectoryClient()
        await replica.__init__(pool, up[0].site, 0.0)
        host, port = replica._server.address.split(":")

        async def listed() -> bool:
            return f"{host}:{port}" in (await directory.ask())[1].get(POOL, ())

        while not await listed():
            pass
        stopping = asyncio.create_task(PoolDeployment.__del__(replica))
        while await listed():
            pass
        await resting.wait()
        _, connection = await asyncio.open_connection(host, port)
        connection.close()
        over.set()
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)

    asyncio.run(asyncio.wait_for(stopped(), PATIENCE_S))
