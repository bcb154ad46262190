"""The bench of real pools: what its stand-ins do, and what it counts."""

from __future__ import annotations

import asyncio
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from infra.autoscaling.live.replicas import ReplicaCount
from infra.emulator.performance import Performance
from infra.pools.ports import free_ports
from learners.servers.speed import Speed
from load.bench.pools.bench import by_figure, overloaded
from load.bench.pools.callers import Asked, Callers
from load.bench.pools.carried import carried
from load.bench.pools.scenario import SLOTS, TRUE_PER_S, PoolsBench
from load.bench.pools.server import StandIn
from load.bench.pools.vllm.apart import apart
from load.bench.pools.vllm.compared import Compared, Visits, laid_beside, simulated_ms, visits
from load.bench.pools.vllm.cores import kept_free
from load.bench.pools.vllm.install import requirements
from load.bench.pools.vllm.scenario import LARGE, SMALL, VllmBench, settings_text
from load.bench.pools.vllm.watching import Seen, changes, measured_per_s
from load.data.traces import Trace
from load.planning.site import LearnedServers
from load.replay.measured import Each

OPTIONS = PoolsBench(kinds=("vllm",), overload_per_s=10.0, settled_s=30.0, overload_s=50.0)
GREW = [ReplicaCount(0.0, {"vllm": 1}), ReplicaCount(40.0, {"vllm": 2})]


def asked(at_s, took_s, outcome):
    return Asked(at_s=at_s, ended_s=at_s + took_s, outcome=outcome)


SPAN = {"since_s": 30.0, "until_s": 50.0}
EVEN = [n / 10.0 for n in range(500)]  # ten a second


def could(asked_s, ready=((0.0, 1),), first_token_s=2.0):
    return carried(asked_s, ready, **SPAN, first_token_s=first_token_s)


def test_a_fleet_could_answer_what_its_slots_take():
    """
    Of ten a second four by one server, eight by two: but for the second until its eight slots are taken.
    """
    one, two = could(EVEN), could(EVEN, [(0.0, 1), (40.0, 2)])

    assert one == pytest.approx(20 * TRUE_PER_S)
    assert 10 * TRUE_PER_S + 10 * 2 * TRUE_PER_S - SLOTS / 2 < two < 30 * TRUE_PER_S
    assert could(EVEN, []) == 0.0


def test_what_is_not_asked_no_fleet_answers():
    """
    A gap of two seconds is bridged by those who wait: one second's work where a first token may take two.
    """
    gap = [at_s for at_s in EVEN if not 40.0 <= at_s < 42.0]

    assert 20 * TRUE_PER_S - TRUE_PER_S <= could(gap) < 20 * TRUE_PER_S - 1.0
    assert could(gap, first_token_s=4.0) == pytest.approx(20 * TRUE_PER_S)
    assert could([at_s for at_s in EVEN if at_s < 25.0]) == 0.0


def test_an_overload_is_judged_by_what_was_answered_and_who_waited_once_it_was_settled():
    found = overloaded(
        [
            asked(10.0, 20.0, "timed_out"),  # before
            asked(27.0, 3.0, "answered"),  # before
            asked(20.0, 10.5, "answered"),  # a quarter of its work within
            *(asked(31.0, 2.0, "answered") for _ in range(59)),
            asked(49.0, 2.0, "answered"),  # half of it
            asked(35.0, 0.004, "refused"),
            asked(36.0, 20.0, "timed_out"),
        ],
        GREW,
        "vllm",
        OPTIONS,
        first_token_s=2.0,
    )

    assert found["busy_share"] == round(59.75 / (30 * TRUE_PER_S), 4)
    assert found["answered_share"] == round(59.75 / found["could"], 4)
    assert (found["timed_out"], found["refused"], found["refused_ms_p99"]) == (1, 1, 4.0)


def test_figures_are_by_name_and_then_by_kind():
    assert by_figure({"a": {"x": 1, "y": 2}, "b": {"x": 3}}) == {
        "x": {"a": 1, "b": 3},
        "y": {"a": 2, "b": None},
    }


def test_a_stand_in_takes_so_many_at_once_and_the_rest_waits():
    """
    Two slots, six requests: three rounds. Its page says how many run and wait meanwhile.
    """
    all_here = asyncio.Event()

    class Patient(StandIn):
        """Says nothing before all have come."""

        async def _words(self, *given: Any) -> None:
            await all_here.wait()
            await super()._words(*given)

    async def work():
        (port,) = free_ports(1)
        async with (
            Patient("vllm", 2, 0.1, "127.0.0.1", port) as server,
            aiohttp.ClientSession() as session,
        ):
            callers = Callers(
                f"http://127.0.0.1:{port}/v1", session, patience_s=20.0, began_s=time.monotonic()
            )
            asking = [
                asyncio.create_task(callers._one(["m"], n, "critical", found.append))
                for n in range(6)
            ]
            while not server.doing.finished:
                most.append((server.doing.running, server.doing.waiting))
                if sum(most[-1]) == 6:
                    all_here.set()
                await asyncio.sleep(0)
            await asyncio.gather(*asking)
            return server.doing

    found, most = [], []
    doing = asyncio.run(work())

    assert [one.outcome for one in found] == ["answered"] * 6
    assert max(found, key=lambda one: one.ended_s).ended_s >= 0.3
    assert max(most) == (2, 4)
    assert (doing.running, doing.waiting, doing.finished) == (0, 0, 6)


