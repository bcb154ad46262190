"""A canary in virtual time: a better policy is promoted, a worse one never, one that falls is undone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from made_up import ENCODER, SEALER, decided, report

from learners.policies.policy import Scores
from load.bench.control.site import Site, SiteOptions
from load.bench.decisions.streams import Stream
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.ticket import key_of
from streams.log.contract import Record
from streams.training.change import (
    PROMOTED,
    ROLLED_BACK,
    TRIED,
    ChangeOptions,
    _judged,
    evidence_of,
    kept,
    stage_of,
)

N = 1200
BAD, GOOD = 0, 1


@dataclass(frozen=True)
class Always:
    """Nearly always one model."""

    column: int

    def probabilities(self, scores: Scores) -> np.ndarray:
        found = np.full(scores.utility.shape, 0.02)
        found[:, self.column] = 1.0 - found.sum(axis=1) + 0.02
        return found


def stream(good: np.ndarray | float = 0.9, bad: float = 0.5, seed: int = 1) -> Stream:
    """Two models as dear as each other, right in so many of their answers."""
    rng = np.random.default_rng(seed)
    odds = np.column_stack([np.full(N, bad), np.broadcast_to(good, N)])
    return Stream(
        seed=seed,
        embeddings=rng.standard_normal((N, 8)).astype(np.float32),
        contexts=np.zeros((N, 64), np.float32),
        prompt_tokens=np.full(N, 100),
        quality=(rng.random((N, 2)) < odds).astype(float),
        cost_usd=np.full((N, 2), 0.001),
        price_usd=np.full(2, 0.001),
        best_single_usd=0.001,
        penalty=0.0,
        due=np.zeros(N),
    )


CHANGE = ChangeOptions(mode="canary", name="trial", share=0.3, holdback=0.2)


def trial(of: Stream, incumbent: int, candidate: int, change: ChangeOptions = CHANGE):
    """Where the change ends, what is known of it, its steps, and what was chosen."""
    options = SiteOptions(
        stream_s=600.0,
        step_s=5.0,
        late_s=30.0,
        policy=Always(incumbent),
        candidate=Always(candidate),
        change=change,
    )
    with Site(of, options) as site:
        chosen = site.play()
        counts = dict(site.trainer.state.counts)
        return stage_of(change, counts), counts, kept(site.folder), chosen


def test_a_better_policy_is_promoted_and_then_decides_nearly_all():
    """
    Outcomes come half a minute late; the step is kept with what it was taken by.
    """
    stage, counts, steps, chosen = trial(stream(), incumbent=BAD, candidate=GOOD)

    assert stage == PROMOTED
    assert [step.step for step in steps] == [PROMOTED]
    assert steps[0].low > 0.0 and steps[0].better_by == pytest.approx(0.4, abs=0.2)
    assert steps[0].share == 0.8
    assert (chosen[:200] == GOOD).mean() < 0.4
    assert (chosen[-200:] == GOOD).mean() == pytest.approx(0.8, abs=0.1)
    assert evidence_of(CHANGE, PROMOTED, counts).n > 0, "it is watched on"


def test_a_worse_policy_is_rolled_back_and_then_decides_nothing():
    stage, _, steps, chosen = trial(stream(), incumbent=GOOD, candidate=BAD)

    assert stage == ROLLED_BACK
    assert [step.step for step in steps] == [ROLLED_BACK]
    assert steps[0].high < 0.0
    assert (chosen[-200:] == BAD).mean() < 0.06


@pytest.mark.parametrize("seed", range(4))
def test_a_policy_that_is_as_good_stays_a_canary(seed):
    stage, counts, steps, _ = trial(stream(0.7, 0.7, seed), incumbent=BAD, candidate=GOOD)

    assert (stage, steps) == (TRIED, [])
    evidence = evidence_of(CHANGE, TRIED, counts)
    low, high = evidence.bounds(CHANGE.error_rate)
    assert low < 0.0 < high
    assert evidence.n == counts["learned"], "each outcome counts once"


def test_a_promoted_policy_that_falls_is_taken_back_by_itself():
    """
    It was better for the first half; the share that the former policy kept shows the fall.
    """
    falls = np.where(np.arange(N) < 400, 0.98, 0.05)
    stage, _, steps, chosen = trial(stream(falls, 0.6), incumbent=BAD, candidate=GOOD)

    assert stage == ROLLED_BACK
    assert [step.step for step in steps] == [PROMOTED, ROLLED_BACK]
    assert (chosen[-100:] == GOOD).mean() < 0.06


def test_a_margin_that_is_not_surely_cleared_promotes_nobody():
    wide = replace(CHANGE, margin=0.6)
    assert trial(stream(), incumbent=BAD, candidate=GOOD, change=wide)[0] == TRIED


@pytest.mark.parametrize("weight", [None, 0.0])
def test_a_quality_that_its_weight_left_out_is_not_taken_for_none(weight):
    """A judge of little weight would have made both policies look bad, by the share of each."""
    one = decided(1, seed=7)[0]
    said = report(one.ticket, quality=0.9, weight=weight)
    record = Record(0, 0, one.decided_at_ms, None, said)
    taken = Ingest(SEALER, key_of(ENCODER), FeedbackOptions()).take([record])
    assert _judged(taken, 0, int(taken.bits[0])) == (weight is None)
