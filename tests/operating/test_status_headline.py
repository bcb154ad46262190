"""The first line of `fairlead status`: up or not, rate, latency, refusals, cost, lag, alarms."""

from __future__ import annotations

import pytest
from rich.console import Console

from fairlead.commands.headline import headline

ROUTER = {"replicas": 2, "decisions_per_s": 1212.5, "refused_per_s": 0.0, "latency_ms_p99": 4.12}
FOUND = {"router": ROUTER, "spent_usd": {"a": 12.0, "b": 0.4}, "lag_s": 0.4, "alarms": []}


def plain(found, width=200) -> str:
    console = Console(width=width)
    with console.capture() as said:
        console.print(headline(found), highlight=False)
    return said.get().strip()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "up: 2 routers · 1,212.5 decisions/s · p99 4.1 ms · 0.0 refused/s · $12.40 paid · lag 0 s"
             " · no alarms"),
        ({"router": ROUTER | {"latency_ms_p99": None}, "alarms": [{}]},
         "up: 2 routers · 1,212.5 decisions/s · 0.0 refused/s · $12.40 paid · lag 0 s · 1 alarm"),
        ({"router": None, "lag_s": 93.2, "alarms": [{}, {}]},
         "no router · $12.40 paid · lag 93 s · 2 alarms"),
        ({"router": None, "lag_s": None, "alarms": [{}]},
         "no router · $12.40 paid · lag unknown · 1 alarm"),
        ({"router": ROUTER | {"replicas": 0}}, "no router · $12.40 paid · lag 0 s · no alarms"),
    ],
)  # fmt: skip
def test_the_first_line_says_whether_it_is_up_and_what_it_does(found, said):
    assert plain(FOUND | found) == said


def test_what_is_wrong_is_marked():
    assert "[bold red]no router" in headline(FOUND | {"router": None})
    assert "[yellow]3.0 refused/s" in headline(FOUND | {"router": ROUTER | {"refused_per_s": 3.0}})
    assert "[bold red]lag unknown" in headline(FOUND | {"lag_s": None})
    assert "[bold red]1 alarm" in headline(FOUND | {"alarms": [{}]})
