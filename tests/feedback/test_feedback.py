"""Feedback: what is believed, what is set aside and why. Nothing a producer writes breaks anything."""

from __future__ import annotations

import base64
import json
import math

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import DAY_MS, ENCODER, NOW_MS, SEALER, decided, heads, report

from learners.estimates.ema import FIGURE_UNITS, FIGURES
from learners.estimates.sums.influence import hash_of, producer_of
from learners.targets import ONE, RATIO_MAX, RATIO_UNIT, VALUE_MAX, Target
from learners.traits import traits_of
from streams.errors import BadFeedback
from streams.feedback.feedback import FeedbackOptions, Ingest, Ingested, keep_fresh
from streams.feedback.report import (
    COST_USD_MAX,
    LATENCY_MS_MAX,
    LEARNED_BITS,
    NANO_USD,
    OUTPUT_TOKENS_LEARNED_MAX,
    OUTPUT_TOKENS_MAX,
    PAID_BIT,
    QUALIFIED,
    RECORD_BYTES_MAX,
    REPORTED,
    Reason,
    as_text,
    encode_report,
    schema,
)
from streams.feedback.said import Said, end_of
from streams.feedback.ticket import CANDIDATE, Issuer, Sealer, key_of, split_ids
from streams.log.contract import Record

OPTIONS = FeedbackOptions()
INGEST = Ingest(SEALER, key_of(ENCODER), OPTIONS)
DECISION = decided(1, decided_at_ms=NOW_MS, expected_cost_usd=0.01, expected_latency_ms=1000.0)[0]
TICKET = base64.urlsafe_b64encode(DECISION.ticket).decode()
FORGED = base64.urlsafe_b64encode(decided(1, sealer=Sealer([bytes(32)]))[0].ticket).decode()


def record(value: bytes | None, at_ms: int = NOW_MS, offset: int = 0) -> Record:
    return Record(0, offset, at_ms, b"key", value)


def take(value: bytes | None, at_ms: int = NOW_MS) -> Ingested:
    return INGEST.take([record(value, at_ms)])


def refused(value: bytes | None, at_ms: int = NOW_MS) -> tuple[Reason, str]:
    """Reason and detail of the one dead letter; nothing else may come of the record."""
    found = take(value, at_ms)
    (letter,) = found.dead
    assert (len(found.outcomes), len(found.bits)) == (0, 0)
    assert letter.record == record(value, at_ms)
    return letter.reason, letter.detail


def written(fields: str) -> bytes:
    """A record with these fields as written, so that they may be what no JSON library writes."""
    return f'{{"ticket":"{TICKET}",{fields}}}'.encode()


def padded(n_bytes: int) -> str:
    """Fields that make a record this long."""
    return '"quality":1'.ljust(n_bytes - len(written("")))


# --- what is refused, one case or more per reason


