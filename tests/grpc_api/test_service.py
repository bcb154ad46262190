"""The service over real gRPC: what each call promises, the loop it closes, and how it stops."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
import router_bench
from certificates import self_signed
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from router_bench import (
    MODELS,
    NOON_MS,
    PATIENCE_S,
    Router,
    catalogue,
    embedding,
    router,
)
from typer.testing import CliRunner
from waiting import until

from fairlead.command_line import app
from fairlead.errors import FairleadError, Unavailable
from infra.pools.ports import free_ports
from learners.context import BIAS, N_FEATURES, STEP
from learners.policies.greedy import Greedy
from learners.policies.inverse_gap import SquareCb
from serve.encoders import EncoderOptions
from serve.encoders.hashing import Hashing
from serve.encoders.projections import projection_for
from serve.errors import EncoderUnavailable
from serve.grpc_api.asking.batcher import BatcherOptions
from serve.grpc_api.listener import ROUTER as SERVICE
from serve.grpc_api.listener import Listener, ListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.catalogue import Model, Pool
from serve.routing.eligible import Verdict
from streams.errors import LogUnavailable
from streams.feedback import decisions
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import DECISIONS, FEEDBACK
from streams.log.sqlite_log import SqliteLog

HASHING = EncoderOptions(kind="hashing", dim=64)
# A stopping `grpc.aio` server answers CANCELLED to calls it had not begun, see `fairlead.channels`.
TURNED_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Router]:
    """A router for tests that leave no trace in it, or one that does not matter to others."""
    with router(tmp_path_factory.mktemp("router")) as up:
        yield up


def decided(up: Router) -> list[dict]:
    """All rows of the decision log."""
    tables = [decisions.decode(record.value) for record in logged(up, DECISIONS)]
    return [row for table in tables for row in table.to_pylist()]


def logged(up: Router, topic: str) -> list:
    """All records of a topic."""
    reader = up.log.reader(topic, {0: 0})
    try:
        return reader.read(100_000, 0.0)
    finally:
        reader.close()


# --- Route -----------------------------------------------------------------------------------------


def test_decision_has_every_field_the_proto_promises(shared):
    """
    Nothing in a decision is left at its default where the proto promises a value.
    """
    decision = shared.route(request_id="r-1")

    assert decision.request_id == "r-1"
    assert len(decision.decision_id) == 24 and int(decision.decision_id, 16) >= 0
    assert decision.model in {m.name for m in MODELS}
    assert decision.pool == decision.model
    assert 0.0 < decision.propensity <= 1.0
    for estimate in (decision.quality, decision.cost_usd, decision.latency_ms):
        assert estimate.mean > 0.0
        assert estimate.deviation > 0.0
    assert decision.ticket


def test_fields_of_a_decision_are_those_checked_here():
    """
    A field added to the proto is added to these tests.
    """
    assert {f.name for f in pb.Decision.DESCRIPTOR.fields} == {
        "request_id", "decision_id", "model", "pool", "propensity", "utility", "quality",
        "cost_usd", "latency_ms", "fallbacks", "snapshot_version", "snapshot_age_ms", "ticket",
        "energy_j", "probe", "below_quality_min", "guarded",
        "rules", "suggested_model",  # by rules/test_dispatched and changes/test_modes_served
        "session_usd",  # by routing/test_sessions
    }  # fmt: skip


@pytest.mark.parametrize(
    ("quality_min", "model", "below"),
    [(0.5, "small", False), (0.75, "large", False), (0.9, "large", True)],
)
def test_the_cheapest_model_that_is_good_enough_is_chosen(tmp_path, quality_min, model, below):
    """
    And where none is, the best, with the flag that says so.
    """
    with router(tmp_path, policy=Greedy()) as up:
        decision = up.route(quality_min=quality_min)

    assert (decision.model, decision.below_quality_min) == (model, below)


def test_decision_ids_are_unique(shared):
    ids = {shared.route().decision_id for _ in range(50)}

    assert len(ids) == 50


def test_fallbacks_are_the_other_models_best_first_and_propensities_sum_to_one(shared):
    """
    Chosen and fallbacks together are all eligible models, each with its share of the draw.
    """
    decision = shared.route(denied_models=["medium"])

    others = [f.model for f in decision.fallbacks]
    assert sorted([decision.model, *others]) == ["large", "small"]
    decision = shared.route()
    others = list(decision.fallbacks)
    assert sorted([decision.model, *(f.model for f in others)]) == ["large", "medium", "small"]
    utilities = [f.utility for f in others]
    assert utilities == sorted(utilities, reverse=True)
    total = decision.propensity + sum(f.propensity for f in others)
    assert total == pytest.approx(1.0, abs=1e-12)
    assert all(f.pool == f.model and f.latency_ms.mean > 0 for f in others)


def test_greedy_router_takes_the_best_utility_and_ranks_the_rest(tmp_path):
    """
    With no exploration the answer can be worked out: quality alone, then cost alone.
    """
    with router(tmp_path, policy=Greedy()) as up:
        best = up.route(preference=pb.Preference(quality=1, cost=0, latency=0))
        cheap = up.route(preference=pb.Preference(quality=0, cost=1, latency=0))

    assert (best.model, [f.model for f in best.fallbacks]) == ("large", ["medium", "small"])
    assert (cheap.model, [f.model for f in cheap.fallbacks]) == ("small", ["medium", "large"])
    assert best.propensity == cheap.propensity == 1.0
    assert best.utility == pytest.approx(0.8)
    assert cheap.utility == pytest.approx(-cheap.cost_usd.mean)


def test_weights_left_out_are_the_settings_and_zero_is_not_left_out(shared):
    """
    Field presence tells the two apart: Explain shows the weights in force.
    """

    def weights(**given: float) -> tuple[float, ...]:
        ticket = shared.route(preference=pb.Preference(**given)).ticket
        shown = shared.stub.Explain(pb.ExplainRequest(ticket=ticket)).preference
        return tuple(round(w, 6) for w in (shown.quality, shown.cost, shown.latency, shown.energy))

    assert weights() == (1.0, 20.0, 0.01, 0.0)
    assert weights(cost=0.0) == (1.0, 0.0, 0.01, 0.0)
    assert weights(quality=3.0, cost=5.0, latency=0.5) == (3.0, 5.0, 0.5, 0.0)
    assert weights(energy=2.0) == (1.0, 20.0, 0.01, 2.0)


def test_both_forms_of_an_embedding_are_the_same_request(shared):
    """
    Packed floats and raw bytes give the same context, to the last of its 64 numbers.
    """
    raw = embedding(3)
    values = np.frombuffer(raw, "<f4").tolist()

    def context(**prompt: object) -> list[float]:
        ticket = shared.route(**prompt).ticket
        return list(shared.stub.Explain(pb.ExplainRequest(ticket=ticket)).context)

    assert context(embedding_f32=raw) == context(embedding=pb.Embedding(values=values))
    assert context(embedding_f32=raw) != context(embedding_f32=embedding(4))


def test_allowed_and_denied_models_hold(shared):
    """
    Over many draws, only what is allowed and not denied is ever chosen or offered.
    """
    for _ in range(30):
        decision = shared.route(allowed_models=["small", "large"], denied_models=["small"])
        assert (decision.model, list(decision.fallbacks)) == ("large", [])
        assert decision.propensity == 1.0


def test_cost_and_latency_limits_hold(shared):
    """
    A model above a limit is neither chosen nor offered as a fallback.
    """
    everything = shared.route()
    costs = {f.model: f.cost_usd.mean for f in [everything, *everything.fallbacks]}
    waits = {f.model: f.latency_ms.mean for f in [everything, *everything.fallbacks]}

    below = shared.route(cost_usd_max=(costs["medium"] + costs["large"]) / 2)
    quick = shared.route(latency_ms_max=(waits["small"] + waits["medium"]) / 2)
    exactly = shared.route(cost_usd_max=costs["small"])

    assert {below.model, *(f.model for f in below.fallbacks)} == {"small", "medium"}
    assert {quick.model, *(f.model for f in quick.fallbacks)} == {"small"}
    assert {exactly.model, *(f.model for f in exactly.fallbacks)} == {"small"}


def test_deadline_in_the_future_is_met_and_a_past_one_refused(shared):
    """
    `deadline_unix_ms` is compared with the clock of the router when the request is scored.
    """
    assert shared.route(deadline_unix_ms=NOON_MS + 1).model

    with pytest.raises(grpc.RpcError) as refused:
        shared.route(deadline_unix_ms=NOON_MS)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert str(NOON_MS) in refused.value.details()


def test_same_seed_makes_the_same_choices_and_another_one_others(tmp_path):
    """
    A run can be repeated: models and propensities depend on the seed and on what was asked.
    """

    def run(folder: str, seed: int) -> list[tuple]:
        with router(tmp_path / folder, seed=seed, policy=SquareCb(gamma=1.0)) as up:
            asked = [up.route(embedding_f32=embedding(i)) for i in range(30)]
        return [(d.model, d.propensity) for d in asked]

    first = run("a", 7)
    assert run("b", 7) == first
    assert run("c", 8) != first


# --- RouteBatch and RouteStream --------------------------------------------------------------------


def test_batch_is_answered_in_order_with_its_ids(shared):
    """
    Up to 1,024 requests come back in their order, each under its own id.
    """
    asked = [
        pb.RouteRequest(request_id=f"r{i}", embedding_f32=embedding(i % 7)) for i in range(1024)
    ]

    replies = shared.stub.RouteBatch(
        pb.RouteBatchRequest(requests=asked), timeout=PATIENCE_S
    ).replies

    assert [r.request_id for r in replies] == [f"r{i}" for i in range(1024)]
    assert [r.decision.request_id for r in replies] == [f"r{i}" for i in range(1024)]
    assert len({r.decision.decision_id for r in replies}) == 1024


def test_largest_batch_over_many_models_is_answered(tmp_path):
    """
    What may be asked can be answered: 1,024 decisions between 70 models are a reply of 18 MB.
    """
    models = [Model(name=f"{'a-model-with-a-long-name' * 4}-{i}") for i in range(70)]
    asked = [pb.RouteRequest(embedding_f32=embedding(), fallbacks_max=255)] * 1024

    with router(tmp_path, models=catalogue(models), log_decisions=False) as up:
        reply = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked), timeout=PATIENCE_S)

    assert reply.ByteSize() > 16 * 1024 * 1024
    assert all(len(one.decision.fallbacks) == 69 for one in reply.replies)


def test_stream_answers_every_request_under_its_id(tmp_path):
    """
    Far more requests than may be scored at once go through a stream, none lost, none twice.
    """
    with router(tmp_path, stream_ongoing_max=4) as up:
        asked = (
            pb.RouteRequest(request_id=f"r{i}", embedding_f32=embedding(i % 5)) for i in range(500)
        )
        replies = list(up.stub.RouteStream(asked, timeout=PATIENCE_S))

    assert sorted(r.request_id for r in replies) == sorted(f"r{i}" for i in range(500))
    assert all(r.decision.request_id == r.request_id for r in replies)


def test_stream_answers_before_it_is_complete(shared):
    """
    A caller may wait for an answer before asking on.
    """
    asked: queue.Queue = queue.Queue()
    replies = shared.stub.RouteStream(iter(asked.get, None), timeout=PATIENCE_S)
    for name in ("first", "second"):
        asked.put(pb.RouteRequest(request_id=name, embedding_f32=embedding()))
        assert next(replies).request_id == name
    asked.put(None)

    assert list(replies) == []


def test_stream_that_breaks_off_ends_with_a_status(shared, caplog):
    """
    If reading requests fails for a reason nobody foresaw, what was asked is answered, and then the
    call ends: it does not wait for ever.
    """
    statuses = []

    class Call:
        async def write(self, reply: pb.RouteReply) -> None:
            pass

        async def abort(self, code: grpc.StatusCode, details: str, trailing: tuple) -> None:
            statuses.append(code)
            raise ValueError(details)

    async def breaking() -> AsyncIterator[pb.RouteRequest]:
        yield pb.RouteRequest(request_id="r1", embedding_f32=embedding())
        raise RuntimeError("the transport broke")

    with pytest.raises(ValueError, match="internal error"):
        shared.run(shared.replica.servicer.RouteStream(breaking(), Call()))

    assert statuses == [grpc.StatusCode.INTERNAL]
    assert "internal error" in caplog.text


def test_cancelled_stream_leaves_nothing_behind(tmp_path, caplog):
    """
    A caller who hangs up ends his stream's tasks, and no error is logged for it.
    """
    with router(tmp_path) as up:
        before = tasks(up)
        asked: queue.Queue = queue.Queue()
        call = up.stub.RouteStream(iter(asked.get, None), timeout=PATIENCE_S)
        asked.put(pb.RouteRequest(embedding_f32=embedding()))
        next(call)
        call.cancel()
        until(lambda: tasks(up) <= before, "the stream's tasks to end")
        asked.put(None)
        assert up.route().model

    # Another test's client may still mourn its broker.
    assert [r for r in caplog.records if not r.name.startswith("kafka")] == []


def tasks(up: Router) -> int:
    """Tasks alive on the replica's loop."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return up.run(count())


