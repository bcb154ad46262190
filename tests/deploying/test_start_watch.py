"""A replica says of itself that it does not start."""

from __future__ import annotations

import asyncio

import pytest
from waiting import soon

from infra.errors import ServerFailed
from serve.deploy.start_watch import StartWatch
from streams.alarms import posted_alarms
from streams.training.folder import Folder

NOW_MS = 1_700_000_000_000


async def fails() -> None:
    raise ServerFailed("vllm", "it ended with exit code 1")


async def comes() -> None:
    pass


def alarms(folder: Folder, now_ms: int = NOW_MS) -> list[tuple[str, str]]:
    return [(alarm.name, alarm.cause) for alarm in posted_alarms(folder, now_ms)]


def test_a_server_that_does_not_start_is_an_alarm_until_one_does(tmp_path):
    """
    Ray starts another replica, in another process; while that one is starting the alarm stays on.
    """
    folder, seen = Folder(str(tmp_path)), []
    with pytest.raises(ServerFailed):
        asyncio.run(StartWatch(folder, "a.pool", lambda: NOW_MS).over(fails()))
    (found,) = alarms(folder)
    assert found[0] == "replicas_not_ready"
    assert found[1].startswith("a.pool: ") and "it ended with exit code 1" in found[1]
    other = NOW_MS + 50_000  # the first one's board is silent by now
    assert alarms(folder, other) == []
    with pytest.raises(ServerFailed):
        asyncio.run(StartWatch(folder, "a.pool", lambda: other).over(fails()))

    later = other + 50_000

    async def starts() -> None:
        await soon(lambda: alarms(folder, later), "the board to be written")
        seen.extend(alarms(folder, later))

    asyncio.run(StartWatch(folder, "a.pool", lambda: later).over(starts()))

    assert seen == [found]
    assert alarms(folder, later) == []


def test_a_start_that_goes_well_says_nothing(tmp_path):
    folder = Folder(str(tmp_path))

    asyncio.run(StartWatch(folder, "pool", lambda: NOW_MS).over(comes()))

    assert alarms(folder) == []
    assert folder.names("alarms") == []


def test_another_pool_is_not_taken_for_this_one(tmp_path):
    folder = Folder(str(tmp_path))
    with pytest.raises(ServerFailed):
        asyncio.run(StartWatch(folder, "one", lambda: NOW_MS).over(fails()))

    asyncio.run(StartWatch(folder, "other", lambda: NOW_MS).over(comes()))

    assert [name for name, _ in alarms(folder)] == ["replicas_not_ready"]
