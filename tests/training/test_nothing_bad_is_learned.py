"""Whatever is mixed into the log, the learned state is that of the valid records alone.

One property over log, ingest and trainer together, where the other files look at each alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from decision_batches import batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import DAY_MS, ENCODER, MEMORY, NOW_MS, SEALER, decided, heads, report, reports
from memory_log import MemoryLog, Storage

from learners.estimates.estimator import BlendOptions, Estimator
from learners.targets import COST_USD_MIN, LATENCY_MS_MIN
from streams.feedback.decisions import encode
from streams.feedback.ticket import CANDIDATE, Issuer, Sealer, key_of
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, State
from streams.training.trainer import Trainer, TrainerOptions

OPTIONS = TrainerOptions(memory=MEMORY, records_max=16, wait_s=0.0, publish_s=3600.0)
GOOD = [value for parts in reports(decided(12, seed=5)) for value in parts]
# Genuine in every way, but of decisions no valid record speaks of.
SPARE = decided(6, seed=6, decided_at_ms=NOW_MS - 1000)

FLOORS = (COST_USD_MIN, LATENCY_MS_MIN)


def flip(value: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(value)
    changed[place % len(value)] ^= 1 << bit
    return bytes(changed)


def with_ticket(ticket: bytes) -> bytes:
    return report(ticket, quality=0.9, latency_ms=1.0)


spare = st.sampled_from([decision.ticket for decision in SPARE])
places = st.integers(0, 10_000), st.integers(0, 7)
numbers = st.sampled_from(
    ["1e999", "-1e999", "NaN", "Infinity", "-0.5", "1.5", '"1"', "[1]", "{}", "true", "1" * 400]
)


def sealed(**columns: object) -> bytes:
    """A genuine ticket of a decision that must not be learned from."""
    head = heads(1, np.random.default_rng(0), **columns)
    return SEALER.seal(Issuer(77).take(1), head, np.zeros((1, 0), CANDIDATE), [b""])[0]


bad = st.one_of(
    st.none(),
    st.binary(max_size=100),
    st.builds(bytes, st.integers(65_537, 70_000)),
    st.text(max_size=30).map(str.encode),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    # A good record with one value that is none.
    st.builds(
        lambda ticket, name, number: report(ticket, **{name: "?"}).replace(b'"?"', number.encode()),
        spare,
        st.sampled_from(["quality", "cost_usd", "latency_ms"]),
        numbers,
    ).filter(lambda value: b'cost_usd": 1.5' not in value and b'latency_ms": 1.5' not in value),
    # A genuine ticket with one bit changed; a forged one; one of another router; stale; too early.
    st.builds(flip, spare, *places).map(with_ticket),
    st.builds(
        lambda key: decided(1, sealer=Sealer([key]))[0].ticket, st.binary(min_size=32, max_size=32)
    ).map(with_ticket),
    st.builds(lambda encoder: sealed(encoder=encoder), st.integers(0, 9)).map(with_ticket),
    st.builds(
        lambda at_ms: sealed(decided_at_ms=at_ms),
        st.one_of(
            st.integers(-(1 << 63), NOW_MS - 8 * DAY_MS),
            st.integers(NOW_MS + DAY_MS, (1 << 63) - 1),
        ),
    ).map(with_ticket),
    st.builds(
        lambda name, value: sealed(decided_at_ms=NOW_MS, **{name: value}),
        st.sampled_from(["expected_cost_usd", "expected_latency_ms"]),
        st.sampled_from([np.nan, np.inf, -np.inf]),
    ).map(with_ticket),
    # A good record cut short, or followed by something.
    st.builds(lambda value, n: value[: n % len(value)], st.sampled_from(GOOD), st.integers(0)),
    st.builds(
        lambda value, n: value + n, st.sampled_from(GOOD), st.binary(min_size=1).filter(bytes.strip)
    ),
)


def learned_from(folder: Path, values: list[tuple[int, bytes | None]]) -> tuple[State, MemoryLog]:
    """What a trainer makes of records in two partitions; and that it can be saved and loaded."""
    log = MemoryLog(Storage({FEEDBACK: 2}), lambda: NOW_MS)
    for partition, value in values:
        log.place(FEEDBACK, partition, value)
    trainer = Trainer(log, Store(Folder(str(folder))), SEALER, ENCODER, OPTIONS, lambda: NOW_MS)
    while trainer.step():
        pass
    trainer.publish_if_due(at_once=True)
    return Loader(Store(Folder(str(folder))), ENCODER, MEMORY).load_newest()[0], log


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The state of the valid records alone."""
    return learned_from(tmp_path_factory.mktemp("clean"), [(0, value) for value in GOOD])[0]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(garbage=st.lists(bad, min_size=1, max_size=25), rng=st.randoms(use_true_random=False))
