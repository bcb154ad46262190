"""The lean client of `bench speed` tells answers, refusals and broken calls apart."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from router_bench import Router, embedding, router

from load.bench.speed import stages
from load.bench.speed.open_loop import EACH_PER_S_MAX, Seen, Stream, drive, poisson
from load.bench.speed.overload import overloaded
from load.bench.speed.serving import Serving, Stated, served
from load.bench.speed.wire import Ask, Ended, connected
from serve.proto.fairlead.v1 import router_pb2 as pb

ROUTE = "/fairlead.v1.Router/Route"


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Router]:
    with router(tmp_path_factory.mktemp("speed")) as made:
        yield made


def ask(**said) -> Ask:
    request = pb.RouteRequest(**{"embedding_f32": embedding()} | said)
    return Ask.of(ROUTE, request.SerializeToString(), deadline_ms=20_000)


def sent(port: int, *asks: Ask, n_connections: int = 1) -> list[Ended]:
    """What came of calls, in order."""

    async def scene() -> list[Ended]:
        came: dict[object, Ended] = {}
        all_came = asyncio.Event()

        def ended(known_as: object, result: Ended) -> None:
            came[known_as] = result
            if len(came) == len(asks):
                all_came.set()

        connections = await connected(port, n_connections, ended)
        for number, one in enumerate(asks):
            connections[number % n_connections].call(one, number)
        for connection in connections:
            connection.flush()
        await asyncio.wait_for(all_came.wait(), 20.0)
        for connection in connections:
            connection.close()
        return [came[number] for number in range(len(asks))]

    return asyncio.run(scene())


def test_answers_and_refusals_are_told_apart_on_one_connection(up):
    results = sent(up.replica.port, ask(), ask(embedding_f32=b"abc"), ask(allowed_models=["no"]))

    assert [(r.answered, r.status) for r in results] == [
        (True, 0),
        (False, grpc.StatusCode.INVALID_ARGUMENT.value[0]),
        (False, grpc.StatusCode.NOT_FOUND.value[0]),
    ]


def test_more_is_sent_than_the_windows_of_flow_control_hold(up):
    """
    A megabyte through a window of 64 KiB: calls wait for the server's updates, none is lost.
    """
    results = sent(up.replica.port, *[ask(text="x" * 10_000, embedding_f32=b"")] * 100)
    answers = sent(up.replica.port, *[ask()] * 300, n_connections=3)

    assert len(results) == 100
    assert all(one.answered for one in answers)


def test_a_refusal_for_want_of_room_shows_when_to_try_again(up):
    admission = up.replica.servicer._admission
    limit, admission.limit = admission.limit, 0.0
    admission._under_way["other"] = 1
    try:
        (result,) = sent(up.replica.port, ask(tenant=""))
    finally:
        del admission._under_way["other"]
        admission.limit = limit

    assert result == Ended(False, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], True)


def test_every_call_of_an_open_loop_is_accounted_for(up):
    streams = [Stream(name=name, ask=ask(), per_s=100.0) for name in ("a", "b")]

    seen = asyncio.run(drive(up.replica.port, streams, 0.5, np.random.default_rng(0)))

    for one in seen.values():
        assert one.sent > 20
        assert len(one.answered_s) + len(one.refused_s) + one.lost == one.sent
        assert len(one.answered_s) == one.in_time
    assert all(took_s > 0 for one in seen.values() for took_s in one.answered_s)


def test_an_open_loop_in_which_no_call_is_due_ends(up):
    streams = [Stream(name="", ask=ask(), per_s=0.0)]

    seen = asyncio.run(drive(up.replica.port, streams, 0.5, np.random.default_rng(0)))

    assert seen[""].sent == 0


@pytest.mark.parametrize(("per_s", "woken_by"), [(1_000.0, 1), (2 * EACH_PER_S_MAX, 0)])
def test_a_thread_wakes_the_loop_for_each_call_and_at_high_rates_none_does(
    up, monkeypatch, per_s, woken_by
):
    """
    Where calls are many the thread would wait for the interpreter's lock, and send bursts.
    """
    made: list[Callable[..., object]] = []

    class Noted(threading.Thread):
        def __init__(self, target: Callable[..., object], **kwargs: Any) -> None:
            super().__init__(target=target, **kwargs)
            made.append(target)

    monkeypatch.setattr("load.bench.speed.open_loop.threading", SimpleNamespace(Thread=Noted))
    streams = [Stream(name="", ask=ask(), per_s=per_s)]
    seen = asyncio.run(drive(up.replica.port, streams, 0.05, np.random.default_rng(0)))

    assert len(made) == woken_by
    assert seen[""].sent > per_s * 0.05 / 2


def test_arrivals_are_as_many_as_the_rate_says():
    due_s = poisson(np.random.default_rng(1), per_s=1000.0, seconds=10.0)

    assert len(due_s) == pytest.approx(10_000, rel=0.05)
    assert (np.diff(due_s) >= 0).all()


def test_what_is_never_answered_is_lost():
    seen = Seen(sent=3)
    seen.note(Ended(True, 0, False), took_s=0.1, deadline_s=0.5)
    seen.note(Ended(False, 8, True), took_s=0.01, deadline_s=0.5)

    assert (seen.lost, seen.in_time, seen.pushed_back) == (1, 1, 1)


def test_the_catalogue_takes_turns_only_where_it_is_asked_to():
    assert Stated(8).read() == Stated(8).read()
    first, second = Stated(8, 1.0)._catalogues
    assert first != second


def test_overload_of_an_empty_handler_has_every_figure_and_the_top_class_a_port_of_its_own(
    monkeypatch,
):
    """
    Nobody answers at the reserved port here, so all that was sent there is lost.
    """
    monkeypatch.setattr("load.bench.speed.overload.DEADLINE_MS", 60_000)  # nobody is late
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, served(Serving(kind="empty")) as up:
        empty = replace(up, reserved_port=silent.getsockname()[1])
        before_s = empty.cpu_s()
        found = asyncio.run(
            overloaded(
                empty,
                np.random.default_rng(0),
                peak_per_s=100.0,
                factor=2.0,
                seconds=0.3,
            )
        )

        assert found.keys() == {
            "goodput_share",
            "reject_p99_ms",
            "critical_lost",
            "critical_lost_reserved",
            "untold_share",
            "cores",
            "loop_us_per_answer",
        }
        assert found["cores"].keys() == {"client", "loop", "transport", "waits"}
        assert all(0.0 < cores < 2.0 for cores in found["cores"].values())
        assert found["goodput_share"] > 0.0
        assert found["critical_lost_reserved"] == 1.0
        assert empty.cpu_s() > before_s


def test_every_stage_of_a_decision_is_timed_and_explained():
    """
    The budget in docs/speed.md is what this prints; it names the same stages. (How long they take
    is for the benchmark to say: here others have the processors, too.)
    """
    found = stages.measure(np.random.default_rng(0), times=8)

    assert "decide" in found
    for stage, took in found.items():
        assert {*took} == {"one_us", "batch64_us"}, stage
        assert min(took.values()) > 0.0, stage
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    assert {*found} <= {*re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)}
