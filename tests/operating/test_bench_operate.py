"""The bench of operating: what it sends, what it would find, and one run against a real dispatcher."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from waiting import PATIENCE_S

from load.bench.operate.canaries import forms, in_file
from load.bench.operate.fuzzing import fuzz as fuzzing
from load.bench.operate.fuzzing.fuzz import Fuzzed, fuzz
from load.bench.operate.fuzzing.mutations import spoiled, spoiled_json
from load.bench.operate.fuzzing.seeds import CHAT, messages
from load.bench.operate.fuzzing.target import ENDED, TRACE, Target, target
from load.bench.operate.intrusion.weak_tls import mutual, without_certificate
from load.bench.speed.wire import SETTINGS, frame

CANARY = "canary0123456789abcdef"


def test_mutants_are_the_same_for_the_same_seed_and_rarely_sound():
    sound = [message for _, message in messages()]
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    made = [spoiled(sound[i % len(sound)], rng) for i in range(300)]

    assert made == [spoiled(sound[i % len(sound)], again) for i in range(300)]
    assert sum(one in sound for one in made) < 15
    bodies = [spoiled_json(CHAT, rng) for _ in range(300)]
    assert len(set(bodies)) > 150
    assert sum(body == json.dumps(CHAT).encode() for body in bodies) < 15


@pytest.mark.parametrize(
    "written",
    [
        f"prompt: {CANARY}!".encode(),
        f"prompt: {CANARY}!".encode("utf-16-le"),
        f"prompt: {CANARY}!".encode().hex().encode(),
        *(base64.b64encode(b"x" * shift + CANARY.encode() + b"yz") for shift in range(3)),
    ],
)
def test_a_canary_is_found_however_it_is_written(tmp_path, written):
    """
    Also where the file is read in pieces, and it lies across two of them.
    """
    path = tmp_path / "file"
    path.write_bytes(b"." * ((8 << 20) - 9) + written + b".")
    assert in_file(path, forms(CANARY))
    path.write_bytes(b"." * (8 << 20) + CANARY[:-1].encode())
    assert not in_file(path, forms(CANARY))


def test_traces_are_told_from_those_of_a_restart(tmp_path):
    said = tmp_path / "said"
    said.write_text(
        f"ERROR:x\n{TRACE}:\n  File a\n{ENDED}\nUnicodeDecodeError: b\n"
        f"ERROR:y\n{TRACE}:\n  File c\nValueError: ours\nlater\n"
    )
    found = Target(0, 0, None, said)
    assert found.traces() == ["ValueError: ours"]
    assert found.restarts() == 1


def test_a_dispatcher_survives_spoiled_messages(tmp_path, monkeypatch):
    for limit in ("ANSWER_S_MAX", "RESTART_S_MAX"):
        monkeypatch.setattr(fuzzing, limit, PATIENCE_S)
    with target(tmp_path) as on:
        found = asyncio.run(fuzz(on, 1500, np.random.default_rng(5), lambda _: None))
        assert on.alive

    assert found["crashes"] == 0, found["fuzz"]
    assert found["fuzzed"] > 1500
    assert found["rss_growth_mb"] < 60
    assert found["fuzz"]["statuses"]["refused 3"] > 300


def test_a_process_that_ends_is_a_crash(tmp_path):
    """
    What is counted would be noticed.
    """
    with target(tmp_path) as on:
        on.process.kill()
        on.process.wait()
        found = asyncio.run(fuzz(on, 1000, np.random.default_rng(5), lambda _: None))
    assert found["crashes"] >= 1


def batch_at(taken) -> Fuzzed:
    """What a batch finds at a server that does `taken` with each connection."""
    found = Fuzzed()

    async def scene() -> None:
        async with await asyncio.start_server(taken, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            asked = [("/fairlead.v1.Router/Route", b"")] * 8
            await fuzzing._batch(Running(port), asked, found)

    asyncio.run(scene())
    return found


class Running:
    """A target that is up, of whatever server."""

    alive = True

    def __init__(self, grpc_port: int) -> None:
        self.grpc_port = grpc_port


def test_calls_that_are_never_answered_are_a_crash_also_beside_a_restart(monkeypatch):
    """
    A connection that a server took and let hang has no excuse, whatever befell that server.
    """

    async def hang(_reader, writer) -> None:
        writer.write(frame(SETTINGS, 0, 0, b""))

    monkeypatch.setattr(fuzzing, "ANSWER_S_MAX", 0.3)
    found = batch_at(hang)
    assert found.crashes == 1
    assert found.examples[0].startswith("8 calls without an answer")


def test_calls_on_connections_that_ended_before_them_end_too():
    """
    A server that ends closes what its port had taken: nobody waits for these, and they are counted.
    """

    async def close(_reader, writer) -> None:
        writer.close()

    found = batch_at(close)
    assert (found.crashes, found.cut) == (0, 1)
    assert found.statuses == {"refused": 8}


@pytest.mark.parametrize(("restarts", "crashes"), [(0, 1), (1, 1), (2, 0)])
def test_connections_that_end_without_a_restart_are_a_crash(restarts, crashes):
    """
    A restart cuts the batch under way and, at most, one that the old server's port still took.
    """
    found = Fuzzed(cut=4)
    found.check_cuts(restarts)
    assert found.crashes == crashes


def test_mutual_tls_lets_in_whoever_shows_our_certificate_and_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("load.bench.operate.intrusion.door.TIMEOUT_S", PATIENCE_S)

    async def tried() -> dict[str, tuple[bool, bool]]:
        async with mutual(tmp_path) as to:
            return {
                one.name: ((await one.tried()).ok, right) for one, right in without_certificate(to)
            }

    found = asyncio.run(tried())
    assert len(found) == 12
    assert [name for name, (got_in, right) in found.items() if got_in != right] == []
