"""What an earlier release has written is read: its snapshots, tickets and log.

`tests/data/before` was written by the release of October 2026: a SQLite log with decisions,
telemetry and feedback (a quarter of its tickets of version 1), and a snapshot that has learned
the first half of the feedback. `expected.json` says what that release read in them, and what it
came to when it had learned the rest.
"""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_up import ENCODER, MEMORY, MODELS, NOW_MS, SEALER

from learners.estimates import ema
from streams.feedback import decisions
from streams.feedback.ticket import key_of
from streams.log.contract import DECISIONS
from streams.log.sqlite_log import SqliteLog
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, State
from streams.training.trainer import Trainer, TrainerOptions

BEFORE = Path(__file__).parents[1] / "data" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
OPTIONS = TrainerOptions(memory=MEMORY, records_max=16, wait_s=0.0)


@pytest.fixture
def before(tmp_path):
    with tarfile.open(BEFORE / "state.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def store_of(folder: Path) -> Store:
    return Store(Folder(str(folder / "snapshots")))


def assert_is(state: State, expected: dict) -> None:
    means = ema.read(state.learned.models, [key_of(m) for m in MODELS], NOW_MS)
    quality = np.array(expected["means"])[:, 0]  # cost and latency are on another scale since
    assert means.means[:, 0] == pytest.approx(quality)
    assert means.weights[:, 0] == pytest.approx(np.array(expected["weights"])[:, 0])
    assert state.learned.n_values.tolist() == expected["n_values"]
    assert len(state.seen) == expected["seen"]
    assert {name: state.counts[name] for name in expected["counts"]} == expected["counts"]
    for name in ("offsets", "audit_offsets", "telemetry_offsets"):
        assert {str(p): o for p, o in getattr(state, name).items()} == expected[name]


def test_a_snapshot_of_before_is_read(before):
    """Statistics, what was seen, offsets and counts are those it was saved with."""
    state, _ = Loader(store_of(before), ENCODER, MEMORY).load_newest()
    assert_is(state, EXPECTED["saved"])


def test_learning_goes_on_where_a_trainer_of_before_stopped(before):
    """The rest of its log is learned to what that release came to, each record once."""
    log = SqliteLog(before / "log.sqlite", lambda: NOW_MS + 4_000_000)
    trainer = Trainer(log, store_of(before), SEALER, ENCODER, OPTIONS, lambda: NOW_MS + 4_000_000)
    try:
        while trainer.step():
            pass
        assert_is(trainer.state, EXPECTED["finished"])
    finally:
        trainer.close()
        log.close()


def test_decisions_of_before_are_read(before):
    """A logged batch is a table of all its decisions."""
    log = SqliteLog(before / "log.sqlite", lambda: NOW_MS)
    reader = log.reader(DECISIONS, {0: 0})
    try:
        (record,) = reader.read(10, 0.0)
        assert decisions.decode(record.value).num_rows == 48
    finally:
        reader.close()
        log.close()


@pytest.mark.parametrize("i", range(len(EXPECTED["tickets"])))
def test_tickets_of_before_open(i):
    """Of either version, to what was sealed into them."""
    ticket = SEALER.open(base64.b64decode(EXPECTED["tickets"][i]))
    expected = EXPECTED["opened"][i]
    assert ticket.decision_id.hex() == expected["decision_id"]
    assert ticket.tenant == expected["tenant"]
    assert ticket.head["preference"].tolist() == expected["preference"]
    for name in ("decided_at_ms", "model"):
        assert int(ticket.head[name]) == expected[name]
