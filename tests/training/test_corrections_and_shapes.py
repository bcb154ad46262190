"""Feedback of every shape through a trainer: each once, in any order, corrections exactly."""

from __future__ import annotations

import base64
import itertools

import numpy as np
import pytest
from made_up import SEALER, decided, report
from trainer_ground import Ground

from learners.targets import ONE
from streams.feedback.shapes import compared, predicted, shared_out
from streams.feedback.ticket import split_ids
from streams.feedback.trace import trace
from streams.training.trainer import CORRECTED, DUPLICATE, LEARNED, RECORDS

A, B, C = decided(3, seed=7)


def learned(folder, *values: bytes, restart: bool = False):
    """The state of a trainer that has read these records; with `restart`, one trainer for each."""
    ground = Ground(folder)
    batches = [[one] for one in values] if restart else [list(values)]
    for batch in batches:
        ground.write(batch)
        trainer = ground.trainer()
        while trainer.step():
            pass
        trainer.publish_if_due(at_once=True)
        trainer.close()
    return ground.saved()


def text(decision) -> str:
    return base64.urlsafe_b64encode(decision.ticket).decode()


def qualities(*decisions) -> list[float]:
    return predicted([SEALER.open_body(one.ticket)[1] for one in decisions])


def at_of(decision) -> tuple[int, int]:
    issuers, sequences = split_ids([decision.decision_id])
    return int(issuers[0]), int(sequences[0])


REVISIONS = [
    report(A.ticket, quality=0.9),
    report(A.ticket, quality=0.4, revision=1),
    report(A.ticket, quality=0.6, revision=2),
]


@pytest.mark.parametrize("restart", [False, True])
def test_a_correction_of_what_did_not_count_for_its_weight_counts(tmp_path, restart):
    """
    A judge's word of little weight comes first, a person's takes its place: whichever was drawn.
    A higher revision takes the place of that one, a lower or repeated one does not.
    """
    light = report(A.ticket, quality=0.9, weight=0.0)
    later = [report(A.ticket, quality=q, revision=r) for q, r in ((0.4, 2), (0.5, 1), (0.7, 2))]
    alone = learned(tmp_path / "alone", report(A.ticket, quality=0.4))
    for n, said in enumerate(([light, *later], [light, later[1], later[0], later[2]])):
        found = learned(tmp_path / f"{n}", *said, restart=restart)
        assert found.learned.digest() == alone.learned.digest()
        assert found.seen.kept(*at_of(A)) == (round(0.4 * ONE), 2)
    assert learned(tmp_path / "light", light).seen.kept(*at_of(A)) is None


@pytest.mark.parametrize("restart", [False, True])
def test_a_revision_of_no_weight_can_be_corrected_by_a_higher_one_alone(tmp_path, restart):
    light = report(A.ticket, quality=0.9, revision=3, weight=0.0)
    later = [report(A.ticket, quality=0.4, revision=r) for r in (2, 3, 4)]
    nothing = learned(tmp_path / "nothing", light)
    found = learned(tmp_path / "a", light, *later[:2], restart=restart)
    assert found.learned.digest() == nothing.learned.digest()
    found = learned(tmp_path / "b", light, *later, restart=restart)
    alone = learned(tmp_path / "alone", report(A.ticket, quality=0.4))
    assert found.learned.digest() == alone.learned.digest()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("restart", [False, True])
def test_of_several_revisions_the_highest_is_all_that_is_learned_in_any_order(
    tmp_path, order, restart
):
    """
    The same bits as if nothing else had ever been said; also where the trainer is another one.
    """
    found = learned(tmp_path / "a", *[REVISIONS[i] for i in order], restart=restart)
    alone = learned(tmp_path / "b", report(A.ticket, quality=0.6))

    assert found.learned.digest() == alone.learned.digest()
    assert found.counts[RECORDS] == 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("restart", [False, True])
def test_a_correction_takes_out_what_another_producer_has_put_in(tmp_path, order, restart):
    """
    Sums are kept apart by producer; what is taken out is taken from where it is.
    """
    said = [
        report(A.ticket, quality=0.9, source="judge"),
        report(A.ticket, quality=0.4, revision=1, source="user"),
        report(A.ticket, quality=0.6, revision=2, source="judge"),
    ]
    found = learned(tmp_path / "a", *[said[i] for i in order], restart=restart)
    alone = learned(tmp_path / "b", report(A.ticket, quality=0.6))

    assert found.learned.digest() == alone.learned.digest()


def test_a_correction_is_counted_and_the_same_one_again_is_a_duplicate(tmp_path):
    found = learned(tmp_path, *REVISIONS[:2], REVISIONS[1])

    assert (found.counts[CORRECTED], found.counts[LEARNED], found.counts[DUPLICATE]) == (1, 2, 1)


def test_a_second_value_without_a_revision_is_a_duplicate_as_ever(tmp_path):
    found = learned(tmp_path / "a", report(A.ticket, quality=0.9), report(A.ticket, quality=0.1))
    alone = learned(tmp_path / "b", report(A.ticket, quality=0.9))

    assert found.learned.digest() == alone.learned.digest()
    assert found.counts[DUPLICATE] == 1


