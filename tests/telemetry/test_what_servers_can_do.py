"""What a server can do is learned from what it does, whoever sees it, and bounds what it is given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from full_server import LAG_S, run

from learners.servers.held import Stated
from learners.servers.service import EDGES, TIMED, Sums, bucket_of, service_of
from learners.work import WorkRates

SLOTS, ANSWER_S = 8, 2.0
TRUE_PER_S = SLOTS / ANSWER_S
SEEDS = range(8)
PAGE, CALLERS = True, False


@pytest.mark.parametrize("page", [PAGE, CALLERS], ids=["page", "callers"])
@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_capacity_is_learned_from_a_server_that_is_asked_for_more_than_it_can(page, spread, seed):
    """
    After 300 answers within 15 %, and the queue that it is let have keeps it busy all the time:
    whoever is let in after half a minute waits no longer than a first token may take in all.
    """
    found = run(2.5 * TRUE_PER_S, 100, page=page, spread=spread, seed=seed)
    known = found.known[-1]

    assert known.of.service.finished >= 300 and known.of.service.full
    assert known.of.service.capacity_per_s == pytest.approx(TRUE_PER_S, rel=0.15)
    assert known.of.service.alone_s == pytest.approx(ANSWER_S, rel=0.5)
    assert found.busy(50, 95) >= 0.98 * SLOTS
    late = [w for w, at in zip(found.waited_s, found.answered_s, strict=True) if at > 60]
    assert max(late) < 3.5


@pytest.mark.parametrize("kind", ["vllm", "sglang", "tgi"])
def test_capacity_is_learned_from_the_page_of_each_kind_that_counts_requests(kind):
    """
    Within 15 % on each of eight seeds, by the page as that kind writes it. Servers of the other kinds, llama.cpp's and
    those without a page, are learned of by their callers' answers, as above.
    """
    for seed in SEEDS:
        service = run(2.5 * TRUE_PER_S, 100, kind=kind, seed=seed).known[-1].of.service
        assert service.finished >= 300
        assert service.capacity_per_s == pytest.approx(TRUE_PER_S, rel=0.15)


@pytest.mark.parametrize("page", [PAGE, CALLERS], ids=["page", "callers"])
def test_the_lengths_that_it_is_learned_of_are_those_of_all_that_was_finished(page):
    """
    A page counts tokens in every window, and tells what was finished of some seconds together: of both the same
    requests count. The work of a request is inferred from these lengths.
    """
    for per_s in (0.5 * TRUE_PER_S, 2.5 * TRUE_PER_S):
        of = run(per_s, 100, page=page).known[-1].of
        assert of.prompt_tokens == pytest.approx(7.0, rel=0.05)
        assert of.output_tokens == pytest.approx(8.0, rel=0.05)


@pytest.mark.parametrize("patience_s", [4.0, 8.0])
@pytest.mark.parametrize("page", [PAGE, CALLERS], ids=["page", "callers"])
def test_who_gives_up_waiting_makes_no_server_faster(page, patience_s):
    """
    Those behind him wait less, but not because more was done: over eight seeds within 10 %, where it was twice as fast.
    """
    for seed in SEEDS:
        found = run(2.5 * TRUE_PER_S, 60, page=page, patience_s=patience_s, seed=seed)
        service = found.known[-1].of.service
        assert service.capacity_per_s == pytest.approx(TRUE_PER_S, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_callers_alone_see_is_found_before_their_patience_is_at_its_end(seed):
    """
    Asked for two and a half times what it does, by callers who wait for twenty seconds: when it is
    found no more wait than are answered within that.
    """
    known = run(10.0, 20, page=False, seed=seed).known
    found_s = next(at for at, one in enumerate(known, 1) if one and one.held_most < math.inf)

    assert (10.0 - 4.0) * (found_s + LAG_S) < 20.0 * 4.0


def test_the_less_answers_vary_the_sooner_a_limit_is_believed():
    """
    Twenty took 2 s among five, thirty 4 s among sixteen: a limit if all took about as long. What nobody
    squared is guessed to vary by half.
    """

    def seen(vary):
        few, many = 20 * 2.0**2 * (1 + vary**2), 30 * 4.0**2 * (1 + vary**2)
        return {
            bucket_of(5): Sums(8.0, 40.0, 0.0, 20, few),
            bucket_of(16): Sums(7.5, 120.0, 0.0, 30, many),
        }

    assert service_of(seen(0.1), seen(0.1), noise=TIMED).full
    assert not service_of(seen(1.0), seen(1.0), noise=TIMED).full
    guessed = {bucket: replace(of, squared=0.0) for bucket, of in seen(0.1).items()}
    assert not service_of(guessed, guessed, noise=TIMED).full


@pytest.mark.parametrize("page", [PAGE, CALLERS], ids=["page", "callers"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_refused_for_a_limit_that_nobody_knows(page, seed):
    """
    A server that is half busy has only shown what it can do at least.
    """
    found = run(0.5 * TRUE_PER_S, 120, page=page, seed=seed)
    known = found.known[-1]

    assert found.refused == 0 and math.isinf(known.held_most)
    assert not known.of.service.full and known.load < 1.0


@pytest.mark.parametrize("page", [PAGE, CALLERS], ids=["page", "callers"])
def test_a_server_that_becomes_faster_is_given_more(page):
    found = run(2.5 * TRUE_PER_S, 240, page=page, faster_at_s=60.0)

    assert found.known[55].of.service.capacity_per_s == pytest.approx(TRUE_PER_S, rel=0.15)
    assert found.known[-1].of.service.capacity_per_s == pytest.approx(2 * TRUE_PER_S, rel=0.15)
    assert found.answered_per_s(180, 238) >= 0.97 * 2 * TRUE_PER_S


@pytest.mark.parametrize("load", [0.3, 0.5, 0.65, 0.8, 2.5])
def test_how_many_a_server_works_on_at_once_is_known_before_it_is_full(load):
    """
    To the request, of any load at which some wait; or not at all.
    """
    found = [run(load * TRUE_PER_S, 120, spread=0.8, seed=n).known[-1].of.at_once for n in SEEDS]

    assert set(found) <= {0, SLOTS}
    assert load < 0.8 or found == [SLOTS] * len(SEEDS)


def test_a_server_is_not_full_where_some_wait_now_and_then():
    """
    Of two at once and half of what they do, one of a hundred is refused, not one of twenty; at four
    fifths what it does is learned within 15 % on average.
    """
    two = {"slots": 2, "answer_s": 0.8, "spread": 0.8}
    half = [run(0.5 * 2.5, 240, **two, seed=seed) for seed in SEEDS]
    most = [run(0.8 * 2.5, 240, **two, seed=seed).known[-1].of.service for seed in SEEDS]

    asked = sum(one.refused + len(one.answered_s) for one in half)
    assert sum(one.refused for one in half) <= 0.01 * asked
    assert sum(of.capacity_per_s for of in most) / len(most) == pytest.approx(2.5, rel=0.15)


@pytest.mark.parametrize("load", [0.65, 0.8])
def test_what_a_server_can_do_is_learned_also_where_it_is_not_asked_for_all_of_it(load):
    """
    In windows in which some wait it is idle at times, too: by what it finished in them it would do
    a tenth to a fifth less.
    """
    found = [run(load * 10.0, 240, slots=4, answer_s=0.4, spread=0.8, seed=s) for s in range(4)]
    learned = [one.known[-1].of.service.capacity_per_s for one in found]

    assert np.mean(learned) == pytest.approx(10.0, rel=0.08)


def test_what_is_stated_counts_until_it_is_learned():
    stated = Stated(rates=WorkRates(request_s=0.5), known=True)
    found = run(2.5 * TRUE_PER_S, 100, page=CALLERS, stated=stated)
    early = next(one for one in found.known if one is not None and one.of.service.finished)

    assert early.of.service.full and early.of.service.capacity_per_s < 0.8 * TRUE_PER_S
    assert found.known[-1].of.service.capacity_per_s == pytest.approx(TRUE_PER_S, rel=0.15)


def test_a_stated_limit_on_requests_at_once_is_kept():
    found = run(2.5 * TRUE_PER_S, 60, page=CALLERS, stated=Stated(held_max=5))

    assert found.known[-1].held_most == 5
    assert max(one.reports.held for one in found.known[30:]) <= 5.0


def test_a_server_that_is_idle_at_times_is_not_full_however_its_answers_vary():
    """
    Held is more where answers are long, and no more are finished: as a real engine's page had it.
    What it does when it is never idle is what counts.
    """
    idle = {bucket_of(h): Sums(100.0, 100.0 * h, 0.0, 90) for h in (0.2, 0.4, 0.8)}
    busy = {bucket_of(3): Sums(20.0, 60.0, 0.0, 32), bucket_of(6): Sums(20.0, 120.0, 0.0, 33)}

    assert not service_of(idle, idle).full
    assert service_of(idle | busy, idle | busy).capacity_per_s == pytest.approx(1.6, rel=0.05)
    for page in (PAGE, CALLERS):
        assert run(0.2 * TRUE_PER_S, 300, page=page, spread=0.9).refused == 0


def test_nothing_is_known_of_a_server_that_answered_nobody():
    assert service_of({}, {}).capacity_per_s == 0.0
    assert service_of({3: Sums(10.0, 5.0, 0.0, 0)}, {}).capacity_per_s == 0.0


def test_buckets_are_a_half_doubling_wide():
    assert bucket_of(0.0) == 0 and bucket_of(1e9) == len(EDGES)
    assert [bucket_of(n) - bucket_of(1.0) for n in (1.5, 2.0, 4.0, 8.0)] == [1, 2, 4, 6]