# --- tickets ---------------------------------------------------------------------------------------


def test_ticket_holds_the_very_numbers_of_the_decision(tmp_path):
    """
    Learning later sees what the caller saw, in 32 bits; also where the choice was to explore.
    """
    weights = pb.Preference(quality=2, cost=30, latency=0.5, energy=0.25)
    with router(tmp_path, policy=SquareCb(gamma=1.0)) as up:
        made = [
            up.route(embedding_f32=embedding(i), tenant="tenant ü", preference=weights)
            for i in range(12)
        ]
    assert len({decision.model for decision in made}) == 3

    for decision in made:
        ticket = Sealer(up.keys).open(decision.ticket)
        head, stated = ticket.head, catalogue()
        column = stated.column_of[decision.model]
        expected_cost = stated.expected_cost_usd(np.zeros(1))[0, column]
        assert ticket.decision_id.hex() == decision.decision_id
        assert ticket.tenant == "tenant ü"
        assert head["decided_at_ms"] == NOON_MS
        assert head["model"] == key_of(decision.model)
        assert head["pool"] == key_of(decision.pool)
        assert head["encoder"] == key_of(up.encoder)
        assert head["propensity"] == np.float32(decision.propensity)
        assert head["preference"].tolist() == [2.0, 30.0, 0.5, 0.25]
        assert head["snapshot_version"] == decision.snapshot_version
        assert head["expected_latency_ms"] == np.float32(stated.latency_ms[column])
        assert head["expected_cost_usd"] == np.float32(expected_cost)
        for case in [decision, *decision.fallbacks]:
            (seen,) = [c for c in ticket.candidates if c["model"] == key_of(case.model)]
            shown = (case.propensity, case.utility, case.quality.mean, case.cost_usd.mean)
            names = ("propensity", "utility", "quality", "cost_usd")
            assert [seen[name] for name in names] == [np.float32(value) for value in shown]
            assert seen["latency_ms"] == np.float32(case.latency_ms.mean)
            assert seen["verdict"] == Verdict.ELIGIBLE


