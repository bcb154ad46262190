"""What is to happen during a simulation, from a TOML file: each event one thing at one time.

    [[events]]
    at_s = 600
    what = "region_lost"
    region = "eu"
    for_s = 300              # where it may end: it is back then

    pool_lost        pool, for_s        its replicas die
    region_lost      region, for_s      all replicas there die
    gpus_available   gpu, gpus          there are so many of the type; the youngest beyond that die
    price_changed    gpu, usd_per_hour
    model_drifted    model, quality_times
    model_added      model              its pools come at `at_s`; nobody knew the model before
    feedback_late    for_s, late_s
    feedback_away    for_s
    telemetry_away   for_s
    load             times, for_s       so many times as many users

The one rule: an event that names what the site does not have is refused before anything runs.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from load.data import traces
from load.data.traces import Trace
from load.errors import EventRefused
from load.planning.site import Site
from load.simulation.shocks import (
    Available,
    Drifted,
    FeedbackAway,
    FeedbackLate,
    PoolBack,
    PoolLost,
    RegionBack,
    RegionLost,
    Repriced,
    Shock,
    Silent,
    What,
)

KEYS = {
    "pool_lost": ({"pool"}, {"for_s"}),
    "region_lost": ({"region"}, {"for_s"}),
    "gpus_available": ({"gpu", "gpus"}, set()),
    "price_changed": ({"gpu", "usd_per_hour"}, set()),
    "model_drifted": ({"model", "quality_times"}, set()),
    "model_added": ({"model"}, set()),
    "feedback_late": ({"for_s", "late_s"}, set()),
    "feedback_away": ({"for_s"}, set()),
    "telemetry_away": ({"for_s"}, set()),
    "load": ({"times", "for_s"}, set()),
}
NUMBER_MAX = 1e9  # thirty years of seconds
NUMBERS = {
    "at_s": 0.0,
    "for_s": 0.0,
    "late_s": 0.0,
    "usd_per_hour": 0.0,
    "quality_times": 0.0,
    "times": 0.0,
    "gpus": 0.0,
}  # with their least


@dataclass(frozen=True, slots=True, kw_only=True)
class Surge:
    """So many times as many users, for a time."""

    at_s: float
    for_s: float
    times: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """All that is to happen."""

    shocks: tuple[Shock, ...] = ()
    surges: tuple[Surge, ...] = ()
    newcomers: tuple[str, ...] = ()  # models that nobody knew before
    listed: tuple[Mapping[str, Any], ...] = ()  # as in the file

    def late(self, span_s: float) -> list[str]:
        """What is to happen when the last request, at `span_s`, has come: likely by mistake."""
        return [
            f"event {number} ({event['what']}) is at {event['at_s']:,} s, after the last request"
            for number, event in enumerate(self.listed, 1)
            if event["at_s"] > span_s
        ]


def read_events(path: Path, site: Site) -> Events:
    """Raises EventRefused, naming the event and what would be right."""
    try:
        found = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise EventRefused(str(path), None, f"can't be read: {error.strerror}") from None
    except ValueError as error:
        raise EventRefused(path.name, None, f"can't be read as TOML: {error}") from None
    events = found.get("events")
    if set(found) != {"events"} or not _are_tables(events):
        raise EventRefused(path.name, None, "has to be a list of [[events]], and nothing else")
    shocks: list[Shock] = []
    surges: list[Surge] = []
    for number, event in enumerate(events, 1):
        _check(path.name, number, event, site)
        if event["what"] == "load":
            surges.append(Surge(at_s=event["at_s"], for_s=event["for_s"], times=event["times"]))
        else:
            shocks += _shocks(event, site)
    newcomers = tuple(event["model"] for event in events if event["what"] == "model_added")
    return Events(
        shocks=tuple(_until_the_last_ends(shocks)),
        surges=tuple(surges),
        newcomers=newcomers,
        listed=tuple(events),
    )


def _until_the_last_ends(shocks: Sequence[Shock]) -> Iterator[Shock]:
    """In order of time, without returns of what another event still has lost."""
    lost: Counter[What] = Counter()
    for shock in sorted(shocks, key=lambda one: one.at_s):
        match shock.what:
            case PoolLost() | RegionLost() as gone:
                lost[gone] += 1
            case PoolBack(pool=name):
                lost[PoolLost(pool=name)] -= 1
                if lost[PoolLost(pool=name)]:
                    continue
            case RegionBack(region=name):
                lost[RegionLost(region=name)] -= 1
                if lost[RegionLost(region=name)]:
                    continue
        yield shock


def _are_tables(events: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(events, list) and all(isinstance(event, dict) for event in events)


def _check(file: str, number: int, event: Mapping[str, Any], site: Site) -> None:
    def refuse(why: str) -> None:
        raise EventRefused(file, number, why)

    what = event.get("what")
    if not isinstance(what, str) or what not in KEYS:
        refuse(f"is {what!r}: known are {', '.join(KEYS)}")
    needed, optional = KEYS[str(what)]
    given = set(event) - {"what"}
    if missing := sorted(({"at_s"} | needed) - given):
        refuse(f"({what}) lacks {', '.join(missing)}")
    if unknown := sorted(given - needed - optional - {"at_s"}):
        refuse(f"({what}) has {', '.join(unknown)}, which it does not take")
    for key in given & set(NUMBERS):
        value = event[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not NUMBERS[key] <= value <= NUMBER_MAX:
            refuse(f"({what}) has {key} = {value!r}: a number from 0 to {NUMBER_MAX:,.0f} is due")
        if key == "gpus" and value != int(value):
            refuse(f"({what}) has {key} = {value!r}: a whole number is due")
    known = {
        "pool": [plan.name for plan in site.fleet.pools],
        "region": sorted({plan.region for plan in site.fleet.pools}),
        "gpu": [gpu.name for gpu in site.fleet.gpus],
        "model": list(site.catalogue.names),
    }
    for key in given & set(known):
        if event[key] not in known[key]:
            refuse(f"({what}) names {key} {event[key]!r}: there are {', '.join(known[key])}")


def _shocks(event: Mapping[str, Any], site: Site) -> list[Shock]:
    at_s, for_s = float(event["at_s"]), event.get("for_s")
    made: dict[str, Callable[[], list[What]]] = {
        "pool_lost": lambda: [PoolLost(pool=event["pool"]), PoolBack(pool=event["pool"])],
        "region_lost": lambda: [
            RegionLost(region=event["region"]),
            RegionBack(region=event["region"]),
        ],
        "gpus_available": lambda: [Available(gpu=event["gpu"], gpus=int(event["gpus"]))],
        "price_changed": lambda: [
            Repriced(gpu=event["gpu"], usd_per_hour=float(event["usd_per_hour"]))
        ],
        "model_drifted": lambda: [
            Drifted(model=event["model"], quality_times=float(event["quality_times"]))
        ],
        "feedback_late": lambda: [
            FeedbackLate(for_s=float(event["for_s"]), late_s=float(event["late_s"]))
        ],
        "feedback_away": lambda: [FeedbackAway(for_s=float(event["for_s"]))],
        "telemetry_away": lambda: [Silent(for_s=float(event["for_s"]))],
    }
    if event["what"] == "model_added":
        pools = [plan.name for plan in site.fleet.pools if plan.model == event["model"]]
        gone = [Shock(at_s=0.0, what=PoolLost(pool=pool)) for pool in pools]
        return gone + [Shock(at_s=at_s, what=PoolBack(pool=pool)) for pool in pools]
    first, *back = made[event["what"]]()
    shocks = [Shock(at_s=at_s, what=first)]
    if back and for_s is not None:
        shocks.append(Shock(at_s=at_s + float(for_s), what=back[0]))
    return shocks


def surged(
    trace: Trace, surges: tuple[Surge, ...], rng: np.random.Generator, *, later: bool = False
) -> Trace:
    """The trace with its surges: between their times, as if there were so many users.

    A `later` part of a trace does not begin before its first request.
    """
    first_s = float(trace.at_s[0]) if later and len(trace) else 0.0
    for surge in surges:
        end_s = surge.at_s + surge.for_s
        part = trace.between(surge.at_s, end_s=end_s)
        if not len(part):
            continue
        nobody = np.zeros(0, np.intp)
        more = traces.scaled(part, surge.times, rng) if surge.times else part.take(nobody)
        outside = trace.take(np.flatnonzero((trace.at_s < surge.at_s) | (trace.at_s >= end_s)))
        both = traces.joined(
            outside, replace(more, at_s=np.maximum(more.at_s + surge.at_s, first_s))
        )
        trace = both.take(np.argsort(both.at_s, kind="stable"))
    return trace