REFUSED = {
    "null": (None, Reason.EMPTY, ["no value"]),
    "empty": (b"", Reason.EMPTY, ["no value"]),
    "a byte too long": (
        written(padded(RECORD_BYTES_MAX + 1)),
        Reason.TOO_LARGE,
        [str(RECORD_BYTES_MAX + 1), str(RECORD_BYTES_MAX)],
    ),
    "a blob": (b"\0" * (1 << 20), Reason.TOO_LARGE, [str(1 << 20), str(RECORD_BYTES_MAX)]),
    "not JSON": (b"quality=0.5", Reason.NOT_JSON, ["byte 0", "quality=0.5"]),
    "half a record": (written('"quality":0.5')[:-9], Reason.NOT_JSON, []),
    "two records": (written('"quality":0.5') * 2, Reason.NOT_JSON, []),
    "invalid UTF-8": (b'{"ticket":"\xff\xfe","quality":1}', Reason.NOT_JSON, ["write UTF-8"]),
    "half a surrogate": (b'{"ticket":"\\ud83d","quality":1}', Reason.NOT_JSON, []),
    "a byte order mark": (
        b"\xef\xbb\xbf" + written('"quality":1'),
        Reason.NOT_JSON,
        ["byte order mark", "write UTF-8 without one"],
    ),
    "UTF-16": (
        written('"quality":1').decode().encode("utf-16"),
        Reason.NOT_JSON,
        ["UTF-16", "write UTF-8"],
    ),
    "NaN": (written('"quality":NaN'), Reason.NOT_JSON, ["): NaN}"]),
    "Infinity": (written('"cost_usd":Infinity'), Reason.NOT_JSON, []),
    "-Infinity": (written('"latency_ms":-Infinity'), Reason.NOT_JSON, []),
    "1e999": (written('"quality":1e999'), Reason.BAD_FIELD, ["quality", "1e999"]),
    "-1e999": (written('"cost_usd":-1e999'), Reason.BAD_FIELD, ["cost_usd", "-1e999"]),
    "400 digits": (written('"quality":' + "9" * 400), Reason.BAD_FIELD, ["quality", "999"]),
    "a string": (written('"quality":"0.5"'), Reason.BAD_FIELD, ["quality", '"0.5"']),
    "a number for a flag": (written('"error":1'), Reason.BAD_FIELD, ["error", "bool", "1"]),
    "a flag for a number": (written('"quality":true'), Reason.BAD_FIELD, ["quality", "true"]),
    "half a token": (written('"output_tokens":1.5'), Reason.BAD_FIELD, ["output_tokens", "1.5"]),
    "an array": (written('"latency_ms":[1]'), Reason.BAD_FIELD, ["latency_ms", "[1]"]),
    "an object": (written('"cost_usd":{"usd":1}'), Reason.BAD_FIELD, ["cost_usd", '{"usd":1}']),
    "a misspelt field": (written('"qualty":0.5'), Reason.BAD_FIELD, ["qualty"]),
    "a field in capitals": (written('"Quality":0.5'), Reason.BAD_FIELD, ["Quality"]),
    "one field too many": (written('"quality":0.5,"model":"x"'), Reason.BAD_FIELD, ["model"]),
    "an array of records": (b"[" + written('"quality":1') + b"]", Reason.BAD_FIELD, ["object"]),
    "deep JSON": (written('"quality":' + "[" * 60_000), Reason.BAD_FIELD, ["quality"]),
    "deep objects": (b'{"a":' * 10_000, Reason.BAD_FIELD, ["a"]),
    "no ticket": (b'{"quality":0.5}', Reason.BAD_FIELD, ["ticket"]),
    "an empty ticket": (b'{"ticket":"","quality":1}', Reason.BAD_FIELD, ["ticket", '""', "1"]),
    "a null ticket": (b'{"ticket":null,"quality":1}', Reason.BAD_FIELD, ["ticket", "null"]),
    "quality below": (written('"quality":-1e-9'), Reason.BAD_FIELD, ["quality", "-1e-9", "0.0"]),
    "quality above": (written('"quality":1.0001'), Reason.BAD_FIELD, ["quality", "1.0001", "1.0"]),
    "cost below": (written('"cost_usd":-0.01'), Reason.BAD_FIELD, ["cost_usd", "-0.01", "0.0"]),
    "cost above": (
        written('"cost_usd":100.01'),
        Reason.BAD_FIELD,
        ["cost_usd", "100.01", str(COST_USD_MAX)],
    ),
    "latency below": (written('"latency_ms":-1'), Reason.BAD_FIELD, ["latency_ms", "-1", "0.0"]),
    "latency above": (
        written('"latency_ms":86400000.1'),
        Reason.BAD_FIELD,
        ["latency_ms", "86400000.1", "86400000.0"],
    ),
    "tokens below": (written('"output_tokens":-1'), Reason.BAD_FIELD, ["output_tokens", "-1"]),
    "tokens above": (
        written('"output_tokens":10000001'),
        Reason.BAD_FIELD,
        ["output_tokens", "10000001", str(OUTPUT_TOKENS_MAX)],
    ),
    "a ticket alone": (written('"quality":null'), Reason.NOTHING_REPORTED, list(REPORTED)),
    "a ticket that is no base64": (
        b'{"ticket":"not base64!","quality":1}',
        Reason.BAD_TICKET,
        [],
    ),
    "a ticket in Greek": (
        '{"ticket":"αβγδ","quality":1}'.encode(),
        Reason.BAD_TICKET,
        ["ASCII"],
    ),
    "a ticket cut short": (
        report(TICKET[:-8], quality=1),
        Reason.BAD_TICKET,
        [],
    ),
    "a short ticket": (report(TICKET[:40], quality=1), Reason.BAD_TICKET, ["30 bytes"]),
    "a forged ticket": (report(FORGED, quality=1), Reason.BAD_TICKET, ["key"]),
    "a foreign encoder": (
        report(decided(1, encoder=5, decided_at_ms=NOW_MS)[0].ticket, quality=1),
        Reason.FOREIGN_ENCODER,
        ["0000000000000005", f"{key_of(ENCODER):016x}"],
    ),
    "too late": (
        report(decided(1, decided_at_ms=NOW_MS - 8 * DAY_MS)[0].ticket, quality=1),
        Reason.TOO_LATE,
        [str(8 * 86_400), f"{OPTIONS.age_s_max:.0f}"],
    ),
    "from the future": (
        report(decided(1, decided_at_ms=NOW_MS + 600_000)[0].ticket, quality=1),
        Reason.FROM_THE_FUTURE,
        ["600", f"{OPTIONS.clock_skew_s_max:.0f}"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_with_field_value_and_limit(case):
    """
    The producer reads it in the dead letter, and needs no other documentation.
    """
    value, reason, named = REFUSED[case]

    found, detail = refused(value)

    assert found == reason
    assert [word for word in named if word not in detail] == []
    assert len(detail) < 300, "a detail is a sentence, not the record again"


def test_every_reason_that_a_record_can_give_is_tried_above():
    """
    A new reason needs a case. DAMAGED is the log's to find, not the record's.
    """
    assert {reason for _, reason, _ in REFUSED.values()} == set(Reason) - {Reason.DAMAGED}


@pytest.mark.parametrize("name", ["expected_cost_usd", "expected_latency_ms"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_a_genuine_ticket_with_a_figure_that_is_none_teaches_nothing_unfinite(name, value):
    """
    A router with a broken catalogue seals nonsense: it must not stop the trainer for ever.
    """
    ticket = decided(1, decided_at_ms=NOW_MS, **{name: value})[0].ticket

    found = take(report(ticket, quality=0.5))

    refusals = [(d.reason, name in d.detail) for d in found.dead]
    assert refusals == ([] if math.isfinite(value) else [(Reason.BAD_TICKET, True)])
    assert (np.abs(found.outcomes.targets) <= VALUE_MAX * ONE).all()


# --- what is accepted


ACCEPTED = {
    "quality 0": ('"quality":0', {"quality": 0.0}),
    "quality 1": ('"quality":1', {"quality": 1.0}),
    "quality -0.0": ('"quality":-0.0', {"quality": 0.0}),
    "quality 1e-400": ('"quality":1e-400', {"quality": 0.0}),
    "cost 0": ('"cost_usd":0', {"cost_usd": 0.0}),
    "cost 100": ('"cost_usd":100', {"cost_usd": RATIO_MAX * 0.01}),
    "latency 0": ('"latency_ms":0', {"latency_ms": 0.0}),
    "latency of a day": ('"latency_ms":86400000', {"latency_ms": RATIO_MAX * 1000.0}),
    "no tokens": ('"output_tokens":0', {"output_tokens": 0}),
    "most tokens": ('"output_tokens":10000000', {"output_tokens": OUTPUT_TOKENS_LEARNED_MAX}),
    "an error": ('"error":true', {"error": True}),
    "no error": ('"error":false', {"error": False}),
    "nulls beside a value": ('"quality":0.25,"cost_usd":null,"error":null', {"quality": 0.25}),
    "spaces": (' "quality" :\n\t0.25 ', {"quality": 0.25}),
    "as long as may be": (padded(RECORD_BYTES_MAX), {"quality": 1.0}),
    "escapes": ('"qu\\u0061lity":0.25', {"quality": 0.25}),
    # JSON leaves it open; refusing would cost every good record a second parse.
    "a key twice, the last counts": ('"quality":0.75,"quality":0.25', {"quality": 0.25}),
    "everything": (
        '"quality":0.5,"cost_usd":0.02,"latency_ms":2000,"output_tokens":7,"error":false',
        {
            "quality": 0.5,
            "cost_usd": 0.02,
            "latency_ms": 2000.0,
            "output_tokens": 7,
            "error": False,
        },
    ),
}


# What one report counts as at most, for decisions that expected 0.01 USD and a second.
LEARNED_MAX = {
    "cost_usd": RATIO_MAX * 0.01,
    "latency_ms": RATIO_MAX * 1000.0,
    "output_tokens": OUTPUT_TOKENS_LEARNED_MAX,
}


def reported(found: Ingested) -> dict[str, float]:
    """What one outcome says was reported, read from its figures and, for quality, its target."""
    out = found.outcomes
    figures = dict(zip(FIGURES, (out.figures * FIGURE_UNITS)[0].tolist(), strict=True))
    known = dict(zip(FIGURES, out.figures_known[0].tolist(), strict=True))
    values = {name: figures[name] for name in figures if known[name]}
    if out.known[0, Target.QUALITY]:
        values["quality"] = float(out.targets[0, Target.QUALITY]) / ONE
    if found.bits[0] & PAID_BIT:
        values["paid_usd"] = found.spent_nano_usd[0, 1] / NANO_USD
    assert known["cost_usd"] == out.known[0, Target.COST]
    assert known["latency_ms"] == out.known[0, Target.LATENCY]
    return values


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_within_bounds_is_learned_as_written(case):
    """
    The limits themselves included; as a mean one report counts as at most 32 times what was
    expected, and an answer as at most 65,536 tokens.
    """
    fields, expected = ACCEPTED[case]

    found = take(written(fields))

    assert (found.dead, len(found.outcomes)) == ([], 1)
    assert reported(found) == pytest.approx({n: float(v) for n, v in expected.items()}, abs=1e-8)
    bits = [i for i in range(8) if found.bits[0] >> i & 1]
    assert [REPORTED[i] for i in bits] == [name for name in REPORTED if name in expected]


def test_the_outcome_is_the_decision_of_the_ticket():
    """
    Model, pool, context, time and id come from the seal; nothing a producer says replaces them.
    """
    ticket = SEALER.open(DECISION.ticket)

    outcomes = take(written('"quality":0.5')).outcomes

    issuers, sequences = split_ids([DECISION.decision_id])
    assert (outcomes.issuers.tolist(), outcomes.sequences.tolist()) == (
        issuers.tolist(),
        sequences.tolist(),
    )
    assert outcomes.decided_at_ms.tolist() == [NOW_MS]
    assert outcomes.models.tolist() == [int(ticket.head["model"])]
    assert outcomes.pools.tolist() == [int(ticket.head["pool"])]
    assert outcomes.contexts.tolist() == [ticket.head["context"].tolist()]


def test_each_outcome_is_of_the_tenant_in_its_ticket():
    """
    Behind any number of candidates, and also where a record between is set aside.
    """
    tenants = [b"acme", b"too late", b"", "für alle".encode()]
    head = heads(4, np.random.default_rng(0), decided_at_ms=NOW_MS, n_candidates=3)
    head["decided_at_ms"][1] -= 30 * DAY_MS
    tickets = SEALER.seal(Issuer(9).take(4), head, np.zeros((4, 3), CANDIDATE), tenants)

    found = INGEST.take([record(report(ticket, quality=0.5)) for ticket in tickets])

    assert [letter.reason for letter in found.dead] == [Reason.TOO_LATE]
    assert found.outcomes.tenant_hashes.tolist() == [hash_of(tenants[i]) for i in (0, 2, 3)]


def test_each_outcome_is_said_by_the_producer_in_its_record():
    """
    Also each part of a record that speaks of several decisions; "" and nothing are nobody's.
    """
    head = heads(4, np.random.default_rng(0), decided_at_ms=NOW_MS)
    first, second, third, fourth = SEALER.seal(
        Issuer(9).take(4), head, np.zeros((4, 0), CANDIDATE), [b"acme"] * 4
    )
    said = [
        record(report(first, quality=0.5, steps=[as_text(second)], source="judge")),
        record(report(third, quality=0.5)),
        record(report(fourth, quality=0.5, source="user")),
    ]

    found = INGEST.take(said)

    judge, user = producer_of("judge"), producer_of("user")
    assert found.outcomes.producers.tolist() == [judge, judge, 0, user]


def test_each_outcome_has_the_traits_of_what_its_ticket_says():
    """
    Task, tags and tenant as the request said them; tickets of before these could be said have the
    tenant's alone.
    """
    said = [Said("law", ("eu",)), Said(), Said("code")]
    tenants, head = (
        [b"acme", b"acme", b""],
        heads(3, np.random.default_rng(0), decided_at_ms=NOW_MS),
    )
    ends = [end_of(one) for one in said]
    tickets = SEALER.seal(Issuer(9).take(3), head, np.zeros((3, 0), CANDIDATE), tenants, None, ends)

    found = INGEST.take([record(report(ticket, quality=0.5)) for ticket in tickets])

    wanted = [
        traits_of(one.task, one.tags, tenant.decode())
        for one, tenant in zip(said, tenants, strict=True)
    ]
    assert found.outcomes.traits.tolist() == [list(one) for one in wanted]
    assert [np.count_nonzero(one) for one in wanted] == [3, 1, 1]


def test_cost_and_latency_are_learned_relative_to_what_was_expected():
    """
    Twice the expected cost is 2, a thousandth of the expected latency 0.001.
    """
    outcomes = take(written('"cost_usd":0.02,"latency_ms":1.0')).outcomes

    learned = outcomes.targets[0] / ONE
    np.testing.assert_allclose(learned[Target.COST] * RATIO_UNIT, 2.0, atol=4 / ONE)
    np.testing.assert_allclose(learned[Target.LATENCY] * RATIO_UNIT, 0.001, atol=4 / ONE)
    assert not outcomes.known[0, Target.QUALITY]


@pytest.mark.parametrize(
    "ticket",
    [TICKET, TICKET.replace("-", "+").replace("_", "/")],
    ids=["base64url", "base64"],
)
def test_both_alphabets_of_base64_open(ticket):
    """
    Producers in other languages use either by mistake; they can't be confused.
    """
    assert set("-_") & set(TICKET), "this ticket is the same in both"

    assert take(report(ticket, quality=1)).dead == []


def test_clients_write_what_ingest_reads():
    """
    `encode_report` is what the router's own service appends to the topic.
    """
    value = encode_report(DECISION.ticket, quality=0.5, error=False)

    assert set(json.loads(value)) == {"ticket", "quality", "error"}
    assert reported(take(value)) == {"quality": 0.5, "error": 0.0}


@pytest.mark.parametrize(
    ("seconds_late", "reason"),
    [
        (OPTIONS.age_s_max, None),
        (OPTIONS.age_s_max + 0.001, Reason.TOO_LATE),
        (-OPTIONS.clock_skew_s_max, None),
        (-OPTIONS.clock_skew_s_max - 0.001, Reason.FROM_THE_FUTURE),
    ],
)
def test_lateness_is_judged_by_the_logs_clock_to_the_millisecond(seconds_late, reason):
    """
    The record alone decides, so reading it again next week gives the same answer.
    """
    found = take(written('"quality":1'), NOW_MS + round(seconds_late * 1000))

    assert [letter.reason for letter in found.dead] == ([reason] if reason else [])


def test_times_beyond_all_reason_are_refused_too():
    """
    The largest and smallest of 64 bits, whose difference does not fit.
    """
    for at_ms in (-(1 << 63), (1 << 63) - 1):
        ticket = decided(1, decided_at_ms=at_ms)[0].ticket
        assert refused(report(ticket, quality=1))[0] in (Reason.TOO_LATE, Reason.FROM_THE_FUTURE)


def test_good_and_bad_are_sorted_whatever_their_order():
    """
    Every record ends on exactly one side, and outcomes keep the records' order.
    """
    decisions = decided(30, decided_at_ms=NOW_MS)
    values = [report(d.ticket, quality=0.5) for d in decisions]
    bad = [value for value, *_ in REFUSED.values() if value is None or len(value) < 2000]
    mixed = [v for pair in zip(values, bad, strict=False) for v in pair]
    records = [record(value, offset=i) for i, value in enumerate(mixed)]

    found = INGEST.take(records)

    n_good = len(mixed) // 2
    expected = split_ids([d.decision_id for d in decisions[:n_good]])[1]
    assert found.outcomes.sequences.tolist() == expected.tolist()
    assert sorted(d.record.offset for d in found.dead) == list(range(1, 2 * n_good, 2))


# --- partial feedback


def test_only_fresh_values_of_an_outcome_are_kept():
    """
    Latency was seen before, quality was not: quality alone is learned, and the row of the third
    outcome, of which nothing is fresh, is gone.
    """
    decisions = decided(3, decided_at_ms=NOW_MS)
    values = [report(d.ticket, quality=0.5, latency_ms=20.0, error=True) for d in decisions]
    found = INGEST.take([record(value) for value in values])
    bit = {name: 1 << i for i, name in enumerate(REPORTED)}

    kept = keep_fresh(
        found.outcomes, np.array([bit["quality"], bit["latency_ms"] | bit["error"], 0], np.uint8)
    )

    assert kept.sequences.tolist() == [0, 1]
    assert kept.known.tolist() == [[True, False, False], [False, False, True]]
    assert (kept.targets != 0).tolist() == kept.known.tolist()
    assert kept.figures_known.tolist() == [[False] * 4, [True, False, False, True]]


@given(st.integers(0, 63))
def test_every_bit_stands_for_the_same_value_on_both_sides(pattern):
    """
    What is reported, what is claimed and what is kept name one field by one bit.
    """
    every = {
        "quality": 0.5,
        "cost_usd": 0.5,
        "latency_ms": 5.0,
        "output_tokens": 5,
        "error": True,
        "paid_usd": 0.25,
    }
    fields = {name: every[name] for i, name in enumerate(REPORTED) if pattern >> i & 1}

    part, whole = take(report(TICKET, **fields)), take(report(TICKET, **every))

    if pattern:
        kept = keep_fresh(whole.outcomes, part.bits)
        assert part.bits.tolist() == [pattern]
        if not pattern & LEARNED_BITS:
            assert len(kept) == 0
            return
        for column in ("known", "targets", "figures_known"):
            expected = getattr(part.outcomes, column)
            assert getattr(kept, column).tolist() == expected.tolist()
    else:
        assert part.dead[0].reason == Reason.NOTHING_REPORTED


def test_nothing_fresh_leaves_nothing():
    """
    A batch of duplicates.
    """
    found = take(written('"quality":1'))

    assert len(keep_fresh(found.outcomes, np.zeros(1, np.uint8))) == 0


# --- anything at all


def check_sorted(value: bytes | None) -> None:
    """The record is an outcome within bounds, or a dead letter with a reason."""
    found = take(value)
    assert len(found.outcomes) + len(found.dead) == 1
    assert (np.abs(found.outcomes.targets) <= VALUE_MAX * ONE).all()
    for letter in found.dead:
        assert letter.reason in Reason
        assert letter.detail


@given(st.binary(max_size=300))
def test_any_bytes_become_a_dead_letter(value):
    """
    Nothing but a genuine ticket is believed, and nothing raises.
    """
    assert len(take(value).dead) == 1


@given(st.binary(min_size=1, max_size=6), st.data())
def test_any_change_of_a_good_record_is_sorted_too(noise, data):
    """
    A few bytes overwritten, anywhere.
    """
    value = written('"quality":0.5,"latency_ms":12,"error":false')
    at = data.draw(st.integers(0, len(value) - 1))

    check_sorted(value[:at] + noise + value[at + len(noise) :])


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from([*REPORTED, "ticket", "model"]) | st.text(max_size=5), anything, max_size=6
)


@given(fields, st.booleans())
def test_any_json_is_sorted_too(fields, genuine):
    """
    With and without a genuine ticket.
    """
    check_sorted(json.dumps({**fields, **({"ticket": TICKET} if genuine else {})}).encode())


@given(st.dictionaries(st.sampled_from(REPORTED), st.floats() | st.integers(-5, 2 * 10**8)))
def test_a_number_is_learned_exactly_if_it_is_within_its_bounds(fields):
    """
    The bounds are the contract; beyond what was expected 32-fold a value counts as that.
    """
    bounds = {
        "quality": 1.0,
        "cost_usd": COST_USD_MAX,
        "latency_ms": LATENCY_MS_MAX,
        "output_tokens": OUTPUT_TOKENS_MAX,
        "paid_usd": COST_USD_MAX,
    }
    fits = bool(fields) and all(
        name != "error"
        and math.isfinite(value)
        and 0 <= value <= bounds[name]
        and (name != "output_tokens" or isinstance(value, int))
        for name, value in fields.items()
    )

    found = take(report(TICKET, **fields))

    assert bool(found.dead) != fits
    if fits:
        assert reported(found) == pytest.approx(
            {
                name: min(float(value), LEARNED_MAX.get(name, math.inf))
                for name, value in fields.items()
            },
            abs=1 / 16,
        )


# --- the published schema


def matches_schema(value: bytes) -> bool:
    try:
        jsonschema.validate(json.loads(value), schema())
    except (jsonschema.ValidationError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_schema_accepts_what_is_accepted(case):
    """
    A producer that validates first loses nothing.
    """
    assert matches_schema(written(ACCEPTED[case][0]))


@pytest.mark.parametrize(
    "case", [case for case, (_, reason, _) in REFUSED.items() if reason == Reason.BAD_FIELD]
)
def test_the_schema_refuses_what_has_a_bad_field(case):
    """
    A producer that validates first has no bad fields.
    """
    assert not matches_schema(REFUSED[case][0])


def test_the_schema_is_stricter_in_nothing_and_looser_in_whole_numbers_alone():
    """
    JSON Schema calls 7.0 an integer. The trainer does not: a count is written as one.
    """
    value = written('"output_tokens":7.0')

    assert matches_schema(value)
    assert refused(value)[0] == Reason.BAD_FIELD


@settings(max_examples=60)
@given(fields)
def test_the_schema_agrees_about_any_json(fields):
    """
    Where a genuine ticket and a value are given, and whole numbers are written as such.
    """
    fields = {n: v for n, v in fields.items() if not (isinstance(v, float) and v.is_integer())}
    value = json.dumps({**fields, "ticket": TICKET}, allow_nan=True).encode()

    found = take(value)

    reasons = {letter.reason for letter in found.dead}
    if Reason.NOTHING_REPORTED not in reasons and "NaN" not in str(fields):
        assert matches_schema(value) == (not reasons) or reasons == {Reason.NOT_JSON}


def test_the_schema_names_every_field_with_its_meaning_and_limits():
    """
    It is what other teams are given to read.
    """
    properties = schema()["$defs"]["Report"]["properties"]

    assert set(properties) == {"ticket", "proof", "traceparent", *REPORTED, *QUALIFIED}
    for name, described in properties.items():
        (meant,) = [x for x in described.get("anyOf", [described]) if x["type"] != "null"]
        assert meant["description"], name
    assert properties["cost_usd"]["anyOf"][0]["maximum"] == COST_USD_MAX
    assert properties["latency_ms"]["anyOf"][0]["maximum"] == LATENCY_MS_MAX
    assert properties["output_tokens"]["anyOf"][0]["maximum"] == OUTPUT_TOKENS_MAX


def test_check_raises_what_take_sets_aside():
    """
    The router's own service refuses at once what the trainer would set aside later.
    """
    for value, reason, _ in REFUSED.values():
        if reason in (Reason.FOREIGN_ENCODER, Reason.TOO_LATE, Reason.FROM_THE_FUTURE):
            continue  # known from the head, which `check` does not read
        with pytest.raises(BadFeedback) as caught:
            INGEST.check(value)
        assert caught.value.reason == reason
    assert INGEST.check(written('"quality":1'))[1] == DECISION.decision_id