@pytest.mark.parametrize("written", [bytes.hex, lambda t: base64.urlsafe_b64encode(t).decode()])
def test_explain_on_the_command_line_shows_who_lost_and_why(shared, written):
    """
    People copy a ticket from a log, in whatever form it is there.
    """
    decision = shared.route(tenant="acme", denied_models=["medium"])
    target = f"127.0.0.1:{shared.replica.port}"
    command = ["explain", written(decision.ticket), "--target", target]

    table = CliRunner().invoke(app, command)
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)

    assert table.exit_code == 0
    assert "for acme" in table.stdout
    assert found["decision_id"] == decision.decision_id
    assert [one["model"] for one in found["models"] if one["chosen"]] == [decision.model]


def test_explain_of_what_is_no_ticket_says_so(shared):
    target = f"127.0.0.1:{shared.replica.port}"
    for text in ("not a ticket!", "00ff"):
        found = CliRunner().invoke(app, ["explain", text, "--target", target])
        assert found.exit_code != 0
        assert isinstance(found.exception, FairleadError)


def test_refused_requests_are_those_that_got_no_decision(shared):
    """
    Feedback and questions about tickets are none: where the log's disk is full, all are decided.
    """
    counts = shared.replica.servicer.counts
    before = counts.refused

    for call, asked in (
        (shared.stub.SendFeedback, pb.FeedbackRequest(outcomes=[pb.Outcome(ticket=b"none")])),
        (shared.stub.Explain, pb.ExplainRequest(ticket=b"none")),
        (shared.stub.TraceFeedback, pb.TraceFeedbackRequest(ticket=b"none")),
    ):
        with pytest.raises(grpc.RpcError):
            call(asked)
    assert counts.refused == before

    with pytest.raises(grpc.RpcError):
        shared.stub.Route(pb.RouteRequest(deadline_unix_ms=1))
    assert counts.refused == before + 1


