"""The account of dispatched requests: whatever happens, each attempt is paid and reported once.

Hypothesis writes a script per endpoint, a mode and a moment at which the reader leaves; `bench`
then compares what was called with what was reported and what the real trainer has learned.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from dispatch_bench import SIZES, bench, collected
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_endpoint import FakeEndpoint, Script, failed
from router_bench import catalogue

from serve.dispatch.backend import Usage
from serve.dispatch.budget import HedgeOptions, RetryOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.errors import (
    AnswerBroken,
    AnswerGarbled,
    AnswerLate,
    CallRefused,
    EndpointOverloaded,
    EndpointUnreachable,
    RequestRefused,
)
from serve.health.health import HealthOptions
from serve.routing.catalogue import Pool

ERRORS = (
    failed(),
    EndpointUnreachable("x", "no route"),
    EndpointOverloaded("x", "429"),
    AnswerGarbled("x", "no JSON"),
    AnswerLate("x", "silent"),
    CallRefused("x", "bad"),
)
WAITS_S = (0.0, 0.5, 3.0, 45.0)  # at once, soon, after the hedge, after the time-out


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    n = draw(st.integers(0, 3))
    end = draw(st.sampled_from(("answers", "answers", "answers", "fails", "hangs")))
    at = draw(st.integers(0, n))
    return Script(
        words=("w",) * n,
        probability=draw(st.sampled_from((None, 0.1, 0.9))),
        usage=draw(
            st.sampled_from(
                ("given", "counted", "missing", Usage(prompt_tokens=-1, output_tokens=10**18))
            )
        ),
        delays_s={i: draw(st.sampled_from(WAITS_S)) for i in range(n + 1)},
        fails=draw(st.sampled_from(ERRORS)) if end == "fails" else None,
        fails_at=at,
        hangs_at=at if end == "hangs" else None,
    )


@st.composite
def pools(draw: st.DrawFn) -> dict[str, list[FakeEndpoint]]:
    """Up to two endpoints in each of four pools; each has a script for its first two calls."""
    return {
        pool: [
            FakeEndpoint(f"{pool}:{i}", *draw(st.lists(scripts(), min_size=1, max_size=2)))
            for i in range(draw(st.sampled_from((0, 1, 1, 2))))
        ]
        for pool in ("large", "spare", "medium", "small")
    }


MODES = st.sampled_from(({}, {}, {"confidence_min": 0.5}, {"fan_out": 2}, {"fan_out": 3}))
MODELS = catalogue(SIZES, [Pool(name="large", model="large"), Pool(name="spare", model="large")])


@settings(max_examples=150)
@given(
    pools(),
    st.lists(
        st.tuples(
            MODES,
            st.sampled_from((None, None, 0.2, 4.0, 60.0)),  # s to the deadline
            st.one_of(st.none(), st.integers(0, 8)),  # leaves after so many events
            st.one_of(st.none(), st.sampled_from((0.0, 0.25, 2.5, 31.0))),  # is cancelled then
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from((1, 2, 1024)),
)
def test_whatever_happens_each_attempt_is_paid_and_reported_once(
    found, requests, hedged, in_flight_max
):
    """
    Requests at once over the same pools: answers, failures anywhere, silence, hedges, cascades,
    fan-out, deadlines, readers who leave. Afterwards nothing runs, nothing is held, every ticket
    issued has one report, and the trainer's money is the attempts' money, to the billionth.
    """
    options = DispatchOptions(
        answer_s_max=100.0,
        hedges=HedgeOptions(share_max=1.0 if hedged else 0.0),
        retries=RetryOptions(concurrent_min=1),
        health=HealthOptions(in_flight_max=in_flight_max),
    )
    with bench(found, models=MODELS, options=options) as up:

        async def one(mode, deadline_s, stop_after, cancel_s):
            if deadline_s is not None:
                mode = {**mode, "deadline_unix_ms": up.now_ms() + round(deadline_s * 1000)}
            reading = asyncio.ensure_future(collected(up.answer(**mode, session="s"), stop_after))
            if cancel_s is not None:
                await asyncio.wait([reading], timeout=cancel_s)
                reading.cancel()
            await asyncio.wait([reading], timeout=1000.0)
            reading.cancel()  # one that hangs after its first token is the reader's to leave
            with suppress(asyncio.CancelledError):
                got = await reading
                assert got.error is None or isinstance(got.error, RequestRefused), got.error
                if not isinstance(got.error, AnswerBroken) and got.error is not None:
                    assert not any(type(e).__name__ == "Streamed" for e in got.events)
                return got

        async def scene():
            return await asyncio.gather(*(one(*request) for request in requests))

        up.loop.run(scene())
        up.loop.run(up.dispatcher.finish())


def test_the_decision_is_settled_even_if_nobody_was_called():
    with bench({}) as up:
        up.get()
        ((ticket, values),) = up.reports
        assert ticket.ticket == up.decided[0].ticket
        assert values == {"paid_usd": 0.0}


@pytest.mark.parametrize("mode", [{}, {"confidence_min": 0.5}, {"fan_out": 2}])
def test_a_thousand_requests_leave_nothing_behind(mode):
    """
    Neither tasks nor leases, nor places in a budget.
    """
    flaky = [Script(), Script(fails=failed()), Script(words=("a", "b"), fails=failed(), fails_at=1)]
    found = {name: FakeEndpoint(name, *(flaky * 70)) for name in ("large", "medium", "small")}
    with bench(found) as up:

        async def scene() -> None:
            for n in range(200):
                await collected(up.answer(**mode), stop_after=n % 7 or None)
            await up.dispatcher.finish()
            assert len(asyncio.all_tasks()) == 1

        up.loop.run(scene())
