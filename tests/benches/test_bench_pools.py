"""The benches of dispatching and of faults: what they count, and that they run as they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from load.bench.dispatch import DispatchBench
from load.bench.dispatch import Seen as Tokens
from load.bench.faults import FAULTS, Asked, Experiment, Seen, summary

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "stated", "wrong"),
    [
        ("w0 w1 w2 ", 3, 0),
        ("w0 w2 ", 3, 2),  # one is lost: it is missing, and the next is not where it should be
        ("w0 w1 w1 w2 ", 3, 2),
        ("w0 w2 w1 ", 3, 2),
        ("", 2, 2),
    ],
    ids=["whole", "one lost", "one doubled", "two swapped", "none came"],
)
def test_every_token_that_is_not_where_it_belongs_is_counted(text, stated, wrong):
    seen = Tokens()

    seen.answer(text, stated)

    assert seen.wrong == wrong
    assert seen.tokens == len(text.split())


def test_so_many_turns_are_made_that_the_tokens_asked_for_are_streamed():
    assert DispatchBench(tokens=1000).rounds < DispatchBench(tokens=1_000_000).rounds


def asked(at_s: float, first_token_s: float | None = 0.1, **fields: object) -> Asked:
    return Asked(at_s, pool="a", decided="a", first_token_s=first_token_s, **fields)


def test_a_request_is_lost_if_it_failed_before_its_stream_began_and_broken_after():
    """
    Those that met the fault tell how long recovery took; calm ones and reroutes do not.
    """
    seen = Seen(
        dispatched=[
            asked(1.0, 0.2),  # before the fault: the slowest calm one
            asked(11.0, 0.15),
            asked(12.0, 0.9, attempts=1),  # its first attempt failed
            asked(13.0, 0.5),  # later than any before the fault
            asked(14.0, None, error="UNAVAILABLE: gone"),
            asked(15.0, 0.1, error="ABORTED: broken"),
        ],
        decisions=10,
        undecided=["UNAVAILABLE: gone"],
    )

    found = summary([Experiment("slow", 10.0, seen)])

    assert (found["lost"], found["broken"], found["dispatched"]) == (1, 1, 6)
    assert found["decisions_served_share"] == 0.9
    assert found["by_fault"]["slow"]["met"] == 4
    assert found["recovery_p50_s"] == {"slow": 0.5}
    assert found["settled_s"] == {"slow": 5.0}
    assert found["problems"] == ["UNAVAILABLE: gone"]


def run(*command: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", *command, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=540,
    )
    return json.loads(done.stdout)  # nothing else is on standard output


@pytest.mark.slow
def test_bench_faults_loses_no_request_and_serves_every_decision():
    found = run("bench", "faults", "--quick")

    assert found["decisions_served_share"] == 1.0
    assert found["lost"] == 0
    assert set(found["by_fault"]) == set(FAULTS)
    assert set(found["recovery_p50_s"]) == set(found["recovery_p99_s"]) == set(FAULTS)


@pytest.mark.slow
def test_bench_dispatch_finds_every_token_in_its_place():
    found = run("bench", "dispatch", "--tokens", "20000")

    assert found["tokens"] >= 20_000
    assert found["tokens_wrong"] == 0
    assert {"overhead_p50_ms", "overhead_p99_ms"} <= set(found)
