"""Following the directory: what it says takes effect, what it does not say changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace

from emulated import emulation
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.capacity.fleet import GpuType, PoolPlan, ServerOptions
from infra.pools import pool_clients
from infra.pools.pool_clients import COMPLETE_S, PoolClients

OLD = COMPLETE_S  # seconds after which a directory knows everybody
RUN = PoolPlan(name="run", model="m", backend="emulated", emulation=emulation())
ALSO = PoolPlan(name="also", model="m", backend="openai", command=("serve",))
CALLED = PoolPlan(
    name="called",
    model="m",
    backend="openai",
    urls=("http://a:1/v1", "https://b/openai/v1"),
    upstream_model="M-1",
    server=ServerOptions(api_key="key", extra={"top_k": 5}, stream=False, idle_timeout_s=90.0),
)
DECIDED = PoolPlan(name="decided", model="m", backend="none")
PATIENCE_S = 120.0


class Directory:
    """Says what a test wants; an exception is raised."""

    def __init__(self, *said: object) -> None:
        self.said, self.asked = list(said), 0

    async def ask(self) -> tuple:
        self.asked += 1
        now = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(now, Exception):
            raise now
        if now is None:
            await asyncio.Event().wait()
        return now


def learn(pools: PoolClients, age_s: float, addresses: Mapping[str, Sequence[str]]) -> None:
    """What the directory says: addresses, and what Ray calls the replicas there."""
    pools.learn(age_s, {pool: {at: f"replica {at}" for at in of} for pool, of in addresses.items()})


def run(work: Awaitable) -> object:
    async def bounded() -> object:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


def clients(*plans: PoolPlan) -> PoolClients:
    return PoolClients(plans, Directory((OLD, {})).ask)


def addresses(pools: PoolClients, pool: str = "run") -> set[str]:
    return set(pools.endpoints(pool))


# --- what is known ---------------------------------------------------------------------------------


def test_servers_that_run_already_are_endpoints_from_the_start():
    """
    With the name, the key and the fields that their settings give them.
    """
    pools = clients(CALLED)

    found = pools.endpoints("called")
    assert set(found) == {"a:1", "b/openai"}
    assert all(endpoint.address == address for address, endpoint in found.items())
    options = found["a:1"]._options
    assert (options.url, options.model) == ("http://a:1/v1", "M-1")
    assert (options.api_key, options.extra) == ("key", {"top_k": 5})
    assert (options.stream, options.idle_timeout_s) == (False, 90.0)


def test_pools_that_understand_it_are_told_who_goes_first():
    """
    Emulated ones always, others where their settings say so.
    """
    stated = replace(CALLED, name="stated", server=ServerOptions(priority=True))
    pools = clients(RUN, CALLED, stated)
    learn(pools, OLD, {"run": ["10.0.0.1:1"]})

    said = {
        name: {endpoint._options.priority for endpoint in pools.endpoints(name).values()}
        for name in ("run", "called", "stated")
    }
    assert said == {"run": {True}, "called": {False}, "stated": {True}}


def test_what_nobody_can_call_has_no_endpoints():
    """
    A pool that is only decided for, one that is not in the settings, one that is not up yet.
    """
    pools = clients(DECIDED, RUN)

    assert [dict(pools.endpoints(name)) for name in ("decided", "nowhere", "run")] == [{}, {}, {}]


def test_replica_that_reports_becomes_an_endpoint_of_its_pool():
    pools = clients(RUN, ALSO)

    learn(pools, 0.0, {"run": ["h:1", "h:2"], "also": ["h:3"], "nowhere": ["h:4"]})

    assert (addresses(pools), addresses(pools, "also")) == ({"h:1", "h:2"}, {"h:3"})
    assert pools.endpoints("run")["h:1"]._options.url == "http://h:1/v1"
    assert pools.endpoints("run")["h:1"]._options.model == "m"


def test_replica_that_is_gone_is_no_endpoint_any_more():
    """
    The others are the same objects as before, with their connections.
    """
    pools = clients(RUN)
    learn(pools, OLD, {"run": ["h:1", "h:2"]})
    kept = pools.endpoints("run")["h:2"]

    learn(pools, OLD, {"run": ["h:2", "h:3"]})

    assert addresses(pools) == {"h:2", "h:3"}
    assert pools.endpoints("run")["h:2"] is kept


def test_pool_without_replicas_left_is_empty():
    pools = clients(RUN)
    learn(pools, OLD, {"run": ["h:1"]})

    learn(pools, OLD, {})

    assert addresses(pools) == set()


def test_mapping_is_the_same_until_something_changes():
    """
    Whoever holds one sees no change under its hands.
    """
    pools = clients(RUN)
    learn(pools, OLD, {"run": ["h:1"]})
    held = pools.endpoints("run")

    learn(pools, OLD, {"run": ["h:1"]})
    assert pools.endpoints("run") is held

    learn(pools, OLD, {"run": []})
    assert pools.endpoints("run") is not held
    assert set(held) == {"h:1"}


def test_directory_that_was_just_restarted_takes_nothing_away():
    """
    It does not know everybody yet; what it says is added.
    """
    pools = clients(RUN)
    learn(pools, OLD, {"run": ["h:1", "h:2"]})

    learn(pools, 0.0, {})
    assert addresses(pools) == {"h:1", "h:2"}
    learn(pools, OLD - 0.001, {"run": ["h:3"]})
    assert addresses(pools) == {"h:1", "h:2", "h:3"}
    learn(pools, OLD, {"run": ["h:2", "h:3"]})
    assert addresses(pools) == {"h:2", "h:3"}


def test_urls_are_for_ever_whatever_the_directory_says():
    pools = clients(CALLED, RUN)

    learn(pools, OLD, {"called": ["h:1"], "run": ["h:2"]})
    learn(pools, OLD, {})

    assert addresses(pools, "called") == {"a:1", "b/openai"}


looks = st.lists(
    st.tuples(st.sampled_from([0.0, OLD]), st.frozensets(st.sampled_from(["h:1", "h:2", "h:3"]))),
    max_size=8,
)


@lightly
@given(looks)
def test_endpoints_are_what_was_said_since_the_directory_was_last_complete(said):
    """
    Any sequence of looks: a complete one sets them, an incomplete one only adds.
    """
    pools, expected = clients(RUN), set()

    for age_s, there in said:
        learn(pools, age_s, {"run": sorted(there)})
        expected = set(there) | (set() if age_s else expected)
        assert addresses(pools) == expected


# --- following -------------------------------------------------------------------------------------


def test_dispatcher_that_is_up_knows_the_endpoints():
    """
    The first look is waited for, so that the first request finds its pool.
    """

    async def work():
        pools = PoolClients([RUN], Directory((0.0, {"run": {"h:1": "r"}})).ask)
        await pools.start()
        found = addresses(pools)
        await pools.stop()
        return found

    assert run(work()) == {"h:1"}


def test_directory_that_fails_is_asked_again_and_nothing_is_lost_meanwhile(monkeypatch, caplog):
    """
    It may raise anything, and hang; that is said once, not four times a second.
    """
    monkeypatch.setattr(pool_clients, "ASK_S", 0.001)
    monkeypatch.setattr(pool_clients, "ANSWER_S_MAX", 0.02)
    one, two = (OLD, {"run": {"h:1": "r"}}), (OLD, {"run": {"h:2": "r"}})
    away = [ValueError("no directory")] * 3
    directory = Directory(one, *away, None, one, *away, two)

    async def work():
        pools = PoolClients([RUN], directory.ask)
        await pools.start()
        held = pools.endpoints("run")
        while directory.asked < 9:
            assert pools.endpoints("run") is held
            await asyncio.sleep(0)
        while addresses(pools) != {"h:2"}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await pools.stop()

    with caplog.at_level(logging.WARNING):
        run(work())

    said = [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]
    assert [("no directory" in text, "TimeoutError" in text) for text in said] == [
        (True, False), (False, True), (True, False)
    ]  # fmt: skip


def test_directory_that_hangs_at_the_start_keeps_nobody_from_starting(monkeypatch):
    monkeypatch.setattr(pool_clients, "ANSWER_S_MAX", 0.02)

    async def work():
        pools = PoolClients([RUN, CALLED], Directory(None).ask)
        await pools.start()
        found = addresses(pools, "called")
        await pools.stop()
        return found

    assert len(run(work())) == 2


def test_directory_is_left_alone_where_nothing_is_run():
    """
    A fleet of URLs needs no directory.
    """
    directory = Directory(AssertionError("asked"))

    async def work():
        pools = PoolClients([CALLED, DECIDED], directory.ask)
        await pools.start()
        await pools.stop()

    run(work())

    assert directory.asked == 0


def test_stopping_ends_the_looks_and_the_connections():
    directory = Directory((OLD, {}))

    async def work():
        pools = PoolClients([RUN], directory.ask)
        await pools.stop()  # before it was started
        pools = PoolClients([RUN], directory.ask)
        await pools.start()
        await pools.stop()
        return len(asyncio.all_tasks())

    assert run(work()) == 1  # the task that asks


def test_stopping_ends_the_looks_also_where_an_answer_comes_in_the_same_moment(monkeypatch):
    """
    Neither is lost: a look that went on for ever would keep its replica from ever ending.
    """
    monkeypatch.setattr(pool_clients, "ASK_S", 0.0)

    async def work():
        answer, asked, again = asyncio.get_running_loop().create_future(), [], asyncio.Event()

        async def ask():
            asked.append(True)
            if len(asked) == 2:
                again.set()
            if len(asked) > 2:
                raise asyncio.CancelledError  # the look that would go on for ever
            return OLD, await answer if len(asked) == 2 else {}

        pools = PoolClients([RUN], ask)
        await pools.start()
        await again.wait()
        answer.set_result({})
        await pools.stop()
        assert len(asked) == 2

    run(work())


def test_a_replica_has_the_name_that_ray_gave_it():
    """
    Who runs elsewhere is called by its address.
    """
    pools = clients(RUN)
    learn(pools, OLD, {"run": ["h:1"]})

    assert (pools.replica("h:1"), pools.replica("h:2")) == ("replica h:1", "h:2")


def test_what_a_start_takes_is_known_where_somebody_starts_one():
    """
    Ray starts as many replicas as are stated, and where pools are sized those of any that states
    its GPU. Servers of others nobody starts.
    """
    facts = dict.fromkeys(
        ("memory_bytes", "bandwidth_bytes_per_s", "bf16_flops", "fp8_flops", "power_w"), 1.0
    )
    gpu = GpuType(name="l4", usd_per_hour=0.4, startup_s=90.0, **facts)
    plans = [
        RUN,
        replace(ALSO, replicas=0),
        replace(ALSO, name="idle", replicas=0, gpu=gpu, load_s=30.0),
        CALLED,
    ]
    names = [plan.name for plan in plans] + ["none"]

    def starts(*, sized: bool) -> list[float | None]:
        clients = PoolClients(plans, Directory().ask, sized=sized)
        return [clients.start_s(name) for name in names]

    assert starts(sized=False) == [0.0, None, None, None, None]
    assert starts(sized=True) == [0.0, None, 120.0, None, None]
