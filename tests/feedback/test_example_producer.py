"""The example producer passes on what it can't key: one malformed line costs no other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from made_up import decided, report

PRODUCER = Path(__file__).parents[2] / "examples" / "feedback" / "producer.py"


@pytest.fixture(scope="module")
def producer():
    spec = importlib.util.spec_from_file_location("example_producer", PRODUCER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_record_is_keyed_by_its_decision(producer):
    (decision,) = decided(1)
    value = report(decision.ticket, quality=0.5)
    assert producer.key_of(value) == decision.decision_id.hex().encode()
    assert producer.key_of(value.replace(b"=", b"")) == decision.decision_id.hex().encode()


@pytest.mark.parametrize(
    "record",
    [b"{", b"[]", b"7", b"{}", b'{"ticket": 7}', b'{"ticket": "?"}', b'{"ticket": "A"}', b"\xff"],
)
def test_a_record_without_a_ticket_has_no_key_and_is_said(producer, record, capsys):
    key = producer.key_of(record)
    assert key in (None, b"")
    assert key == b"" or "no ticket" in capsys.readouterr().err
