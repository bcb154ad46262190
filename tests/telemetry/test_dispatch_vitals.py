"""What a dispatcher reports of servers that it calls: what they held, and how fast they answered."""

from __future__ import annotations

from types import SimpleNamespace

from learners.servers.batch import Beside
from learners.servers.first_tokens import cell_of
from learners.servers.held import Stated
from learners.servers.service import bucket_of
from serve.deploy.dispatch_vitals import DispatchVitals
from streams.telemetry.records import PoolState, decode, encode
from streams.telemetry.window import Reporter

NOW_MS = 1_790_000_000_000

STATED = Stated()


def attempt(**used):
    """Answered after two seconds, the first token after half of one; the reader held it up for one."""
    used = {"prompt_tokens": 400, "output_tokens": 11, "cached_tokens": 100} | used
    return SimpleNamespace(
        kind="first", place=SimpleNamespace(pool="p"), decided=SimpleNamespace(pool="p"),
        lease=SimpleNamespace(address="h:1", waited_for=3, beside=Beside(1.5, 2)), tenant="",
        used=SimpleNamespace(**used),
        settled=SimpleNamespace(outcome="answered", took_ms=3000.0), held_up_s=1.0,
        began_s=10.0, first_s=10.5,
    )  # fmt: skip


def reported(*attempts, stated=STATED, energy_share=0.0) -> PoolState:
    vitals = DispatchVitals(
        SimpleNamespace(status=lambda now_s: []),
        SimpleNamespace(status=lambda now_s: {}),
        lambda: [SimpleNamespace(pool="p", model="m", gpu="", region="", stated=stated)],
        lambda tenant, tokens: None,
        "a" * 16,
        lambda: 0.0,
        lambda pool: energy_share,
    )
    for one in attempts:
        vitals.note(one)
    reporter = Reporter("a" * 16, NOW_MS)
    records = vitals.take(reporter, reporter.window(NOW_MS + 1000))
    [found] = [r for r in records if isinstance(r, PoolState)]
    return decode(encode([found])[0][1])


def test_how_fast_a_server_answered_is_reported_by_what_it_held():
    """
    Of the prompt what was read, and nothing of the time that the reader held it up. Tokens after
    the first are told of by what came at once.
    """
    found = reported(attempt(), attempt())
    assert found.paced == [
        (bucket_of(1.5), 0, 0, 0, 0, 0, 0, 20, 3_000_000),
        (bucket_of(3), 2, 6, 600, 180_000, 1_000_000, 300_000_000, 0, 0),
    ]
    assert found.batched == [(bucket_of(1.5), 4_500_000, 4)]
    assert found.first_tokens == [(*cell_of(3, 300, 0.5), 2)]


def test_an_answer_that_does_not_say_how_long_it_is_tells_nothing_of_its_speed():
    found = reported(attempt(output_tokens=-1), attempt(prompt_tokens=-1))

    assert found.paced == []
    assert found.served[0][-1] == 2


def test_energy_is_counted_as_far_as_it_is_ones_own():
    """
    By figures, of a second in which it was idle; whose energy others count draws power all the same.
    """
    stated = Stated(idle_w=30.0, busy_w=70.0)
    half, none = (reported(attempt(), stated=stated, energy_share=s) for s in (0.5, 0.0))

    assert (half.watts, half.joules, half.watts_from) == (30.0, 15.0, "figures")
    assert (none.watts, none.joules) == (30.0, 0.0)