def test_explain_without_a_router_does_not_wait_for_one():
    (port,) = free_ports(1)  # held, so that nobody comes to listen there
    target = f"127.0.0.1:{port}"
    command = ["explain", "00ff", "--target", target, "--timeout-s", "5"]

    found = CliRunner().invoke(app, command)

    assert isinstance(found.exception, Unavailable)
    assert f"Explain at {target}" in str(found.exception)


def test_explain_tells_the_whole_case(shared):
    """
    What was known, what was predicted, how likely each model was, and why the others lost.
    """
    decision = shared.route(tenant="acme", denied_models=["medium"], prompt_tokens=256)

    told = shared.stub.Explain(pb.ExplainRequest(ticket=decision.ticket))

    assert (told.decision_id, told.tenant) == (decision.decision_id, "acme")
    assert told.decided_at_unix_ms == NOON_MS
    assert told.snapshot_version == decision.snapshot_version
    assert told.encoder == shared.encoder
    assert told.policy == repr(SquareCb())
    assert len(told.context) == N_FEATURES
    assert told.context[-1] == BIAS * STEP
    assert told.context[-2] == 0.0  # 256 tokens are the centre of that scale
    by_name = {m.model: m for m in told.models}
    assert sorted(by_name) == ["large", "medium", "small"]
    assert [m.model for m in told.models if m.chosen] == [decision.model]
    for case in [decision, *decision.fallbacks]:
        seen = by_name[case.model]
        assert seen.pool == case.pool
        assert seen.propensity == pytest.approx(case.propensity, rel=1e-6)
        assert seen.utility == pytest.approx(case.utility, rel=1e-6)
        assert seen.quality == pytest.approx(case.quality.mean, rel=1e-6)
        assert seen.cost_usd == pytest.approx(case.cost_usd.mean, rel=1e-6)
        assert seen.latency_ms == pytest.approx(case.latency_ms.mean, rel=1e-6)
    assert by_name["medium"].propensity == 0.0
    assert by_name["medium"].reason == "not allowed by the request"
    utilities = [m.utility for m in told.models if m.model != "medium"]
    assert utilities == sorted(utilities, reverse=True)
    assert told.models[-1].model == "medium"


def test_every_reason_is_explained(tmp_path):
    """
    Won, explored, passed over, denied, too dear, too slow, too long: each has its words.
    """
    models = [
        Model(name="best", quality=0.9, latency_ms=100),
        Model(name="second", quality=0.8, latency_ms=100),
        Model(name="denied", quality=0.9, latency_ms=100),
        Model(name="dear", quality=0.9, usd_per_call=1.0, latency_ms=100),
        Model(name="slow", quality=0.9, latency_ms=60_000),
        Model(name="short", quality=0.9, latency_ms=100, context_tokens_max=10),
    ]
    with router(tmp_path, models=catalogue(models), policy=SquareCb(gamma=1.0)) as up:
        found: dict[str, set[str]] = {m.name: set() for m in models}
        for i in range(40):
            decision = up.route(
                embedding_f32=embedding(i),
                prompt_tokens=11,
                denied_models=["denied"],
                cost_usd_max=0.5,
                latency_ms_max=10_000,
            )
            for case in up.stub.Explain(pb.ExplainRequest(ticket=decision.ticket)).models:
                found[case.model].add(case.reason.split(";")[0].split(",")[0].split(" points")[0])

    assert found["best"] == {"chosen: highest utility", "highest utility"}
    assert found["second"] == {"chosen to explore: 0.1", "0.1"}
    assert found["denied"] == {"not allowed by the request"}
    assert found["dear"] == {"predicted cost above the request's limit"}
    assert found["slow"] == {"predicted latency above the request's limit"}
    assert found["short"] == {"the prompt is longer than the model takes"}


def test_explain_knows_a_model_that_has_left_by_its_key(tmp_path):
    """
    A ticket outlives the catalogue it was made under.
    """
    with router(tmp_path) as up:
        ticket = up.route().ticket
        up.source.now = catalogue(MODELS[1:])
        up.look()
        told = up.stub.Explain(pb.ExplainRequest(ticket=ticket))

    names = {m.model for m in told.models}
    assert names == {"medium", "large", f"{key_of('small'):016x}"}


