"""How full pools of real servers are, of what several say of them; and what is known, kept and forgotten."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from infra.emulator.engine import FINISHED, Engine
from infra.emulator.performance import Performance
from learners.servers.first_tokens import cell_of
from learners.servers.held import HeldRequests, Stated
from learners.servers.service import bucket_of
from learners.work import WorkRates
from streams.telemetry.capacity import BUSY, Capacity, capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.pool_reports import FROM, pool_reports
from streams.telemetry.pool_window import PoolWindow, ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.service_sums import first_tokens_of
from streams.telemetry.service_sums import learned as servers_learned
from streams.telemetry.window import Reporter

NOON_MS = 1_790_000_000_000
FIRST_TOKEN_S = 2.0
A, B = "a" * 16, "b" * 16
# A server that takes 4 at once, 2 s each: alone, and with twice as many held.
ALONE = (bucket_of(1), 20_000_000, 20_000_000, 0, 10)
FULL = (bucket_of(8), 20_000_000, 160_000_000, 80_000_000, 40)


def record(source=A, sequence=0, at_ms=NOON_MS, **fields):
    one = {"pool": "p", "model": "m", "replica": "host:1", "by": "page"} | fields
    return PoolState(
        source=source, sequence=sequence, from_unix_ms=at_ms - 1000, to_unix_ms=at_ms, **one
    )


def folded(*records):
    fleet = FleetState()
    for one in records:
        assert fleet.fold(one, one.to_unix_ms)
    return fleet


def of(*records):
    return capacities(folded(*records), FIRST_TOKEN_S)["p"]


def learned(**fields):
    return of(record(served=[ALONE, FULL], **fields))


def test_a_server_that_its_page_and_its_callers_report_on_is_one_replica():
    """
    The page sees all of it, each caller its own part. What a caller alone knows is kept.
    """
    reports = pool_reports(
        folded(
            record(source=A, running=5, queued=2),
            record(
                source=B, replica=f"host:1{FROM}{B}", by="callers", running=3, refuses=["tools"]
            ),
        )
    )["p"]

    assert (reports.in_state("ready"), reports.running, reports.queued) == (1, 5, 2)
    assert reports.replicas[0].refuses == ["tools"]


def test_where_no_page_is_read_the_callers_parts_add_up():
    """
    Whoever runs the server knows that it is ready, or starting, and nothing of what it holds.
    """
    reports = pool_reports(
        folded(
            record(source="c" * 16, by="callers", state="ready"),
            record(source=A, replica=f"host:1{FROM}{A}", by="callers", running=3, held=2.5),
            record(source=B, replica=f"host:1{FROM}{B}", by="callers", running=4, held=4.0),
        )
    )["p"]

    assert (len(reports.replicas), reports.running, reports.held) == (1, 7, 6.5)
    assert reports.n_callers == 2


METERED = {"by": "callers", "watts": 36.0, "joules": 36.0}
PAGED = {"by": "page", "watts": 60.0, "joules": 60.0, "watts_from": "figures"}


@pytest.mark.parametrize(
    ("replica", "power", "counted_by_each"),
    [
        (PAGED, (60.0, "figures"), 0.0),
        (METERED, (36.0, "measured"), 0.0),  # no page, and callers guess more
        ({"by": "callers"}, (72.0, "figures"), 0.5),  # neither page nor meter
        (None, (72.0, "figures"), 0.5),  # somebody else runs it
    ],
)
def test_power_is_the_meters_word_before_figures_and_energy_is_counted_once(
    replica, power, counted_by_each
):
    """
    Callers see that a server is at work, and what that takes by the figures of its GPU: of a server
    without page and meter two callers count half of it each.
    """
    guess = {"by": "callers", "watts": 72.0, "watts_from": "figures"}
    callers = [record(source=s, replica=f"host:1{FROM}{s}", **guess) for s in (A, B)]
    its_own = [] if replica is None else [record(source="c" * 16, **replica)]
    found = pool_reports(folded(*its_own, *callers))["p"]

    assert (found.watts, found.watts_from) == power
    assert found.energy_share == counted_by_each


def test_power_of_a_pool_is_measured_where_that_of_all_its_servers_is():
    idle, metered = record(), record(source=B, replica="host:2", watts=60.0)
    guessed = record(source="c" * 16, replica="host:3", watts=70.0, watts_from="figures")

    assert pool_reports(folded(idle))["p"].watts_from == ""
    assert pool_reports(folded(idle, metered))["p"].watts_from == "measured"
    assert pool_reports(folded(idle, metered, guessed))["p"].watts_from == "figures"


@pytest.mark.parametrize(
    "held, load",
    [(0.0, 0.0), (2.0, BUSY / 2), (4.0, BUSY), (4.5, BUSY + 0.025), (5.0, 1.0), (9.0, 2.0)],
)
def test_the_load_of_a_server_follows_from_what_it_holds(held, load):
    """
    Four at once, two a second, so half a second's queue is one request.
    """
    known = learned(held=held)

    assert known.of.service.capacity_per_s == pytest.approx(2.0)
    assert known.held_least == pytest.approx(4.0, rel=0.01)
    assert known.load == pytest.approx(load, abs=0.01)
    assert known.held_most == pytest.approx(6.0, rel=0.01)


@pytest.mark.parametrize(("held", "load"), [(4.0, BUSY), (5.75, 1.0), (6.0, 1.0625)])
def test_under_the_dispatchers_limit_a_longer_queue_stands(held, load):
    """
    They let two wait, whatever the price is: it need not keep the queue short, and servers idle.
    """
    caller = record(
        source=B, replica=f"host:1{FROM}{B}", by="callers", held=held, served=[ALONE, FULL]
    )

    assert of(record(source=A, by="callers"), caller).load == pytest.approx(load, abs=0.01)


def test_what_came_before_the_limit_was_known_raises_no_price_for_minutes():
    """
    Where dispatchers call a server they keep to its limit, whatever it held before they knew. Who is
    sent there without them has no other limit than the price.
    """
    page = record(held=40.0, served=[ALONE, FULL])
    caller = record(source=B, replica=f"host:1{FROM}{B}", by="callers", running=20, held=20.0)

    assert of(page).load == pytest.approx(9.75, abs=0.1)
    assert of(page, caller).load == pytest.approx(1.25, abs=0.01)


def test_a_replica_that_says_how_full_it_is_is_believed():
    known = of(record(by="self", load=0.7, held=100.0, served=[FULL]))

    assert known.load == 0.7 and known.work_factor(WorkRates(request_s=9.0)) == 1.0


def test_capacity_that_callers_learned_is_that_of_all_of_them():
    """
    Two dispatchers, each of which sees half of what one server does.
    """
    half = [
        (bucket_of(1), 10_000_000, 10_000_000, 0, 10),
        (bucket_of(4), 20_000_000, 80_000_000, 40_000_000, 20),
    ]
    known = of(
        record(source=A, replica=f"host:1{FROM}{A}", by="callers", served=half, held=4.0),
        record(source=B, replica=f"host:1{FROM}{B}", by="callers", served=half, held=4.0),
    )

    assert known.of.service.capacity_per_s == pytest.approx(2.0)
    assert (known.of.by, known.reports.held) == ("callers", 8.0)


def paced(per_token_us=20_000):
    """Ten answers that found room: prompts of 100 tokens, a first token after 0.3 s, nine more."""
    return [(bucket_of(1), 10, 10, 1000, 100_000, 3_000_000, 300_000_000, 90, 90 * per_token_us)]


def test_how_fast_answers_are_is_learned_from_callers_also_where_a_page_says_the_rest():
    """
    Of the model that it is now: the other's speed is left with it. It survives a snapshot.
    """
    caller = {"source": B, "replica": f"host:1{FROM}{B}", "by": "callers", "served": [ALONE]}
    fleet = folded(
        record(served=[ALONE, FULL]),
        record(**caller, paced=paced()),
        record(**caller, first_tokens=[(*cell_of(1, 100, 9.0), 50)], sequence=1),
        record(
            **caller, sequence=2, at_ms=NOON_MS + 1000, model="n", paced=paced(50_000),
            first_tokens=[(*cell_of(1, 100, 0.2), 9), (*cell_of(1, 100, 1.2), 1)],
        ),
    )  # fmt: skip

    for one in (fleet, FleetState(fleet.pack())):
        known = capacities(one, FIRST_TOKEN_S)["p"].of
        assert known.by == "page"
        assert known.speed is not None
        assert known.speed.token_s == pytest.approx(0.05)
        assert known.speed.first_s == pytest.approx(0.3)
        first = first_tokens_of(one.service["p"], 1)
        assert first is not None and first.answers == 10
        assert first.mean_s == pytest.approx(0.3, rel=0.06)
        assert first.took_s(0.99)[0] == pytest.approx(1.2, rel=0.06)
    assert learned().of.speed is None


def test_at_once_are_those_that_are_worked_on_while_others_wait():
    assert learned().of.service.at_once == pytest.approx(4.0)
    assert of(record(served=[ALONE])).of.service.at_once == 0.0


def looked(*looks):
    """What is known after so many looks at a page: (running, waiting)."""
    records = [
        record(
            source=f"{n:016x}", at_ms=NOON_MS + n, served=[ALONE], running=running, queued=queued
        )
        for n, (running, queued) in enumerate(looks)
    ]
    found = {
        (of(*some).of.at_once, of(*some).of.room)
        for some in (records, records[::-1], records[1::2] + records[::2])
    }
    assert len(found) == 1  # in any order
    return found.pop()


def test_a_server_works_on_as_many_as_run_while_others_wait():
    """
    If that is mostly one number, and none is greater. Where there is room some wait for a moment, too.
    """
    waiting = [(4, 1), (4, 2), (4, 1), (4, 5), (4, 1)]

    assert looked(*waiting, (1, 0), (3, 1), (2, 0)) == (4, 4)
    assert looked(*waiting[1:], (1, 0))[0] == 0  # seldom seen
    assert looked(*waiting, (5, 0))[0] == 0  # there was room for one more
    assert looked(*waiting, *[(n % 4, 1) for n in range(6)])[0] == 0  # no one number


def looks(n, at_ms, source=A, **fields):
    """So many looks at a page in one window, from the time on."""
    return [
        record(source=source, sequence=at_ms - NOON_MS + i, at_ms=at_ms, served=[ALONE], **fields)
        for i in range(n)
    ]


def test_a_server_is_as_full_as_what_it_holds_of_what_runs_while_others_wait():
    full, half = (looks(5, NOON_MS, running=4, queued=1, held=held) for held in (4.0, 2.0))

    assert of(*full).load == BUSY
    assert of(*half).load == BUSY / 2.0


def test_how_many_a_server_worked_on_is_forgotten_after_twenty_minutes_of_work():
    """
    It was started anew with fewer places. What a clock that was ahead said is taken back.
    """
    before, minutes = looks(5, NOON_MS, running=9, queued=1), range(5, 25, 5)
    after = [looks(5, NOON_MS + 60_000 * at, running=4, queued=1) for at in minutes]
    fleet = folded(*before, *itertools.chain(*after))

    assert servers_learned(fleet.service["p"], 0).at_once == 4

    ahead = looks(1, NOON_MS + 3_600_000, running=9, source=B)
    fleet = folded(*after[0], *ahead)
    assert servers_learned(fleet.service["p"], 0).at_once == 0
    fleet.rewind(NOON_MS + 300_000)
    assert servers_learned(fleet.service["p"], 0).at_once == 4


@pytest.mark.parametrize("changed", [{"model": "n"}, {"gpu": "h100"}, {"version": "2"}])
def test_another_model_gpu_or_version_is_learned_anew(changed):
    fleet = folded(
        record(served=[ALONE, FULL], gpu="l4", version="1"),
        record(sequence=1, at_ms=NOON_MS + 1000, **({"gpu": "l4", "version": "1"} | changed),
               served=[ALONE]),
    )  # fmt: skip

    [known] = capacities(fleet, FIRST_TOKEN_S).values()

    assert known.of.service.finished == 10


def test_what_was_learned_survives_a_snapshot_and_any_order():
    """
    The same records make the same bytes.
    """
    records = [
        record(source=source * 16, at_ms=NOON_MS + 40_000 * n, served=[ALONE, FULL], version=str(n))
        for n, source in enumerate("abcd")
    ]
    packed = {
        FleetState(fleet.pack()).pack()
        for order in itertools.permutations(records)
        if (fleet := _at_noon(order))
    }

    assert len(packed) == 1
    assert capacities(FleetState(packed.pop()), FIRST_TOKEN_S)["p"].of.service.full


def _at_noon(records):
    fleet = FleetState()
    for one in records:
        fleet.fold(one, NOON_MS + 200_000)
    return fleet


def test_a_server_that_nobody_knows_anything_of_has_no_limit_and_no_load():
    known = of(record(held=50.0))

    assert known.load is None and math.isinf(known.held_most)


def test_how_fast_a_server_is_now_counts_more_than_how_fast_it_was():
    """
    The last few hundred answers, once there are as many.
    """
    fast = (bucket_of(8), 10_000_000, 80_000_000, 40_000_000, 400)
    known = of(
        record(served=[ALONE, FULL]),
        record(sequence=1, at_ms=NOON_MS + 60_000, served=[fast]),
    )

    assert known.of.service.capacity_per_s == pytest.approx(40.0)


PROMPT, OUTPUT, SECONDS = 1000, 100, 120
ENGINE = Performance(
    fixed_s=0.02, per_sequence_s=0.001, per_context_token_s=0.0, per_prompt_token_s=2e-4,
    request_s=0.0, prefill_tokens_max=2048, kv_tokens_max=10**6, sequences_max=16, derived=False,
    source="made up",
)  # fmt: skip


def engine_of(performance: Performance, cached_tokens: int = 0) -> tuple[Capacity, float]:
    """What is known of an engine that is asked for more than it does, and what it did a second."""
    engine, fleet, did = Engine(performance), FleetState(), []
    meter, window = (
        HeldRequests(Stated()),
        PoolWindow(ReplicaIdentity(pool="p", model="m", replica="h:1")),
    )
    reporter = Reporter(A, NOON_MS)
    for second in range(1, SECONDS + 1):
        for part in range(8):  # a queue of some, always
            if engine.queued < 8:
                engine.submit((second, part), PROMPT, OUTPUT, second - 1 + part / 8, cached_tokens)
        finished = sum(event.kind == FINISHED for event in engine.advance(float(second)))
        did.append(finished)
        ends = reporter.window(NOON_MS + 1000 * second)
        held = engine.running + engine.queued
        meter.lengths(finished, PROMPT * finished, OUTPUT * finished)
        fields = meter.window(held, 1000, waiting=engine.queued, finished=finished)
        window.count_tokens(OUTPUT * finished)
        read = {"prompt_tokens": (PROMPT - cached_tokens) * finished}
        read |= {"cached_tokens": cached_tokens * finished, **window.take(reporter, ends)}
        fleet.fold(PoolState(by="page", **fields, **read), ends[1])
    return capacities(fleet, FIRST_TOKEN_S)["p"], sum(did[30:]) / len(did[30:])


def test_prefix_hits_and_a_cache_that_is_too_small_count_in_the_work():
    """
    Half of each prompt in the cache is less work, a cache for two requests is more: by as much as
    the engine does more and less of them.
    """
    rates = WorkRates(request_s=1.0)
    found = [
        engine_of(ENGINE),
        engine_of(ENGINE, cached_tokens=PROMPT // 2),
        engine_of(replace(ENGINE, kv_tokens_max=2500)),
    ]

    for known, did_per_s in found:
        assert known.of.service.full
        assert known.work_factor(rates) == pytest.approx(1.0 / did_per_s, rel=0.15)
    plain, hits, small = (known.work_factor(rates) for known, _ in found)
    assert hits < 0.8 * plain < plain < 0.8 * small
