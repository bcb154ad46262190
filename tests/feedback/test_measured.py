"""Of a call that a dispatcher made, others report the quality; what was measured stays measured."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from made_up import ENCODER, NOW_MS, SEALER, heads

from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.report import MEASURED, REPORTED, encode_report
from streams.feedback.seen import Seen
from streams.feedback.ticket import CANDIDATE, Issuer, Sealer, is_measured, key_of, split_ids
from streams.log.contract import Record

INGEST = Ingest(SEALER, key_of(ENCODER), FeedbackOptions())
FIGURES = {"cost_usd": 0.0115, "latency_ms": 900.0, "output_tokens": 40, "error": False}


def tickets(n: int, *, measured: bool) -> list[tuple[bytes, bytes]]:
    """Ids and tickets."""
    ids = Issuer(5).take(n)
    head = heads(n, np.random.default_rng(0))
    sealed = SEALER.seal(ids, head, np.zeros((n, 0), CANDIDATE), [b"t"] * n, [measured] * n)
    return list(zip(ids, sealed, strict=True))


def taken(*values: bytes):
    return INGEST.take([Record(0, i, NOW_MS, None, value) for i, value in enumerate(values)])


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("first", ["caller", "dispatcher"])
def test_who_asked_can_not_report_what_was_measured(name, first):
    """
    Whatever it says, and however early: the dispatcher's value is the one that counts, once.
    """
    ((decision_id, ticket),) = tickets(1, measured=True)
    theirs = encode_report(ticket, quality=0.5, **{name: 100 if name != "error" else True})
    measured = {**FIGURES, "paid_usd": 0.25}[name]
    ours = encode_report(ticket, proof=SEALER.proof(decision_id), **{name: measured})
    values = [theirs, ours] if first == "caller" else [ours, theirs]

    found = taken(*values)
    fresh = Seen().claim(*split_ids([decision_id] * 2), found.bits, np.full(2, NOW_MS))

    bits = fresh if first == "caller" else fresh[::-1]
    assert bits.tolist() == [1 << REPORTED.index("quality"), 1 << REPORTED.index(name)]
    assert not found.dead


def test_a_report_of_measured_values_alone_is_a_repetition():
    """
    As it was before, when the dispatcher's came first: no error, and nothing counted.
    """
    ((_, ticket),) = tickets(1, measured=True)
    found = taken(encode_report(ticket, cost_usd=100.0))
    assert found.bits.tolist() == [0]
    assert not found.dead
    assert not found.spent_nano_usd.any()


@pytest.mark.parametrize(
    "proof",
    [
        b"",
        b"x" * 16,
        Sealer([bytes(32)]).proof(Issuer(5).take(1)[0]),
        SEALER.proof(b"another id!!"),
    ],
)
def test_a_proof_of_another_key_or_decision_is_none(proof):
    ((_, ticket),) = tickets(1, measured=True)
    assert taken(encode_report(ticket, proof=proof, cost_usd=100.0)).bits.tolist() == [0]


def test_a_proof_holds_under_an_older_key():
    """
    Keys are rotated while reports are on their way.
    """
    rotated = Sealer([bytes(32), bytes(range(32))])
    decision_id = Issuer(5).take(1)[0]
    assert rotated.proves(decision_id, SEALER.proof(decision_id))


def test_who_calls_by_himself_reports_all():
    """
    A ticket of `Route` is as it was.
    """
    ((_, ticket),) = tickets(1, measured=False)
    assert not is_measured(ticket)
    found = taken(encode_report(ticket, quality=1.0, **FIGURES))
    assert found.bits.tolist() == [0b011111]


def test_a_proof_that_is_no_base64_is_refused():
    ((_, ticket),) = tickets(1, measured=True)
    text = base64.urlsafe_b64encode(ticket).decode()
    (letter,) = taken(f'{{"ticket": "{text}", "cost_usd": 1.0, "proof": "%"}}'.encode()).dead
    assert letter.reason == "bad_ticket"