def test_tickets_sealed_before_a_key_was_rotated_still_open(tmp_path):
    """
    A new key in front seals; the former one still opens.
    """
    with router(tmp_path / "before") as up:
        ticket, keys = up.route().ticket, up.keys
    with router(tmp_path / "after", keys=[b"n" * 32, *keys]) as up:
        assert up.stub.Explain(pb.ExplainRequest(ticket=ticket)).decided_at_unix_ms == NOON_MS


# --- texts -----------------------------------------------------------------------------------------


def test_text_is_encoded_and_its_length_estimated(tmp_path):
    """
    Equal texts are equal requests, others are not; where the tokens are not said, four bytes are
    taken for one, so a long prompt is known to be dear.
    """
    with router(tmp_path, encoder=HASHING) as up:

        def context(text: str, **more: object) -> list[float]:
            ticket = up.route(text=text, **more).ticket
            return list(up.stub.Explain(pb.ExplainRequest(ticket=ticket)).context)

        proof, poem = "Prove that √2 is irrational.", "Write a poem about autumn."
        assert context(proof) == context(proof)
        assert context(proof)[:62] != context(poem)[:62]
        assert context("x" * 1024)[62] == 0.0  # 256 tokens
        assert context("x" * 2048)[62] == 0.25
        assert context("x" * 2048, prompt_tokens=256)[62] == 0.0
        vectors = Hashing(64, projection_for("hashing-64", 64)).encode([proof])
        same = up.route(embedding_f32=vectors.tobytes(), prompt_tokens=len(proof.encode()) // 4)
        told = up.stub.Explain(pb.ExplainRequest(ticket=same.ticket))
        assert list(told.context)[:62] == context(proof)[:62]


class Slow(Hashing):
    """An encoder that holds up whoever calls it, until its gate opens."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(64, projection_for("hashing-64", 64))
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.problem: Exception | None = None

    def encode(self, texts):
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.problem:
            raise self.problem
        return super().encode(texts)


@pytest.fixture
def slow(monkeypatch) -> Iterator[Slow]:
    """Makes routers that are started in the test use a blocking encoder."""
    encoder = Slow()
    monkeypatch.setattr("serve.deploy.replica.make_encoder", lambda options: encoder)
    monkeypatch.setattr(router_bench, "make_encoder", lambda options: encoder)
    yield encoder
    encoder.gate.set()


def test_blocking_encoder_does_not_hold_up_other_requests(tmp_path, slow):
    """
    While texts are encoded in threads, requests that bring an embedding are answered.
    """
    with router(tmp_path) as up:
        text = up.stub.Route.future(pb.RouteRequest(text="hello"), timeout=PATIENCE_S)
        assert slow.entered.acquire(timeout=PATIENCE_S)

        assert up.route(embedding_f32=embedding(dim=64)).model
        assert not text.done()
        slow.gate.set()
        decided = text.result()
        slow_context = up.stub.Explain(pb.ExplainRequest(ticket=decided.ticket)).context

    with router(tmp_path / "quick", encoder=HASHING) as up:
        quick = up.route(text="hello")
        quick_context = up.stub.Explain(pb.ExplainRequest(ticket=quick.ticket)).context
    assert list(slow_context) == list(quick_context)


def test_texts_waiting_for_a_blocking_encoder_are_bounded(tmp_path, slow):
    """
    The queue in front of the encoder has the bound of the one behind it.
    """
    with router(tmp_path, batcher=BatcherOptions(waiting_max=3)) as up:
        ask = lambda: up.stub.Route.future(pb.RouteRequest(text="hello"), timeout=PATIENCE_S)  # noqa: E731
        waiting = [ask() for _ in range(3)]
        until(lambda: up.replica.servicer._asking._elsewhere.waiting == 3, "three texts to wait")

        refused = ask().exception()

        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 texts wait" in refused.details()
        slow.gate.set()
        assert all(call.result().model for call in waiting)
        assert up.route(text="again").model


def test_text_whose_caller_gave_up_is_not_scored(tmp_path, slow):
    """
    The gRPC deadline passes while the text is being encoded: nothing is decided for nobody.
    """
    with router(tmp_path) as up:
        with pytest.raises(grpc.RpcError) as late:
            up.stub.Route(pb.RouteRequest(text="hello"), timeout=0.1)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(
            lambda: up.replica.servicer._asking._elsewhere.waiting == 0, "the call to end here too"
        )
        slow.gate.set()

        assert up.route(embedding_f32=embedding(dim=64)).model
        assert up.replica.servicer.counts.decisions == 1


def test_encoder_that_fails_fails_its_text_alone(tmp_path, slow):
    """
    UNAVAILABLE with what to do about it; a request with an embedding in the same batch goes on.
    """
    slow.problem = EncoderUnavailable("openai:m", "it does not answer", "Start the server")
    slow.gate.set()
    with router(tmp_path) as up:
        asked = [pb.RouteRequest(text="hello"), pb.RouteRequest(embedding_f32=embedding(dim=64))]
        text, vector = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked)).replies

    assert text.problem.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert "Start the server" in text.problem.message
    assert vector.decision.model


# --- the loop --------------------------------------------------------------------------------------


def test_feedback_changes_decisions_once_it_is_learned_and_seen(tmp_path):
    """
    Decisions rest on the snapshot held, say which, and follow the outcomes: a model that turns
    out worthless loses to one that turns out well.
    """
    with router(tmp_path, policy=SquareCb(gamma=2.0)) as up:
        weights = pb.Preference(quality=1, cost=0, latency=0)
        first = up.route(preference=weights)
        assert (first.snapshot_version, first.snapshot_age_ms) == (0, 0)
        for i in range(150):
            decision = up.route(embedding_f32=embedding(i), preference=weights)
            assert up.report(decision, quality=0.95 if decision.model == "small" else 0.05) == 1
        up.learn()
        assert up.route(preference=weights).snapshot_version == 0  # not seen yet
        up.clock.now_ms += 1234

        assert up.look()

        after = up.route(embedding_f32=embedding(999), preference=weights)
        assert after.snapshot_version == up.store.newest()
        assert after.snapshot_age_ms == 1234
        cases = {c.model: c for c in [after, *after.fallbacks]}
        assert max(cases.values(), key=lambda c: c.utility).model == "small"
        assert cases["small"].quality.mean > 0.8
        assert cases["large"].quality.mean < 0.4


def test_feedback_is_durable_when_it_is_acknowledged(tmp_path):
    """
    `accepted` records are in the log, keyed by decision, before the call returns.
    """
    with router(tmp_path) as up:
        decided = [up.route() for _ in range(3)]
        outcomes = [
            pb.Outcome(ticket=d.ticket, quality=0.5, cost_usd=0.01, latency_ms=900, error=False)
            for d in decided
        ]

        reply = up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes))

        keys = [record.key.decode() for record in logged(up, FEEDBACK)]
        assert reply.accepted == 3
        assert keys == [d.decision_id for d in decided]


def test_each_value_counts_once_however_often_it_is_sent(tmp_path):
    """
    The same outcome again, or another value for it, changes nothing; a value not yet known counts.
    """
    with router(tmp_path) as up:
        decision = up.route()
        up.report(decision, quality=0.9)
        digest = up.learn()

        up.report(decision, quality=0.9)
        up.report(decision, quality=0.1)
        assert up.learn() == digest

        up.report(decision, latency_ms=500.0)
        assert up.learn() != digest


def test_feedback_waits_for_the_log_and_decisions_do_not(tmp_path, monkeypatch):
    """
    While the log is away decisions go on; feedback is acknowledged when it is durable, not before.
    """
    with router(tmp_path) as up:
        decision = up.route()
        append, away = up.replica.log.append, threading.Event()

        def failing(*arguments: object) -> None:
            if not away.is_set():
                raise LogUnavailable("the disk is full")
            append(*arguments)

        monkeypatch.setattr(up.replica.log, "append", failing)
        outcome = pb.Outcome(ticket=decision.ticket, quality=1.0)
        sent = up.stub.SendFeedback.future(
            pb.FeedbackRequest(outcomes=[outcome]), timeout=PATIENCE_S
        )
        assert all(up.route().model for _ in range(20))
        assert not sent.done()
        away.set()

        assert sent.result().accepted == 1
        assert len(logged(up, FEEDBACK)) == 1


def test_every_decision_is_in_the_decision_log(tmp_path):
    """
    With tenant, session and the propensities of all models; refused requests are not in it.
    """
    with router(tmp_path) as up:
        alone = up.route(tenant="acme", session="s1", prompt_tokens=77, denied_models=["large"])
        asked = [
            pb.RouteRequest(embedding_f32=embedding(1), tenant="t"),
            pb.RouteRequest(embedding_f32=embedding(2), cost_usd_max=1e-12),
            pb.RouteRequest(embedding_f32=embedding(3), tenant="u", session="s3"),
        ]
        replies = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked)).replies
        made = [alone, replies[0].decision, replies[2].decision]
        assert replies[1].WhichOneof("result") == "problem"

        until(lambda: len(decided(up)) >= 3, "the decision log")
        found = decided(up)

    assert [row["decision_id"].hex() for row in found] == [d.decision_id for d in made]
    for row, decision in zip(found, made, strict=True):
        assert (row["model"], row["pool"]) == (decision.model, decision.pool)
        assert row["decided_at_ms"] == NOON_MS
        assert row["propensity"] == np.float32(decision.propensity)
        assert row["utility"] == np.float32(decision.utility)
        assert row["models"] == [m.name for m in MODELS]
        shares = dict(zip(row["models"], row["propensities"], strict=True))
        seen = {c.model: c.propensity for c in [decision, *decision.fallbacks]}
        assert shares == {m.name: np.float32(seen.get(m.name, 0.0)) for m in MODELS}
        assert sum(shares.values()) == pytest.approx(1.0)
    assert [row["tenant"] for row in found] == ["acme", "t", "u"]
    assert [row["session"] for row in found] == ["s1", "", "s3"]
    first = found[0]
    assert first["prompt_tokens"] == 77
    assert (first["policy"], first["encoder"]) == (repr(SquareCb()), up.encoder)
    assert len(first["context"]) == N_FEATURES


@pytest.mark.parametrize("wanted", [False, True])
def test_prompts_are_in_the_decision_log_only_where_that_is_switched_on(tmp_path, wanted):
    """
    They may be personal. An embedding is no prompt either way.
    """
    with router(tmp_path, encoder=HASHING, log_prompts=wanted) as up:
        up.route(text="my name is …")
        up.route(embedding_f32=embedding(dim=64))

    up.log = SqliteLog(tmp_path / "log.sqlite", up.clock)
    prompts = [row["prompt"] for row in decided(up)]
    assert prompts == (["my name is …", None] if wanted else [None, None])


def test_decision_log_can_be_switched_off(tmp_path):
    with router(tmp_path, log_decisions=False) as up:
        up.route()

    assert up.replica.decisions.counts.offered == 0


def test_catalogue_change_reaches_callers(tmp_path):
    """
    A model added takes requests, one removed takes none, without a restart.
    """
    with router(tmp_path) as up:
        up.source.now = catalogue([MODELS[0], Model(name="new", quality=0.9)])
        up.look()
        decision = up.route()

    assert {decision.model, *(f.model for f in decision.fallbacks)} == {"small", "new"}


def test_decision_names_the_pool_of_its_model(tmp_path):
    pools = [Pool(name="small-eu", model="small"), Pool(name="large-us", model="large")]
    with router(tmp_path, models=catalogue(pools=pools)) as up:
        decision = up.route()

    cases = {c.model: c.pool for c in [decision, *decision.fallbacks]}
    assert cases == {"small": "small-eu", "medium": "medium", "large": "large-us"}


# --- health, reflection, address -------------------------------------------------------------------


def health(up: Router, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(up.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status


def test_health_is_said_for_the_server_and_the_service(shared):
    serving = health_pb2.HealthCheckResponse.SERVING

    assert [health(shared), health(shared, SERVICE)] == [serving, serving]
    with pytest.raises(grpc.RpcError) as unknown:
        health(shared, "no.such.Service")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_shows_every_method(shared):
    """
    grpcurl and friends can list and call the service without the proto.
    """
    stub = reflection_pb2_grpc.ServerReflectionStub(shared.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]

    listed, described = stub.ServerReflectionInfo(iter(asked))

    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    file = FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    methods = {method.name for method in file.service[0].method}
    assert methods == {
        "Route", "RouteBatch", "RouteColumns", "RouteStream", "RouteArm",
        "RouteArmBatch", "SendFeedback", "TraceFeedback", "Explain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (f"{SERVICE}.Route", "fairlead/v1/router.proto"),
        ("fairlead.v1.Dispatcher.Dispatch", "fairlead/v1/dispatch.proto"),
        ("fairlead.v1.RouteRequest", "fairlead/v1/router.proto"),
        (f"{SERVICE}.NoSuchMethod", None),
        ("no.such.Service.Method", None),
    ],
)
def test_reflection_finds_the_file_of_a_method(shared, symbol, file):
    """
    `grpcurl describe` and `ghz` ask for it, and know the file by the path that clients import.
    """
    stub = reflection_pb2_grpc.ServerReflectionStub(shared.channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)

    [described] = stub.ServerReflectionInfo(iter([asked]))

    found = described.file_descriptor_response.file_descriptor_proto
    names = [FileDescriptorProto.FromString(one).name for one in found]
    assert names[:1] == ([file] if file else [])


def test_every_method_of_the_proto_is_served(shared):
    """
    None is answered with UNIMPLEMENTED.
    """
    for method in pb.DESCRIPTOR.services_by_name["Router"].methods:
        kind = (
            shared.channel.stream_stream if method.client_streaming else shared.channel.unary_unary
        )
        call = kind(f"/{SERVICE}/{method.name}")
        if method.client_streaming:
            assert len(list(call(iter([b""]), timeout=PATIENCE_S))) == 1
        else:
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=PATIENCE_S)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name


def test_two_replicas_share_one_port(tmp_path):
    """
    Connections spread over replicas on the same port, any replica's ticket is good at any other,
    and when one stops the other answers all.
    """
    with (
        router(tmp_path) as first,
        router(tmp_path, keys=first.keys, port=first.replica.port) as second,
    ):
        reached = []
        for _ in range(60):
            channel = first.connect()
            router_pb2_grpc.RouterStub(channel).Route(
                pb.RouteRequest(embedding_f32=embedding()), timeout=PATIENCE_S
            )
            channel.close()
            reached = [up.replica.servicer.counts.decisions for up in (first, second)]
            if all(reached):
                break
        assert all(reached), f"decisions per replica after 60 connections: {reached}"

        first.run(first.replica.stop())
        channel = second.connect()
        stub = router_pb2_grpc.RouterStub(channel)
        asked = pb.RouteRequest(embedding_f32=embedding())
        answered = [stub.Route(asked, wait_for_ready=True, timeout=PATIENCE_S) for _ in range(10)]
        channel.close()
    assert len(answered) == 10


def test_port_that_somebody_else_has_is_an_error(tmp_path):
    """
    Sharing is for replicas; a program that holds the port alone is not joined.
    """
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RuntimeError):
            Router(tmp_path, port=other.getsockname()[1])


def test_tls_is_served_when_a_certificate_is_given(tmp_path, shared):
    """
    With certificate and key the port speaks TLS, and plain text is not answered.
    """
    key, certificate = self_signed()
    options = ListenerOptions(port=0, tls_certificate=certificate, tls_key=key)
    listener = None

    async def start() -> Listener:
        listener = Listener(shared.replica.servicers, options)
        await listener.start()
        return listener

    listener = shared.run(start())
    address = f"localhost:{listener.port}"
    asked = pb.RouteRequest(embedding_f32=embedding())
    try:
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate)) as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            assert stub.Route(asked, timeout=PATIENCE_S).model
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            router_pb2_grpc.RouterStub(channel).Route(asked, timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(
                socket.create_connection(("localhost", listener.port)), server_hostname="localhost"
            )
    finally:
        shared.run(listener.stop())


# --- stopping --------------------------------------------------------------------------------------


def test_stopping_finishes_what_is_under_way_and_refuses_what_is_new(tmp_path, slow):
    """
    Calls under way get their decisions, and those in the decision log; new calls are turned away
    where they can be tried elsewhere: once their connection has ended, or on an open stream. Until
    then a call by an old connection is answered, as a retry would come back by the same one.
    """
    with router(tmp_path, grace_s=PATIENCE_S) as up:
        asked: queue.Queue = queue.Queue()
        stream = up.stub.RouteStream(iter(asked.get, None), timeout=PATIENCE_S)
        asked.put(pb.RouteRequest(request_id="s1", embedding_f32=embedding(dim=64)))
        assert next(stream).decision.model
        calls = [
            up.stub.Route.future(pb.RouteRequest(text=f"text {i}"), timeout=PATIENCE_S)
            for i in range(3)
        ]
        for _ in calls:
            assert slow.entered.acquire(timeout=PATIENCE_S)

        stopping = up.run(up.replica.stop(), wait=False)
        answered = 0
        while not refused(up.stub):
            answered += 1
        asked.put(pb.RouteRequest(request_id="s2", embedding_f32=embedding(dim=64)))
        late = next(stream)
        with up.connect() as channel:
            assert refused(router_pb2_grpc.RouterStub(channel))
        assert not any(call.done() for call in calls)
        asked.put(None)
        slow.gate.set()

        assert late.problem.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert late.request_id == "s2"
        ids = {call.result().decision_id for call in calls}
        stopping.result(PATIENCE_S)
        rows = [row["decision_id"].hex() for row in decided(up)]
        assert ids < set(rows)
        assert len(rows) == 4 + answered


def test_a_call_by_a_connection_that_has_not_ended_is_answered(tmp_path):
    """
    Between the word to stop and the end of connections there are moments in which calls arrive. To
    refuse them is to lose them: gRPC's retries would all go to the same replica.
    """
    with router(tmp_path) as up:
        up.replica.servicer.draining = True
        one = pb.RouteRequest(embedding_f32=embedding())
        batch = pb.RouteBatchRequest(requests=[one])
        columns = pb.RouteColumnsRequest(embeddings_f32=embedding())

        assert up.stub.Route(one, timeout=PATIENCE_S).model
        assert up.stub.RouteBatch(batch, timeout=PATIENCE_S).replies[0].decision.model
        assert not up.stub.RouteColumns(columns, timeout=PATIENCE_S).problems
        (streamed,) = up.stub.RouteStream(iter([one]), timeout=PATIENCE_S)
        assert streamed.problem.code == grpc.StatusCode.UNAVAILABLE.value[0]


def refused(stub: router_pb2_grpc.RouterStub) -> bool:
    """Whether a new call is turned away; it must not fail otherwise."""
    asked = pb.RouteRequest(embedding_f32=embedding(dim=64))
    problem = stub.Route.future(asked, timeout=PATIENCE_S).exception()
    assert problem is None or problem.code() in TURNED_AWAY
    return problem is not None


def test_stopping_under_load_gives_every_call_an_answer_or_a_status_to_retry(tmp_path):
    """
    Callers that never pause while a replica stops see decisions, then UNAVAILABLE or CANCELLED
    (see `fairlead.channels`), and nothing else; every decision they saw is in the log.
    """
    with router(tmp_path) as up:
        seen: list[str] = []
        ended: list[grpc.StatusCode] = []

        def call() -> None:
            with up.connect() as channel:
                stub = router_pb2_grpc.RouterStub(channel)
                asked = pb.RouteRequest(embedding_f32=embedding())
                while True:
                    try:
                        seen.append(stub.Route(asked, timeout=PATIENCE_S).decision_id)
                    except grpc.RpcError as error:
                        ended.append(error.code())
                        return

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        until(lambda: len(seen) > 100, "some load")
        up.run(up.replica.stop())
        for caller in callers:
            caller.join(PATIENCE_S)

        rows = {row["decision_id"].hex() for row in decided(up)}
    assert set(ended) <= TURNED_AWAY
    assert len(ended) == 4
    assert set(seen) <= rows


def test_stopped_replica_has_let_go_of_everything(tmp_path):
    """
    Its threads have ended, its port is free, its feedback is written; stopping again is harmless.
    """
    before = set(threading.enumerate())
    with router(tmp_path) as up:
        port = up.replica.port
        assert up.replica.problem() == ""
        up.report(up.route(), quality=1.0)
        up.run(up.replica.stop())
        assert "watches for snapshots" in up.replica.problem()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections linger
            probe.bind(("127.0.0.1", port))
            probe.listen()
        assert len(logged(up, FEEDBACK)) == 1

    ours = [t for t in set(threading.enumerate()) - before if t.name.startswith(("outbox", "live"))]
    assert ours == []
