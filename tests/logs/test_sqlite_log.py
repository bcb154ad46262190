"""What is particular to the log in one SQLite file."""

from __future__ import annotations

import subprocess
import sys

import pytest
from log_benches import (
    SqliteBench,
    read_topic,
)
from waiting import PATIENCE_S

from streams.errors import LogUnavailable
from streams.log.sqlite_log import ROWS_TOGETHER


def test_two_processes_append_to_one_file(tmp_path):
    """
    Every record gets its own offset, and each process's records keep their order.
    """
    bench = SqliteBench(tmp_path)
    program = """if True:
        import sys
        from pathlib import Path
        from streams.log.sqlite_log import SqliteLog
        log = SqliteLog(Path(sys.argv[1]), lambda: 0)
        for i in range(100):
            log.append("shared", [(sys.argv[2].encode(), b"%d" % i)])
    """
    command = [sys.executable, "-c", program, str(bench.path)]
    running = [subprocess.Popen([*command, name]) for name in ("one", "two")]

    assert [process.wait(PATIENCE_S) for process in running] == [0, 0]

    records = read_topic(bench.log(), "shared")
    assert [r.offset for r in records] == list(range(200))
    for name in (b"one", b"two"):
        assert [r.value for r in records if r.key == name] == [b"%d" % i for i in range(100)]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_while_in_use_takes_nothing_more(tmp_path, replaced):
    """
    What an open file without a name takes is gone with the process: outcomes would be acknowledged
    for days, and lost.
    """
    bench = SqliteBench(tmp_path)
    log = bench.log()
    log.append("t", [(None, b"kept")])
    reader = log.reader("t", {0: 0})
    elsewhere = bench.path.rename(bench.path.with_name("elsewhere"))
    if replaced:
        bench.log().append("t", [(None, b"of another life")])

    with pytest.raises(LogUnavailable, match="was removed while it was in use"):
        log.append("t", [(None, b"lost")])
    with pytest.raises(LogUnavailable, match="lies in its place" if replaced else "not there"):
        reader.read(10, 0.0)
    with pytest.raises(LogUnavailable, match="was removed while it was in use"):
        log.reader("t", {0: 0})
    assert bench.path.exists() == replaced

    elsewhere.rename(bench.path)
    if replaced:  # whoever put another file there removed what was written last, too
        with pytest.raises(LogUnavailable, match="was removed while it was in use"):
            log.append("t", [(None, b"lost")])
    else:
        log.append("t", [(None, b"kept, too")])
        assert [record.value for record in reader.read(10, 0.0)] == [b"kept", b"kept, too"]


def test_a_log_whose_last_records_were_removed_while_in_use_takes_nothing_more(tmp_path):
    bench = SqliteBench(tmp_path)
    log = bench.log()
    log.append("t", [(None, b"kept")])
    bench.path.with_name(f"{bench.path.name}-wal").unlink()

    with pytest.raises(LogUnavailable, match="-wal is not there any more"):
        log.append("t", [(None, b"lost")])

    log.close()  # in order, which keeps what is there
    assert [record.value for record in bench.log().reader("t", {0: 0}).read(10, 0.0)] == [b"kept"]


@pytest.mark.parametrize("n", [ROWS_TOGETHER - 1, ROWS_TOGETHER, 2 * ROWS_TOGETHER + 1])
def test_many_records_are_appended_in_order_however_many_statements_that_takes(tmp_path, n):
    log = SqliteBench(tmp_path).log()
    log.append("t", [(None, b"before")])

    log.append("t", [(b"k%d" % i, b"v%d" % i) for i in range(n)])

    first, *records = read_topic(log, "t")
    assert (first.key, first.value) == (None, b"before")
    assert [r.offset for r in records] == list(range(1, n + 1))
    assert [(r.key, r.value) for r in records] == [(b"k%d" % i, b"v%d" % i) for i in range(n)]