def test_a_comparison_is_learned_as_a_quality_of_both(tmp_path):
    """
    By Bradley and Terry; saying it again changes nothing.
    """
    win = report(A.ticket, better_than=text(B))
    found = learned(tmp_path / "a", win, win)
    a, b = qualities(A, B)
    winner, loser = compared(a, loser=b)
    alone = learned(
        tmp_path / "b", report(A.ticket, quality=winner), report(B.ticket, quality=loser)
    )

    assert found.learned.digest() == alone.learned.digest()
    assert (found.counts[RECORDS], found.counts[LEARNED], found.counts[DUPLICATE]) == (4, 2, 2)


def test_the_outcome_of_a_session_is_shared_out_over_its_steps(tmp_path):
    found = learned(tmp_path / "a", report(A.ticket, quality=0.5, steps=[text(B), text(C)]))
    each = zip((A, B, C), shared_out(0.5, qualities(A, B, C)), strict=True)
    alone = learned(tmp_path / "b", *[report(one.ticket, quality=q) for one, q in each])

    assert found.learned.digest() == alone.learned.digest()


def test_an_outcome_of_no_weight_is_counted_and_not_learned(tmp_path):
    found = learned(tmp_path, report(A.ticket, quality=0.9, weight=0.0, source="judge"))

    assert found.learned.n_values.tolist() == [0, 0, 0]
    assert (found.counts[LEARNED], found.counts["source.judge"]) == (1, 1)


def test_who_is_not_sure_moves_an_estimate_less(tmp_path):
    (expected,) = qualities(A)
    found = learned(tmp_path / "a", report(A.ticket, quality=1.0, confidence=0.5))
    alone = learned(tmp_path / "b", report(A.ticket, quality=0.5 + 0.5 * expected))

    assert found.learned.digest() == alone.learned.digest()


REFUSED = {
    "quality too": ({"quality": 1.0, "better_than": text(B)}, "better_than comes without"),
    "itself": ({"better_than": text(A)}, "one decision is named twice"),
    "steps without": ({"steps": [text(B)], "error": True}, "steps come with quality alone"),
    "cost of a session": ({"steps": [text(B)], "quality": 1.0, "cost_usd": 1.0}, "alone"),
    "no ticket": ({"better_than": "AAAA"}, "bytes"),
    "weight": ({"quality": 1.0, "weight": 1.5}, "weight"),
    "revision": ({"quality": 1.0, "revision": 8}, "revision"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_one_dead_letter_and_nothing_is_learned(tmp_path, case):
    fields, why = REFUSED[case]
    ground = Ground(tmp_path)
    ground.write([report(A.ticket, **fields)])
    trainer = ground.trainer()
    trainer.step()

    assert ground.dead() == [b"0/0"]
    assert trainer.state.learned.n_values.sum() == 0
    assert why in ground.log().records("fairlead.feedback.dead-letter")[0].value.decode()


def test_a_trace_says_where_outcomes_are_and_what_was_learned_of_them(tmp_path):
    ground = Ground(tmp_path)
    ground.write([*REVISIONS[:2], report(A.ticket, better_than=text(A))])
    trainer = ground.trainer()
    while trainer.step():
        pass
    trainer.publish_if_due(at_once=True)
    ground.write([report(A.ticket, cost_usd=0.5)])
    state = ground.saved()

    found = trace(ground.log(), state.seen, state.offsets, A.decision_id)

    became = [(one["offset"], one["became"], one["reason"]) for one in found["records"]]
    assert became == [
        (0, "read", ""),
        (1, "read", ""),
        (2, "refused", "bad_field"),
        (3, "waiting", ""),
    ]
    assert [name for name, is_so in found["learned"].items() if is_so] == ["quality"]
    assert (found["quality"], found["revision"]) == (pytest.approx(0.4, abs=1e-3), 1)
    assert np.isclose(found["records"][1]["said"]["quality"], 0.4)


def test_a_trace_says_which_other_decisions_a_record_names(tmp_path):
    """
    By id, for the one that it was said of and for the others.
    """
    ground = Ground(tmp_path)
    said = [report(A.ticket, better_than=text(B)), report(A.ticket, quality=0.5, steps=[text(C)])]
    ground.write(said)
    a, b, c = (one.decision_id.hex() for one in (A, B, C))
    expected = {
        a: [{"better_than": b}, {"quality": 0.5, "steps": [c]}],
        b: [{"decision_id": a, "better_than": b}],
        c: [{"decision_id": a, "quality": 0.5, "steps": [c]}],
    }
    for decision_id, words in expected.items():
        found = trace(ground.log(), None, {}, bytes.fromhex(decision_id))
        assert [one["said"] for one in found["records"]] == words


def test_a_trace_of_a_decision_nobody_reported_has_no_record(tmp_path):
    found = trace(Ground(tmp_path).log(), None, {}, B.decision_id)
    assert found["records"] == [] and not any(found["learned"].values())
