"""A producer asks over gRPC what became of its outcomes."""

from __future__ import annotations

import json
import threading

import grpc
import pytest
from router_bench import PATIENCE_S, router

from fairlead import Client
from serve.deploy import tracer
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.feedback.report import as_text
from streams.feedback.ticket import split_ids
from streams.feedback.trace import trace
from streams.log.contract import FEEDBACK
from streams.log.memory_log import MemoryLog, Storage
from streams.training.state import load_seen


def traced(up, ticket: bytes) -> pb.FeedbackTrace:
    return up.stub.TraceFeedback(pb.TraceFeedbackRequest(ticket=ticket), timeout=PATIENCE_S)


def test_outcomes_wait_are_learned_or_refused_and_it_says_which(tmp_path):
    """
    Before a snapshot a record waits; after it, what it said is learned, and a record that was
    refused says why. A decision on which nobody reported has none.
    """
    with router(tmp_path) as up:
        one, other = up.route(), up.route()
        up.report(one, quality=0.25, cost_usd=0.5)
        waiting = traced(up, one.ticket)
        bad = json.dumps({"ticket": as_text(one.ticket), "quality": 7}).encode()
        huge = bad.replace(b"7}", b"1e999}")  # no number that anybody could read
        up.log.append(FEEDBACK, [(None, bad), (None, huge)])
        up.learn()
        newest = up.store.newest()
        learned, silent = traced(up, one.ticket), traced(up, other.ticket)

    assert [record.became for record in waiting.records] == ["waiting"]
    assert (waiting.snapshot_version, list(waiting.learned)) == (0, [])
    assert not waiting.HasField("quality")
    assert [record.became for record in learned.records] == ["read", "refused", "refused"]
    assert json.loads(learned.records[2].said_json) == {"quality": "1e999"}
    assert list(learned.learned) == ["quality", "cost_usd"]
    assert (learned.quality, learned.revision) == (0.25, 0)
    assert learned.snapshot_version == newest
    assert learned.decision_id == one.decision_id and learned.complete
    assert json.loads(learned.records[0].said_json) == {"quality": 0.25, "cost_usd": 0.5}
    assert learned.records[1].reason == "bad_field"
    assert (list(silent.records), list(silent.learned)) == ([], [])


def test_a_ticket_of_another_router_is_refused(tmp_path):
    """
    Who has no ticket of ours can't make the router read its log.
    """
    with router(tmp_path) as up, pytest.raises(grpc.RpcError) as refused:
        traced(up, b"forged" * 40)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_one_trace_is_looked_up_at_a_time(tmp_path, monkeypatch):
    """
    A second one meanwhile is told to come again, and decisions are made as ever.
    """
    begun, go_on = threading.Event(), threading.Event()
    slowly = tracer.trace

    def held(*arguments):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return slowly(*arguments)

    monkeypatch.setattr(tracer, "trace", held)
    with router(tmp_path) as up:
        decision = up.route()
        request = pb.TraceFeedbackRequest(ticket=decision.ticket)
        first = up.stub.TraceFeedback.future(request, timeout=PATIENCE_S)
        assert begun.wait(PATIENCE_S)
        with pytest.raises(grpc.RpcError) as refused:
            traced(up, decision.ticket)
        assert up.route().ticket
        go_on.set()
        assert first.result().decision_id == decision.decision_id

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_client_asks_alike(tmp_path):
    """
    `Client.trace_feedback` says what the service says.
    """
    with router(tmp_path) as up:
        client = Client(f"127.0.0.1:{up.replica.port}", timeout_s=PATIENCE_S)
        decision = up.route()
        up.report(decision, quality=1.0)
        up.learn()
        with client:
            found = client.trace_feedback(decision.ticket)

    assert (found.learned, found.quality, found.records[0].became) == (("quality",), 1.0, "read")


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_records_are_found_in_either_alphabet_and_the_newest_alone_if_asked(padding):
    """
    Also in tickets that others wrote with + and / instead of - and _. Of a log with more records
    than were looked at it says so.
    """
    decision_id = bytes([255, 254, 253, 251, 250, 239, 255, 0, 62, 63, 251, 255])
    ticket = bytes([5, 1]) + decision_id + bytes(300 + padding)
    texts = [as_text(ticket), as_text(ticket).replace("-", "+").replace("_", "/")]
    assert texts[0] != texts[1]
    log = MemoryLog(Storage(), lambda: 0)
    for text in texts:
        log.append(FEEDBACK, [(None, json.dumps({"ticket": text, "quality": 1}).encode())])

    whole, newest = trace(log, None, {}, decision_id), trace(log, None, {}, decision_id, 1)

    assert len(whole["records"]) == 2 and whole["complete"]
    assert newest["records"] == whole["records"][-1:]
    assert not newest["complete"]


def test_what_was_seen_is_read_of_one_issuer_alone(tmp_path):
    """
    Of a snapshot the parts that have the issuer say what the whole does.
    """
    with router(tmp_path) as up:
        decision = up.route()
        up.report(decision, quality=0.5, latency_ms=3.0)
        up.learn()
        issuers, sequences = split_ids([bytes.fromhex(decision.decision_id)])
        manifest = up.store.load(up.store.newest())
        seen = load_seen(up.store, manifest, int(issuers[0]))
        nobody = load_seen(up.store, manifest, int(issuers[0]) ^ 1)
        whole = up.trainer.state.seen

        assert seen.claimed(issuers, sequences) == whole.claimed(issuers, sequences) > 0
    assert len(nobody) == 0
