"""Logs are JSON lines in the state folder, with the request's id, bounded, and readable by their owner alone."""

from __future__ import annotations

import json
import logging
import os
import stat

import grpc
import pytest
from router_bench import router

from infra import site_logs
from infra.site_logs import FOLDER, LogsOptions, make_room, open_logs


@pytest.fixture
def opened(tmp_path):
    closing = []

    def make(**options):
        closing.append(open_logs(tmp_path, "router", LogsOptions(**options)))
        return tmp_path / FOLDER

    yield make
    for close in closing:
        close()


def lines(folder):
    return [
        json.loads(one)
        for path in sorted(folder.glob("*.jsonl"))
        for one in path.read_text().splitlines()
    ]


def test_a_line_says_what_where_and_of_which_request(opened):
    folder = opened()
    logger = logging.getLogger("serve.somewhere")
    logger.error("it broke: %s", 7, extra={"request_id": "r-1", "reason": "INTERNAL_ERROR"})
    logger.error("a bug", exc_info=ValueError("ours"))

    first, second = lines(folder)
    assert (first["level"], first["role"], first["logger"], first["message"]) == (
        "error",
        "router",
        "serve.somewhere",
        "it broke: 7",
    )
    assert (first["request_id"], first["reason"], first["pid"]) == (
        "r-1",
        "INTERNAL_ERROR",
        os.getpid(),
    )
    assert "ValueError: ours" in second["trace"] and "request_id" not in second
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("level", "seen"), [("debug", ["d", "i", "w"]), ("warning", ["w"])])
def test_libraries_are_heard_from_warnings_on_whatever_the_level(opened, level, seen):
    """
    At debug, some log whatever they carry.
    """
    folder = opened(level=level)
    for name in ("streams.log", "kafka.conn"):
        logger = logging.getLogger(name)
        before, logger.propagate = logger.propagate, True
        logger.setLevel(logging.DEBUG if name == "kafka.conn" else logging.NOTSET)
        for say, text in ((logger.debug, "d"), (logger.info, "i"), (logger.warning, "w")):
            say(text)
        logger.setLevel(logging.NOTSET)
        logger.propagate = before

    found = lines(folder)
    assert [one["message"] for one in found if one["logger"] == "streams.log"] == seen
    assert [one["message"] for one in found if one["logger"] == "kafka.conn"] in (["w"], [])


def test_a_refused_request_is_logged_at_debug_by_its_id_without_its_prompt(opened, tmp_path):
    folder = opened(level="debug")
    with router(tmp_path / "site") as up, pytest.raises(grpc.RpcError):
        up.route(request_id="r-7", text="what nobody may see", cost_usd_max=-1.0)

    (one,) = [line for line in lines(folder) if line.get("request_id")]
    assert (one["request_id"], one["reason"], one["level"]) == ("r-7", "BAD_FIELD", "debug")
    assert "nobody may see" not in (folder / f"router-{os.getpid()}.jsonl").read_text()


def test_files_are_rotated_and_the_oldest_go(opened, monkeypatch):
    monkeypatch.setattr(site_logs, "FILE_BYTES_MAX", 2000)
    folder = opened(bytes_max=16 << 20)
    for i in range(200):
        logging.getLogger("infra").error("line %d of many", i)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3 * 2200
    assert lines(folder)[-1]["message"] == "line 199 of many"

    for age, name in enumerate(("new", "old", "older")):
        path = folder / f"{name}-1.jsonl"
        path.write_text("x" * 1000)
        os.utime(path, (1e9 - age, 1e9 - age))
    kept = sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.stat().st_mtime > 2e9 or "new" in path.name
    )
    make_room(folder, kept + 500)
    names = {path.name for path in folder.iterdir()}
    assert "old-1.jsonl" not in names and "older-1.jsonl" not in names
    assert f"router-{os.getpid()}.jsonl" in names


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_costs_lines_of_the_log_and_no_trace_on_the_terminal(opened, tmp_path, capsys):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / f"router-{os.getpid()}.jsonl").symlink_to("/dev/full")
    opened()
    logging.getLogger("infra").error("nobody can write this")
    assert "No space left" not in capsys.readouterr().err

    bug = logging.LogRecord("infra", logging.ERROR, "", 1, "%d is no number", ("of ours",), None)
    logging.getLogger().handlers[-1].handle(bug)
    assert "of ours" in capsys.readouterr().err
