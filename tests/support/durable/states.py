"""Learned states, made as a trainer makes them, but without one."""

from __future__ import annotations

from made_up import ENCODER, MEMORY, NOW_MS, SEALER, decided, reports

from learners.estimates.learned import Learned, MemoryOptions
from streams.feedback.feedback import FeedbackOptions, Ingest, keep_fresh
from streams.feedback.ticket import key_of
from streams.log.contract import Record
from streams.training.state import State

INGEST = Ingest(SEALER, key_of(ENCODER), FeedbackOptions(age_s_max=3650 * 86_400.0))


def new_state(memory: MemoryOptions = MEMORY) -> State:
    return State(ENCODER, Learned(memory), topic_id="topic")


def learn(state: State, n: int, seed: int = 0, **columns: object) -> None:
    """What the trainer does, for n more decisions."""
    values = [part for parts in reports(decided(n, seed=seed, **columns)) for part in parts]
    found = INGEST.take([Record(0, i, NOW_MS, None, value) for i, value in enumerate(values)])
    assert found.dead == []
    out = found.outcomes
    fresh = state.seen.claim(out.issuers, out.sequences, found.bits, out.decided_at_ms)
    state.learned.update(keep_fresh(out, fresh))
    state.offsets[0] = state.offsets.get(0, 0) + len(values)
    state.dead_letter_offsets[0] = seed
    state.audit_offsets[0] = 2 * seed
    state.learned_at_ms = NOW_MS + seed
    state.count("learned", n)