def test_whoever_waits_for_a_bench_is_told_how_far_it_is():
    """
    All requests and what came of them, as long as it lasts and no longer.
    """

    async def work():
        (port,) = free_ports(1)
        async with (
            StandIn("vllm", 2, 0.1, "127.0.0.1", port),
            aiohttp.ClientSession() as session,
        ):
            url = f"http://127.0.0.1:{port}/v1"
            callers = Callers(url, session, patience_s=20.0, began_s=time.monotonic())
            async with callers.said(say, every_s=0.01):
                rng = np.random.default_rng(0)
                found.extend(await callers.ask(["m"], rng, per_s=100.0, seconds=0.05))
                again.clear()
                await asyncio.wait_for(again.wait(), 20.0)
            return {task.get_coro().__name__ for task in asyncio.all_tasks()}

    lines, found, again = [], [], asyncio.Event()

    def say(line: str) -> None:
        lines.append(line)
        again.set()

    left = asyncio.run(work())

    assert lines[-1].endswith(f"{len(found)} asked, {len(found)} answered")
    assert "again_and_again" not in left


def test_nothing_asked_has_no_share():
    assert overloaded([], [], "vllm", OPTIONS, 2.0)["answered_share"] is None


# --- a real vLLM: what is measured of its engines, without one --------------------------------------


def look(at_s: float, running: float, finished: float, address: str = "a") -> Seen:
    return Seen(at_s=at_s, address=address, running=running, waiting=0.0, finished=finished)


def test_an_engine_is_measured_while_all_its_slots_are_taken():
    """
    Not while it has room, not over a restart, and not over looks that did not come.
    """
    seen = [
        look(0.0, 1, 0), look(1.0, 2, 1), look(2.0, 2, 4), look(3.0, 2, 6),  # 5 in two seconds
        look(4.0, 2, 0), look(5.0, 1, 9), look(20.0, 2, 10), look(40.0, 2, 90),
        look(2.5, 2, 10, "b"), look(3.5, 2, 11, "b"),  # 1 in one second
    ]  # fmt: skip

    assert measured_per_s(seen, slots=2) == pytest.approx(6 / 3)
    assert measured_per_s(seen[:2], slots=2) is None


def test_engines_over_time_are_their_changes():
    ready = [(0.0, {"p": 1}), (1.0, {"p": 1}), (2.0, {}), (3.0, {"p": 2})]

    assert changes(ready, "p") == [[0.0, 1], [2.0, 0], [3.0, 2]]


def test_what_vllm_requires_is_read_without_torch_and_extras(tmp_path):
    """
    It asks for a torch that PyPI does not have.
    """
    wheel = tmp_path / "w.whl"
    said = (
        "torch==2.13.0+cpu",
        "torchvision; sys_platform != 'x'",
        "numpy>=2",
        'ray; extra == "ray"',
    )
    with zipfile.ZipFile(wheel, "w") as file:
        text = "Name: w\n" + "".join(f"Requires-Dist: {one}\n" for one in said)
        file.writestr("w-1.dist-info/METADATA", text)

    assert requirements(wheel) == ["numpy>=2"]


def of_engine(tmp_path) -> Path:
    engine = VllmBench(python=Path("python"), model=Path("tiny"), answer_tokens=0)
    path = tmp_path / "fairlead.toml"
    path.write_text(settings_text(tmp_path, engine, pools=(LARGE,)))
    return path


def learned_as(first_s, first_s_per_prompt_token=0.0, **of) -> LearnedServers:
    speed = Speed(first_s=first_s, first_s_per_prompt_token=first_s_per_prompt_token, token_s=0.01,
                  token_s_per_held=0.0, held=1.0, answers=100)  # fmt: skip
    return LearnedServers(performance=Performance.of_speed(speed, 4), **of)


def played(at_s, took_s) -> Visits:
    """Requests that all count, and of each that was answered seconds in the pool, and to the caller."""
    n, none = len(at_s), np.zeros(len(at_s), np.int64)
    each = {
        number: Each("", {"pool": of[0], "ttft": of[1], "latency": of[1] + 0.49})
        if of
        else Each("REFUSED", {})
        for number, of in enumerate(took_s)
    }
    trace = Trace("some", np.array(at_s), np.full(n, 250), np.full(n, 50))
    return Visits(trace=trace, load=np.full(n, 0.5), visit=none, block=none, each=each)


