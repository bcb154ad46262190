"""A full fleet refuses by criticality: what callers, the decision log and telemetry get to know."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from reporting_pools import reported, view, working
from router_bench import EMBEDDINGS, NOON_MS, embedding

from learners.policies.greedy import Greedy
from learners.prices import PriceOptions, ShedOptions
from serve.encoders import make_encoder
from serve.errors import FleetFull, NoModelFits
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model
from serve.routing.chooser import Chooser
from serve.routing.decider import Decided, Decider
from serve.routing.live import Live
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults, read_request
from serve.routing.writing.records import counted as joined
from serve.routing.writing.reply import write_explanation
from serve.sessions.held import SessionOptions, Sessions
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer
from streams.telemetry.records import decode
from streams.telemetry.records import encode as encode_telemetry
from streams.telemetry.window import DecidedBatch, Reporter, RouterGauges, RouterWindow
from streams.training.prices import Price

MODELS = [Model(name="small", quality=0.5), Model(name="large", quality=0.9)]
POOLS = [working("s"), working("l", "large")]
DEAREST = PriceOptions().multiple_max
GAUGES = RouterGauges(
    snapshot_version=1, snapshot_age_ms=0, loop_lag_ms_max=0.0, loop_busy_share=0.0
)


def full(multiple: float = DEAREST) -> Live:
    """Everything is as full as it should be, at this price."""
    price = Price(math.log1p(multiple), 1.0)
    return view(
        reported("s", load=0.85), reported("l", load=0.85), models=MODELS, pools=POOLS,
        prices={"s": price, "l": price},
    )  # fmt: skip


def decide(live: Live, *asked: dict[str, object], sessions: Sessions | None = None) -> Decided:
    decider = Decider(
        make_encoder(EMBEDDINGS),
        Chooser(Greedy(), PlacementOptions(), np.random.default_rng(3)),
        Sealer([bytes(KEY_BYTES)]),
        Issuer(1),
        lambda: NOON_MS,
        sessions,
    )
    plain = {"embedding_f32": embedding(), "prompt_tokens": 1000}
    requests = [pb.RouteRequest(**plain | one) for one in asked]
    return decider.decide([read_request(r, PreferenceDefaults()) for r in requests], live)


def kinds(decided: Decided) -> list[str]:
    return [type(reply).__name__ for reply in replies(decided)]


def replies(decided: Decided) -> list[pb.Decision | Exception]:
    return [pb.Decision.FromString(r) if isinstance(r, bytes) else r for r in decided.replies]


def test_who_is_shed_is_told_why():
    """
    The error names criticality and price; the words are for people.
    """
    (error,) = decide(full(), {"criticality": pb.SHEDDABLE}).replies

    assert isinstance(error, FleetFull)
    assert error.criticality == "SHEDDABLE"
    assert error.multiple == pytest.approx(DEAREST)
    assert "the fleet is full" in str(error)


def test_who_does_not_say_is_critical_and_the_highest_are_never_refused():
    """
    At the highest price there is, a thousand of CRITICAL_PLUS all get their decision.
    """
    highest = [{"criticality": pb.CRITICAL_PLUS}] * 1000

    assert set(kinds(decide(full(), *highest))) == {"Decision"}
    (error,) = decide(full(), {}).replies
    assert error.criticality == "CRITICAL"


LEVELS = ("SHEDDABLE", "SHEDDABLE_PLUS", "CRITICAL", "CRITICAL_PLUS")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_class_loses_a_request_before_the_class_below_has_lost_all(level):
    """
    Half-way through one's band all below are refused, half of its own, and nobody above.
    """
    low, high = ShedOptions().bands[level]
    asked = [{"criticality": name} for name in LEVELS] * 250

    found = kinds(decide(full(math.sqrt((1 + low) * (1 + high)) - 1), *asked))

    refused = [found[i::4].count("FleetFull") for i in range(4)]
    assert refused[:level] == [250] * level
    assert refused[level] == pytest.approx(125, abs=25)
    assert refused[level + 1 :] == [0] * (3 - level)


def test_nobody_is_refused_below_the_first_band():
    low, _ = ShedOptions().bands[0]

    assert set(kinds(decide(full(low * 0.99), *[{"criticality": pb.SHEDDABLE}] * 250))) == {
        "Decision"
    }


def test_shed_requests_are_not_in_the_decision_log_but_are_counted_by_preferred_model():
    """
    Of five, two are shed and one fits no model: the log has the other two; telemetry has four
    arrivals, two of them shed, and what all four prefer.
    """
    found = decide(
        full(),
        {"tenant": "a", "criticality": pb.SHEDDABLE},
        {"tenant": "a", "criticality": pb.CRITICAL_PLUS},
        {"tenant": "b", "criticality": pb.SHEDDABLE, "allowed_models": ["small"]},
        {"tenant": "b", "criticality": pb.CRITICAL_PLUS},
        {"tenant": "b", "cost_usd_max": 1e-12, "prompt_tokens": 10_000_000, "latency_ms_max": 1e-9},
    )

    assert kinds(found) == ["FleetFull", "Decision", "FleetFull", "Decision", NoModelFits.__name__]
    log = found.kept.log()
    assert log.tenants == ["a", "b"]
    decided = [reply.decision_id for reply in replies(found) if isinstance(reply, pb.Decision)]
    assert [one.hex() for one in log.ids] == decided
    a, b = counted(found).classes
    assert (a.name, a.arrivals, a.shed, b.name, b.arrivals, b.shed) == ("a", 2, 1, "b", 2, 1)
    assert {w.model: (w.requests, w.prompt_tokens_sum) for w in a.demand} == {"large": (2, 2000)}
    assert {w.model: w.requests for w in b.demand} == {"small": 1, "large": 1}


@pytest.mark.parametrize("there", ["small", "large"])
def test_who_names_a_model_is_counted_as_one_whom_no_other_may_answer(there):
    """
    Also while it has no replica. Not who leaves a choice, whatever the fleet leaves of it.
    """
    live = view(reported(there[0], load=0.1), models=MODELS, pools=POOLS)

    found = decide(
        live,
        {"allowed_models": ["large"]},
        {"denied_models": ["small"]},
        {"allowed_models": ["small", "large"]},
        {},
    )

    (of_class,) = counted(found).classes
    assert {w.model: (w.requests, w.fixed) for w in of_class.demand} == {"large": (4, 2)}


def test_batches_that_are_counted_together_are_counted_as_each_alone():
    """
    Also those of which some were shed, fit no model, or were decided by another view.
    """
    asked = {"tenant": "acme", "prompt_tokens": 7}, {"allowed_models": ["small"]}
    unfit = {"cost_usd_max": 1e-12, "prompt_tokens": 10_000_000, "latency_ms_max": 1e-9}
    batches = [
        decide(full(), *[{"criticality": pb.SHEDDABLE}] * 2).kept,
        decide(full(0.0), asked[0], unfit, asked[1]).kept,
        decide(full(0.0), unfit).kept,
    ]
    kept = [one.decisions for one in (batches[0], batches[1], batches[1], batches[2])]

    def sums(found: Iterable[DecidedBatch]) -> list[object]:
        window = RouterWindow()
        for one in found:
            window.count_batch(one)
        workload, _ = window.take(Reporter("0" * 16, 0), (0, 1000), GAUGES)
        return sorted((one.name, one.arrivals, one.shed, one.demand) for one in workload.classes)

    together = sums(joined(kept))

    assert together == sums(batch for one in kept for batch in joined([one]))
    assert [(name, arrivals, shed) for name, arrivals, shed, _ in together] == [
        ("acme", 2, 0),
        ("default", 4, 2),
    ]


def counted(found: Decided):
    """The workload record of a window in which only this was decided."""
    window, reporter = RouterWindow(joined), Reporter("0" * 16, NOON_MS - 1000)
    window.count_batch(found.kept.decisions)
    records = window.take(reporter, reporter.window(NOON_MS), GAUGES)
    return decode(encode_telemetry(records)[0][1])


def test_where_all_are_shed_nothing_is_logged_and_all_is_counted():
    found = decide(full(), *[{"criticality": pb.SHEDDABLE}] * 3)

    assert found.kept.log() is None
    assert counted(found).classes[0].shed == 3


def test_a_shed_request_holds_no_session():
    sessions = Sessions(SessionOptions())

    decide(
        full(),
        {"session": "shed", "criticality": pb.SHEDDABLE},
        {"session": "kept", "criticality": pb.CRITICAL_PLUS},
        sessions=sessions,
    )

    assert sessions.held("", "shed", NOON_MS) is None
    assert sessions.held("", "kept", NOON_MS) is not None


def test_a_decision_says_what_energy_it_takes_and_which_pool_of_each_model():
    (reply,) = replies(decide(full(0.0), {}))

    assert reply.energy_j == pytest.approx(500.0)
    assert (reply.model, reply.pool) == ("large", "l")
    assert [(f.model, f.pool, f.energy_j) for f in reply.fallbacks] == [
        ("small", "s", pytest.approx(500.0))
    ]


def test_an_explanation_states_no_energy_because_a_ticket_carries_none():
    """The decision does. To work it out from today's catalogue would not be what was known then."""
    live = full(0.0)
    (reply,) = replies(decide(live, {}))

    explained = write_explanation(Sealer([bytes(KEY_BYTES)]).open(reply.ticket), live, ["greedy"])

    assert reply.energy_j > 0
    assert [one.energy_j for one in explained.models] == [0.0, 0.0]
