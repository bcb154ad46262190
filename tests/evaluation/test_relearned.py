"""Snapshots that are gone are learned again from the feedback: each prediction has the same bits."""

from __future__ import annotations

import pytest
from decided_by import decided_by
from router_bench import embedding, router
from waiting import until

from infra.control.rollback import roll_back
from learners.estimates.learned import MemoryOptions
from learners.policies.greedy import Greedy
from load.evaluation.relearned import Lessons
from load.evaluation.replayed import replayed
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK

N, ROUNDS = 8, 5


def decide_and_learn(up, n_rounds: int = ROUNDS) -> list[int]:
    """Each round decides from a snapshot of its own; the versions."""
    versions = []
    for number in range(n_rounds):
        made = [up.route(embedding_f32=embedding(i), tenant="t") for i in range(N)]
        for i, one in enumerate(made):
            up.report(one, quality=(i + number) % 3 * 0.4, cost_usd=0.001 * (i + 1))
        up.learn()
        assert up.look()
        versions.append(up.store.newest())
        up.clock.now_ms += 1000
    return versions


def asked_again(up, **lessons):
    """What comes of all decisions that are logged by now."""
    said = {"log": up.log, "sealer": Sealer(up.keys), "feedback": up.feedback_options} | lessons
    return replayed(up.logged_decisions(), decided_by(up), up.store, Lessons(**said))


@pytest.fixture
def up(tmp_path):
    with router(tmp_path, policy=Greedy()) as one:
        yield one


def test_from_nothing_and_from_one_that_is_kept(up):
    first, *_, last = decide_and_learn(up)
    up.store.prune(kept=1)
    decide_and_learn(up)
    until(lambda: len(up.logged_decisions()) == 2 * ROUNDS * N)
    assert first not in up.store.versions()

    found = asked_again(up)

    assert found.replayed == found.qualities_identical == 2 * ROUNDS * N
    assert (found.without_snapshot, found.relearned) == (0, ROUNDS - 1)
    assert last in up.store.versions()


def test_with_other_keys_nothing_is_learned_so_other_bits_are_found(up):
    """A check that can't fail would be none."""
    decide_and_learn(up)
    up.store.prune(kept=1)
    until(lambda: len(up.logged_decisions()) == ROUNDS * N)
    found = asked_again(up, sealer=Sealer([b"k" * len(up.keys[0])]))
    assert not found.sound
    assert found.differing


def test_what_the_log_has_not_any_more_is_counted(up):
    """Neither from nothing, nor across where somebody went back to an earlier snapshot."""
    versions = decide_and_learn(up)
    roll_back(up.store, versions[1], MemoryOptions(), up.clock())
    up.trainer.close()
    up.trainer = up.trainer_anew()
    decide_and_learn(up)
    up.store.prune(kept=1)
    until(lambda: len(up.logged_decisions()) == 2 * ROUNDS * N)
    found = asked_again(up)
    # Back is gone between the versions that the second half's first decisions and others are from.
    assert found.replayed == found.qualities_identical == (ROUNDS + 1) * N
    assert found.without_snapshot == (ROUNDS - 1) * N

    up.log.delete_before(FEEDBACK, up.log.end_offsets(FEEDBACK)[0])
    found = asked_again(up)
    assert found.replayed == found.qualities_identical == N  # decided before any snapshot
    assert found.without_snapshot == (2 * ROUNDS - 1) * N


def test_it_is_kept_for_three_days(up):
    first = decide_and_learn(up)[0]
    up.store.prune(kept=1)
    assert first in up.store.reached()
    up.clock.now_ms += 5 * 24 * 3_600_000
    decide_and_learn(up)
    up.store.prune(kept=1)
    assert first not in up.store.reached()