def test_what_is_simulated_as_learned_is_laid_beside_what_was_live(tmp_path):
    """
    Prompts are as long as the engine counts them: four bytes of a caller's token are four of its.
    """
    path, at = of_engine(tmp_path), np.arange(10)
    first_s = 0.5 + 1e-3 * (4 * 250 + len("user: \nassistant: "))
    live = played(5.0 * at, [(first_s / 2.0, first_s)] * 9 + [None])

    was = simulated_ms(live, path, learned_as(0.5, 1e-3))
    found = laid_beside(live, at, was, np.array([200.0 * first_s, np.nan]))
    alone = laid_beside(live, at, was, np.array([]))
    none = laid_beside(played(5.0 * at, [None] * 10), at, was, np.array([]))

    assert found["pool_p50"] == pytest.approx(1.0, abs=0.004)  # twice as long as it really took
    assert found["ttft_p50"] == pytest.approx(0.2, abs=0.002)  # callers' part is added
    assert alone["ttft_p50"] == pytest.approx(0.0, abs=0.002)
    assert found["pool_p50_visits_ms"]["live"] == [pytest.approx(500.0 * first_s, abs=0.1)]
    assert found["token_visits_ms"] == {
        "live": [pytest.approx(10.0)],
        "simulated": [pytest.approx(10.0)],
    }
    assert found["refused"] == {"live": 0.1, "simulated": 0.0}
    assert none["token_visits_ms"]["live"] == [None]
    assert none["pool_p99"] is None and none["pool_p99_visits_ms"]["live"] == [None]
    assert "max_tokens" not in path.read_text() and SMALL not in path.read_text()


def test_what_dispatchers_would_refuse_is_refused_where_it_is_simulated(tmp_path):
    """
    Twenty at once to a server that is given six.
    """
    live = played(np.linspace(0.0, 0.1, 20), [(0.1, 0.2)] * 6 + [None] * 14)

    was = simulated_ms(live, of_engine(tmp_path), learned_as(0.5, held_max=(6, 6, 6, 0)))
    found = laid_beside(live, np.arange(20), was, np.array([]))

    assert found["refused"] == {"live": 0.7, "simulated": 0.7}


def test_how_far_figures_are_apart_by_chance_is_seen_by_blocks_of_time():
    """
    Where half of the blocks are ten times as slow a median is any of both, live and simulated:
    what one of them has with the other is no difference, what it has alone is one.
    """
    rng, block = np.random.default_rng(0), np.repeat(np.arange(20), 50)
    slow = np.where(block % 2, 10.0, 1.0)
    live = slow * rng.uniform(0.9, 1.1, 1000)
    same, double = (by * slow * rng.uniform(0.9, 1.1, (8, 1000)) for by in (1.0, 2.0))

    chance, real = apart("pool", live, same, block), apart("pool", live, double, block)

    low, high = chance["pool_p50_ms"]["live_95"]
    assert low < 1.2 and high > 8.0
    assert chance["pool_p50_95"][0] < 0.0 < chance["pool_p50_95"][1]
    assert chance["pool_p99"] == pytest.approx(0.0, abs=0.02)
    assert real["pool_p99_95"][0] > 0.9


def test_loads_are_visited_in_turns():
    """
    What counts at a load is not of the first seconds of a visit, and no block is of two visits.
    """
    options = Compared(warm_up_s=10.0)
    found = visits(options, 1, 20.0, (0.5, 0.8, 0.5), seconds=40.0)
    half, most = found.counted(0.5), found.counted(0.8)

    assert np.all(np.diff(found.trace.at_s) >= 0.0) and found.trace.at_s[-1] < 120.0
    assert len(half) / 60.0 == pytest.approx(10.0, rel=0.2)
    assert len(most) / 30.0 == pytest.approx(16.0, rel=0.2)
    assert np.all(found.trace.at_s[half] % 40.0 >= 10.0)
    assert set(found.visit[half]) == {0, 2} and set(found.visit[most]) == {1}
    assert len(np.unique(found.block[half])) == 4 and len(np.unique(found.block[most])) == 2
    assert not set(found.block[half]) & set(found.block[most])


def test_an_engine_has_a_core_of_its_own_and_all_else_the_others(tmp_path):
    """
    As it is started, and as long as it is measured.
    """
    engine, cores = VllmBench(python=Path("python"), model=Path("tiny")), os.sched_getaffinity(0)
    with kept_free() as core:
        if core is not None:
            assert os.sched_getaffinity(0) == cores - {core} != cores
    assert os.sched_getaffinity(0) == cores

    alone, shared = (settings_text(tmp_path, engine, pools=(LARGE,), core=at) for at in (1, None))
    assert 'command = ["taskset", "--cpu-list", "1", "/usr/bin/env"' in alone
    assert 'command = ["/usr/bin/env"' in shared