def test_garbage_among_valid_records_changes_nothing(clean, garbage, rng):
    """
    Anything at all, anywhere: every bit of the learned state is as without it, each piece of
    garbage is one dead letter with its own bytes, and every learned number is finite.
    """
    values = [(rng.randrange(2), value) for value in [*GOOD, *garbage]]
    rng.shuffle(values)

    with tempfile.TemporaryDirectory() as folder:
        state, log = learned_from(Path(folder), values)

    assert state.learned.digest() == clean.learned.digest()
    assert len(state.seen) == len(clean.seen)
    assert state.counts["learned"] == clean.counts["learned"] == len(GOOD)
    assert len(log.records(DEAD_LETTER)) == len(garbage) == len(values) - len(GOOD)
    where = {f"{r.partition}/{r.offset}".encode(): r.value for r in log.records(FEEDBACK)}
    originals = [where[record.key] for record in log.records(DEAD_LETTER)]
    assert sorted(map(repr, originals)) == sorted(map(repr, garbage))
    check_finite(state)


def check_finite(state: State) -> None:
    """All that was learned, and what a router would make of it."""
    for arrays in state.learned.statistics().values():
        for array in arrays.values():
            assert np.isfinite(array).all()
    models = sorted({model for model, _, _ in state.learned.models.sums})
    if not models:
        return
    estimator = Estimator(state.learned, models, np.full(len(models), np.nan), BlendOptions())
    estimates = estimator.estimate(state.learned.history.rows["contexts"][:5])
    for array in (estimates.mean, estimates.deviation, estimates.noise):
        assert np.isfinite(array).all()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1), st.floats(0, 100), st.floats(0, 86_400_000), st.integers(0, 10**7)
        ),
        min_size=1,
        max_size=10,
    ),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
)
@settings(max_examples=25)
def test_whatever_is_within_bounds_is_learned_as_finite_numbers(values, expected):
    """
    Extremes beside each other: a call that was free, a stated cost of 1e38, a day's latency.
    """
    decisions = decided(len(values), expected_cost_usd=expected[0], expected_latency_ms=expected[1])
    names = ("quality", "cost_usd", "latency_ms", "output_tokens")
    written = [
        (0, report(decision.ticket, **dict(zip(names, row, strict=True))))
        for decision, row in zip(decisions, values, strict=True)
    ]

    with tempfile.TemporaryDirectory() as folder:
        state, log = learned_from(Path(folder), written)

    assert log.records(DEAD_LETTER) == []
    # Where next to nothing was expected there is no ratio to learn.
    related = [
        len(values) * (stated >= floor) for stated, floor in zip(expected, FLOORS, strict=True)
    ]
    assert state.learned.n_values.tolist() == [len(values), *related]
    check_finite(state)


@settings(max_examples=30)
@given(
    garbage=st.lists(
        st.one_of(
            st.none(),
            st.binary(max_size=60),
            st.builds(flip, st.just(encode([batch(2)])[0][1]), *places),
            st.builds(lambda n: encode([batch(2)])[0][1][:n], st.integers(0, 3000)),
        ),
        max_size=8,
    )
)
def test_garbage_among_logged_decisions_stops_nothing(clean, garbage):
    """
    The trainer audits the decision log; what it can't read there is passed over.
    """
    log = MemoryLog(Storage({DECISIONS: 1}), lambda: NOW_MS)
    for value in garbage:
        log.place(DECISIONS, 0, value, at_ms=NOW_MS - DAY_MS)
    for value in GOOD:
        log.place(FEEDBACK, 0, value)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(log, Store(Folder(folder)), SEALER, ENCODER, OPTIONS, lambda: NOW_MS)
        while trainer.step():
            pass

    assert trainer.state.learned.digest() == clean.learned.digest()
    assert trainer.state.audit_offsets == {0: len(garbage)}


def test_the_valid_records_are_valid_and_the_others_would_be():
    """
    Else the properties above would say nothing.
    """
    assert key_of(ENCODER) and len(GOOD) > 12
    with tempfile.TemporaryDirectory() as folder:
        state, _ = learned_from(Path(folder), [(0, with_ticket(d.ticket)) for d in SPARE])
    assert state.counts == {"records": len(SPARE), "learned": len(SPARE)}
