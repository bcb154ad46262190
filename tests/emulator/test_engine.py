"""The emulated engine: batching, its cache, cancelling, and that closed forms change nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_engine import SteppedEngine
from strategies import lightly

from infra.emulator.engine import FINISHED, FIRST_TOKEN, PREEMPTED, Engine
from infra.emulator.errors import NeverFits
from infra.emulator.performance import Performance
from infra.emulator.power import Power

thoroughly = settings(lightly, max_examples=400)

# Powers of two, so that sums are exact and moments coincide as often as they like.
TICK_S = 1 / 1024


def performance(**changed) -> Performance:
    """1 s per iteration, and 1/1024 s per prompt token."""
    values = {
        "fixed_s": 1.0,
        "per_sequence_s": 0.0,
        "per_context_token_s": 0.0,
        "per_prompt_token_s": TICK_S,
        "request_s": 0.0,
        "prefill_tokens_max": 512,
        "kv_tokens_max": 10_000,
        "sequences_max": 8,
        "derived": False,
        "source": "made up",
    }
    return Performance(**values | changed)


def events(engine: Engine, to_s: float = 1e6) -> list[tuple]:
    return [tuple(event) for event in engine.advance(to_s)]


# --- the oracle


@st.composite
def performances(draw, *, exact: bool) -> Performance:
    """Exact ones take few different times, all multiples of 1/1024 s, so that moments coincide."""
    if exact:
        times = {
            "fixed_s": draw(st.sampled_from([1 / 16, 2 / 16, 4 / 16])),
            "per_sequence_s": draw(st.sampled_from([0.0, 1 / 16])),
            "per_context_token_s": draw(st.sampled_from([0.0, TICK_S])),
            "per_prompt_token_s": draw(st.sampled_from([0.0, 0.0, 1 / 256])),
            "request_s": draw(st.sampled_from([0.0, 1 / 16])),
            "request_per_prompt_token_s": draw(st.sampled_from([0.0, 1 / 256])),
            "request_contention_s": 0.0,  # a root is not exact
            "experts_s": draw(st.sampled_from([0.0, 1 / 16])),
            "expert_share": 1.0,
        }
    else:
        ms = st.floats(0.01, 20.0, allow_subnormal=False).map(lambda x: x / 1000)
        times = {
            "fixed_s": draw(ms),
            "per_sequence_s": draw(ms) / 4,
            "per_context_token_s": draw(ms) / 64,
            "per_prompt_token_s": draw(ms) / 4,
            "request_s": draw(ms),
            "request_per_prompt_token_s": draw(ms) / 16,
            "request_contention_s": draw(ms),
            "experts_s": draw(ms),
            "expert_share": 0.1,
        }
    return performance(
        **times,
        prefill_tokens_max=draw(st.sampled_from([3, 8, 64, 512])),
        kv_tokens_max=draw(st.integers(30, 300)),
        sequences_max=draw(st.sampled_from([1, 2, 3, 100])),
    )


@st.composite
def steps(draw, *, exact: bool) -> list[tuple]:
    """(what, wait in seconds, …): submit, cancel, look, or let time pass."""
    if exact:
        waits = st.sampled_from([0, 0, 1, 1, 2, 3, 9, 60]).map(lambda n: n / 16)
    else:
        waits = st.floats(1e-5, 0.5, allow_subnormal=False)
    submit = st.tuples(
        st.just("submit"), waits, st.integers(1, 60), st.integers(1, 30), st.sampled_from([0, 0, 3, 99]),
        st.sampled_from(draw(st.sampled_from([(0,), (0, 1), (3, -2, 0, 0, 1)]))),
    )  # fmt: skip
    other = st.tuples(st.sampled_from(["cancel", "look", "advance"]), waits, st.integers(0, 20))
    return draw(st.lists(submit | other, min_size=1, max_size=40))


def play(of: Performance, script: list[tuple]) -> None:
    """Give the same inputs to both engines; they must agree whenever they are looked at."""
    fast, slow, emitted, now_s, n = Engine(of), SteppedEngine(of), [], 0.0, 0
    for what, wait_s, *more in script:
        now_s += wait_s
        if what == "submit":
            prompt, output, cached, priority = more
            output = min(output, of.kv_tokens_max // 3)
            prompt = min(prompt, of.kv_tokens_max - output)
            fast.submit(n, prompt, output, now_s, cached_tokens=cached, priority=priority)
            slow.submit(n, prompt, output, now_s, cached, priority)
            n += 1
        elif what == "cancel":
            fast.cancel(more[0], now_s)
            slow.cancel(more[0], now_s)
        elif what == "look":
            slow.advance(now_s)
            look(fast, slow, now_s, n)
        else:
            emitted += fast.advance(now_s)
    while (next_s := fast.next_change_s()) < math.inf:
        emitted += fast.advance(next_s)
    slow.advance(1e9)
    agree(emitted, slow.events)


def look(fast: Engine, slow: SteppedEngine, now_s: float, n: int) -> None:
    for request in range(n):
        try:
            made = fast.tokens_made(request, now_s)
        except KeyError:
            made = None
        assert made == slow.made(request)
    assert fast.running == sum(not request.cancelled for request in slow.running)
    assert fast.queued == len(slow.waiting)
    assert fast.tokens_made_total == slow.tokens
    assert fast.kv_use * fast.performance.kv_tokens_max == pytest.approx(slow.kv)
    assert fast.busy_s == pytest.approx(slow.busy_s, abs=1e-9)


def agree(emitted: list, expected: list) -> None:
    """The same events at the same times; those of one moment in any order."""
    assert [at_s for *_, at_s in emitted] == sorted(at_s for *_, at_s in emitted)

    def ordered(some):
        return sorted(some, key=lambda event: (round(event[2], 7), event[1], event[0]))

    emitted, expected = ordered(emitted), ordered(expected)
    assert [tuple(event[:2]) for event in emitted] == [event[:2] for event in expected]
    for mine, theirs in zip(emitted, expected, strict=True):
        assert mine[2] == pytest.approx(theirs[2], abs=1e-9)


@thoroughly
@given(st.data())
def test_stepping_through_iterations_gives_the_same_events(data):
    """
    Any interleaving of inputs, with moments that coincide: an arrival at a boundary, a cancel with
    a last token.
    """
    of = data.draw(performances(exact=True))
    play(of, data.draw(steps(exact=True)))


@thoroughly
@given(st.data())
def test_stepping_gives_the_same_events_with_any_durations(data):
    """
    Durations that no sum of which is exact.
    """
    of = data.draw(performances(exact=False))
    play(of, data.draw(steps(exact=False)))


@lightly
@given(steps(exact=True), performances(exact=True), st.lists(st.floats(0, 3), max_size=8))
def test_advancing_more_often_changes_nothing(script, of, times_s):
    """
    A driver may look whenever it likes.
    """
    once, often = Engine(of), Engine(of)
    looks, emitted, now_s = sorted(times_s), [], 0.0
    for n, (what, wait_s, *more) in enumerate(script):
        now_s += wait_s
        while looks and looks[0] < now_s:
            emitted += often.advance(looks.pop(0))
        for engine in (once, often):
            if what == "submit":
                prompt, output, _, priority = more
                engine.submit(n, min(prompt, 15), min(output, 15), now_s, priority=priority)
            elif what == "cancel":
                engine.cancel(more[0], now_s)

    assert emitted + often.advance(1e6) == once.advance(1e6)


# --- one request


def test_a_request_alone_takes_its_prefill_and_one_iteration_per_token():
    """
    Four tokens: the first with the prefill, three by decoding.
    """
    engine = Engine(performance())

    engine.submit("a", 512, 4, 10.0)

    assert events(engine) == [("a", FIRST_TOKEN, 11.5), ("a", FINISHED, 14.5)]


def test_a_long_prompt_is_prefilled_in_chunks():
    """
    1,200 tokens at 512 per iteration are three iterations.
    """
    engine = Engine(performance())

    engine.submit("a", 1200, 1, 0.0)

    at_s = 3 + 1200 * TICK_S
    assert events(engine) == [("a", FIRST_TOKEN, at_s), ("a", FINISHED, at_s)]


def test_cached_tokens_are_not_prefilled():
    """
    But one at least, whose output is the first token.
    """
    engine = Engine(performance())

    engine.submit("a", 512, 1, 0.0, cached_tokens=384)
    engine.submit("b", 512, 1, 100.0, cached_tokens=512)

    assert [event[2] for event in events(engine)] == [1.125] * 2 + [101 + TICK_S] * 2


def test_a_request_reaches_the_scheduler_after_its_own_time():
    """
    HTTP and tokenising keep no GPU busy.
    """
    engine = Engine(performance(request_s=0.25))

    engine.submit("a", 512, 1, 1.0)

    assert events(engine, 100.0)[0] == ("a", FIRST_TOKEN, 2.75)
    assert engine.busy_s == 1.5


def test_the_front_end_takes_longer_for_long_prompts_and_when_busy():
    """
    1/1024 s per prompt token, and 1/4 s times the root of how many are in the server.
    """
    of = performance(request_per_prompt_token_s=TICK_S, request_contention_s=0.25)
    engine, crowded = Engine(of), Engine(of)

    engine.submit("a", 512, 1, 1.0)
    for request in "abcd":
        crowded.submit(request, 512, 1, 1.0)
    for request in "abc":
        crowded.cancel(request, 1.0)

    assert events(engine)[0] == ("a", FIRST_TOKEN, 1.0 + 0.5 + 0.25 + 1.5)
    assert events(crowded)[0] == ("d", FIRST_TOKEN, 1.0 + 0.5 + 0.25 * 2 + 1.5)
    assert of.front_end_s(1024, 9) == 1.0 + 0.75


def test_nobody_overtakes_in_the_front_end():
    """
    A short prompt behind a long one waits for it.
    """
    engine = Engine(performance(request_per_prompt_token_s=TICK_S))

    engine.submit("long", 1024, 1, 0.0)
    engine.submit("short", 1, 1, 0.5)

    assert [event[:2] for event in events(engine) if event[1] == FIRST_TOKEN] == [
        ("long", FIRST_TOKEN), ("short", FIRST_TOKEN),
    ]  # fmt: skip


def test_iterations_get_longer_as_contexts_grow():
    """
    1 + context/1024 each: a sequence that holds 512 tokens, then 513, then 514.
    """
    engine = Engine(performance(per_context_token_s=TICK_S))

    engine.submit("a", 512, 4, 0.0)

    assert events(engine)[-1] == ("a", FINISHED, 1.5 + 3 + (512 + 513 + 514) * TICK_S)


def test_experts_are_read_as_far_as_tokens_use_them():
    """
    Half of them by one token, three quarters by two.
    """
    of = performance(experts_s=4.0, expert_share=0.5)

    assert of.iteration_s(1, 0, 0) == 1.0 + 2.0
    assert of.iteration_s(2, 0, 0) == 1.0 + 3.0
    assert of.iteration_s(1, 0, 1) == 1.0 + 3.0 + TICK_S


# --- a batch


def test_an_arrival_joins_at_the_next_boundary():
    """
    It waits for the iteration under way, and slows the next one by its prefill.
    """
    engine = Engine(performance())
    engine.submit("a", 512, 10, 0.0)

    engine.submit("b", 256, 2, 3.0)  # boundaries are at 1.5, 2.5, 3.5

    assert events(engine, 6.0) == [
        ("a", FIRST_TOKEN, 1.5),
        ("b", FIRST_TOKEN, 4.75),
        ("b", FINISHED, 5.75),
    ]


def test_an_arrival_at_a_boundary_joins_there():
    """
    Inputs of a moment come before the iteration that begins then, even if time was advanced to it.
    """
    engine = Engine(performance())
    engine.submit("a", 512, 10, 0.0)
    engine.advance(3.5)

    engine.submit("b", 512, 1, 3.5)

    assert ("b", FINISHED, 5.0) in events(engine)


def test_no_more_run_than_sequences_max():
    """
    The third waits until one has finished, first come first served.
    """
    engine = Engine(performance(sequences_max=2))

    for name in "abc":
        engine.submit(name, 128, 4, 0.0)
    engine.advance(0.5)

    assert (engine.running, engine.queued) == (2, 1)
    first = [event for event in events(engine) if event[1] == FIRST_TOKEN]
    assert [name for name, *_ in first] == ["a", "b", "c"]
    assert first[2][2] == 1.25 + 3 + 1.125


def test_what_does_not_fit_the_cache_waits_and_blocks_those_behind_it():
    """
    First come first served, so that a long prompt is not overtaken for ever.
    """
    engine = Engine(performance(kv_tokens_max=1000))

    engine.submit("a", 500, 3, 0.0)
    engine.submit("big", 600, 1, 0.0)
    engine.submit("small", 10, 1, 0.0)

    order = [name for name, kind, _ in events(engine) if kind == FINISHED]
    assert order == ["a", "big", "small"]


def test_a_full_cache_preempts_the_youngest_which_computes_all_again():
    """
    It keeps the tokens that it has emitted.
    """
    engine = Engine(performance(kv_tokens_max=210, prefill_tokens_max=100))
    engine.submit("old", 100, 60, 0.0)
    engine.submit("young", 100, 60, 0.0)

    emitted = events(engine)

    assert [name for name, kind, _ in emitted if kind == PREEMPTED] == ["young"]
    assert [name for name, kind, _ in emitted if kind == FIRST_TOKEN] == ["old", "young"]
    assert [name for name, kind, _ in emitted if kind == FINISHED] == ["old", "young"]
    assert engine.tokens_made_total == 120


def test_what_never_fits_is_refused():
    """
    Its last token need not be stored.
    """
    engine = Engine(performance(kv_tokens_max=100))

    engine.submit("a", 90, 11, 0.0)
    with pytest.raises(NeverFits, match="101 tokens of KV cache and the engine has 100"):
        engine.submit("b", 90, 12, 0.0)
    assert ("a", FINISHED, 11 + 90 * TICK_S) in events(engine)


# --- priorities


@lightly
@given(st.lists(st.tuples(st.integers(-2, 3), st.integers(1, 40)), min_size=1, max_size=20))
def test_a_lower_priority_goes_first_and_equals_in_order_of_arrival(asked):
    """
    Where one is admitted at a time, after the one that came first of all.
    """
    engine = Engine(performance(sequences_max=1))
    engine.submit("running", 1, 1, 0.0)
    engine.advance(0.5)

    for number, (priority, prompt) in enumerate(asked):
        engine.submit(number, prompt, 2, 0.5, priority=priority)

    first = [name for name, kind, _ in events(engine) if kind == FIRST_TOKEN]
    by_rank = sorted(range(len(asked)), key=lambda number: (asked[number][0], number))
    assert first == ["running", *by_rank]


@lightly
@given(steps(exact=True), performances(exact=True), st.integers(-9, 9))
def test_equal_priorities_are_first_come_first_served(script, of, priority):
    """
    Whatever their number is, and to the last bit.
    """
    said, unsaid, now_s = Engine(of), Engine(of), 0.0

    for n, (what, wait_s, *more) in enumerate(script):
        now_s += wait_s
        if what == "submit":
            said.submit(n, min(more[0], 15), min(more[1], 15), now_s, priority=priority)
            unsaid.submit(n, min(more[0], 15), min(more[1], 15), now_s)

    emitted = events(said)
    assert emitted == events(unsaid)
    first = [name for name, kind, _ in emitted if kind == FIRST_TOKEN]
    assert first == sorted(first)


@pytest.mark.parametrize("first_comes", ["nobody", "an equal that does not fit", "one that waits"])
def test_an_arrival_that_outranks_all_who_wait_joins_at_the_next_boundary(first_comes):
    """
    Not when something else happens to change, and also behind others in the front end.
    """
    engine = Engine(performance(kv_tokens_max=1000, request_per_prompt_token_s=TICK_S))
    engine.submit("a", 512, 400, 0.0)  # boundaries at 0.5 (the front end), 2, 3, 4, …
    if first_comes == "one that waits":
        engine.submit("big", 600, 1, 1.0, priority=1)
    engine.advance(10.0)
    if first_comes == "an equal that does not fit":
        engine.submit("big", 600, 1, 10.0, priority=1)

    engine.submit("urgent", 128, 1, 10.0)

    front_end_s = 600 * TICK_S if first_comes == "an equal that does not fit" else 128 * TICK_S
    assert ("urgent", FINISHED, math.ceil(10.0 + front_end_s) + 1.125) in events(engine)


def test_an_arrival_behind_those_who_wait_changes_nothing_of_what_runs():
    """
    Not even its last bits: iterations are added up as if it had not come.
    """
    engine = Engine(performance(kv_tokens_max=1000, request_per_prompt_token_s=TICK_S))
    engine.submit("a", 512, 400, 0.0)
    engine.submit("big", 600, 1, 1.0)
    engine.submit("equal", 300, 1, 1.75)  # in the front end when the run is planned, at 2.0
    engine.advance(2.01)

    engine.submit("another", 10, 1, 2.01)
    engine.submit("lower", 10, 1, 2.01, priority=1)

    assert engine.next_change_s() == 0.5 + 1.5 + 399


def test_one_that_left_the_front_end_outranks_nobody():
    """
    It would not have fitted; the small one behind it does.
    """
    engine = Engine(performance(kv_tokens_max=1000, request_per_prompt_token_s=TICK_S))
    engine.submit("a", 512, 400, 0.0)
    engine.submit("big", 900, 1, 10.0)
    engine.cancel("big", 10.0)
    engine.advance(10.5)  # in a run that was planned without it, while it would be in the front end

    engine.submit("small", 128, 1, 10.5)

    assert engine.waiting_prompt_tokens == 128
    assert ("small", FINISHED, 11 + 1.125) in events(engine)


def test_when_the_head_of_the_queue_leaves_others_join_together_at_the_next_boundary():
    """
    One that has been ready for long, and an urgent one that comes in the same iteration.
    """
    engine = Engine(performance(kv_tokens_max=1000))
    engine.submit("a", 512, 400, 0.0)
    engine.submit("big", 900, 1, 1.0, priority=1)
    engine.advance(1.75)  # in the run that goes on for long
    engine.submit("patient", 128, 1, 2.0, priority=1)
    engine.advance(10.0)

    engine.cancel("big", 10.0)
    engine.submit("urgent", 128, 1, 10.25)

    finished = {name: at_s for name, kind, at_s in events(engine) if kind == FINISHED}
    assert finished["patient"] == finished["urgent"] == 10.5 + 1.25


def test_the_highest_number_is_preempted_though_it_is_not_the_youngest():
    """
    Of two with the same number, the younger.
    """
    of = performance(kv_tokens_max=400, prefill_tokens_max=400)
    engine = Engine(of)
    for at_s, name, priority in (
        (0.0, "old", 2),
        (0.0, "young", 2),
        (1.0, "urgent", 0),
        (1.0, "normal", 1),
    ):
        engine.submit(name, 90, 60, at_s, priority=priority)

    emitted = events(engine)

    preempted = [name for name, kind, _ in emitted if kind == PREEMPTED]
    finished = [name for name, kind, _ in emitted if kind == FINISHED]
    assert preempted == ["young", "old"]
    assert finished == ["urgent", "normal", "old", "young"]


def test_nobody_is_preempted_for_one_that_waits():
    """
    What runs goes on; the urgent one is the next to be admitted.
    """
    engine = Engine(performance(sequences_max=1))
    engine.submit("a", 128, 10, 0.0, priority=3)
    engine.submit("b", 128, 1, 0.0, priority=3)
    engine.advance(5.0)

    engine.submit("urgent", 128, 1, 5.0)

    assert [name for name, kind, _ in events(engine) if kind == FINISHED] == ["a", "urgent", "b"]


def test_who_fits_again_after_a_preemption_is_admitted_one_iteration_later():
    """
    The iteration that preempts admits nobody, as vLLM's.
    """
    engine = Engine(performance(kv_tokens_max=1000, prefill_tokens_max=1000))
    engine.submit("a", 400, 300, 0.0)
    engine.submit("b", 400, 300, 0.0, priority=1)
    engine.advance(50.0)
    engine.submit("urgent", 250, 1, 50.0)

    emitted = {(name, kind): at_s for name, kind, at_s in events(engine)}

    at_s = emitted["b", PREEMPTED]
    assert emitted["urgent", FIRST_TOKEN] == at_s + 1 + 1 + 250 * TICK_S


# --- cancelling


@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.5, 3.2, 7.0])
def test_a_cancelled_request_tells_nothing_more(at_s):
    """
    Waiting, in prefill, at its first token, decoding; and its room is free again.
    """
    engine = Engine(performance())
    engine.submit("a", 512, 10, 0.0)

    engine.cancel("a", at_s)

    assert (engine.running, engine.queued) == (0, 0)
    assert [event for event in events(engine) if event[2] > at_s] == []
    assert (engine.kv_use, engine.next_change_s()) == (0.0, math.inf)


def test_a_cancelled_one_leaves_with_the_iteration_under_way():
    """
    The GPU is computing it already. Then the other's iterations are shorter.
    """
    engine = Engine(performance(per_sequence_s=1.0))
    engine.submit("a", 128, 4, 0.0)
    engine.submit("b", 128, 9, 0.0)
    engine.advance(4.0)  # since 1.25 both decode, at 3 s per iteration

    engine.cancel("b", 4.0)

    assert events(engine) == [("a", FINISHED, 4.25 + 2 + 2)]


def test_a_cancelled_head_of_the_queue_lets_the_next_pass():
    """
    At the next boundary, not when something else happens to change.
    """
    engine = Engine(performance(kv_tokens_max=1000))
    engine.submit("a", 500, 400, 0.0)
    engine.submit("big", 900, 1, 0.0)
    engine.submit("small", 128, 1, 0.0)
    engine.advance(10.0)

    engine.cancel("big", 10.0)

    assert ("small", FINISHED, 11 + 628 * TICK_S) in events(engine)


def test_cancelling_the_unknown_or_finished_does_nothing():
    """
    A caller that gives up races with the last token.
    """
    engine = Engine(performance())
    engine.submit("a", 512, 1, 0.0)
    emitted = engine.advance(2.0)

    engine.cancel("a", 2.0)
    engine.cancel("never seen", 2.0)

    assert len(emitted) == 2
    assert events(engine) == []


def test_an_id_can_be_used_again():
    """
    After it has finished, and while its cancelled bearer is still leaving.
    """
    engine = Engine(performance())
    engine.submit("a", 512, 5, 0.0)
    engine.cancel("a", 0.5)

    engine.submit("a", 256, 1, 0.5)

    assert events(engine) == [("a", FIRST_TOKEN, 1.5 + 1.25), ("a", FINISHED, 1.5 + 1.25)]


# --- what can be asked


def test_tokens_are_counted_as_iterations_end():
    """
    Also in the middle of many that are not stepped through.
    """
    engine = Engine(performance(per_context_token_s=TICK_S / 512))
    engine.submit("a", 512, 1000, 0.0)
    ends_s = [1.5]
    for held in range(512, 560):
        ends_s.append(ends_s[-1] + 1 + held * TICK_S / 512)

    counts = [engine.tokens_made("a", at_s) for at_s in ends_s]

    assert counts == list(range(1, len(ends_s) + 1))
    assert engine.tokens_made_total == len(ends_s)
    assert engine.next_token_s() == pytest.approx(ends_s[-1] + 1 + 560 * TICK_S / 512)


def test_an_idle_engine_expects_nothing():
    """
    Nor is it busy.
    """
    engine = Engine(performance(), now_s=5.0)

    assert engine.next_change_s() == math.inf
    assert engine.advance(100.0) == []
    assert (engine.busy_s, engine.kv_use, engine.queued, engine.running) == (0.0, 0.0, 0, 0)


def test_energy_is_idle_decode_and_prefill_by_their_times():
    """
    10 s of rest at 1 W, 1 s of fixed time and 3 s of decoding at 10 W, half a second at 100 W.
    """
    power = Power(idle_w=1.0, decode_w=10.0, prefill_w=100.0)
    engine = Engine(performance(), power)
    engine.submit("a", 512, 4, 5.0)

    engine.advance(5.75)  # in the middle of the prefill iteration
    assert engine.energy_j == pytest.approx(5 + 10 * 0.5 + 100 * 0.25)
    engine.advance(14.5)
    assert engine.energy_j == pytest.approx(10 + 10 * 4 + 100 * 0.5)
    assert Engine(performance()).energy_j == 0.0


def test_time_does_not_go_back():
    """
    It would be our bug.
    """
    engine = Engine(performance())
    engine.advance(5.0)

    with pytest.raises(AssertionError, match="time only goes on"):
        engine.submit("a", 1, 1, 4.0)
