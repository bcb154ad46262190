"""`fairlead rules test FILE`: which rules example requests meet, and which models are left to them.

    JSON lines ──as the router reads them──▶ requests ──Ruling──▶ rules, models left, preferred

A line has the fields of a request by name, as in `fairlead` over HTTP, and `text`; beside them
`at` (when it comes: "2026-11-28T23:00:00Z"; now, if left out) and `expect` (names of the rules that
it is to meet, so that a file of examples is a test).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict, ParseError

from infra.pools.site import LocalSite
from infra.settings.settings import Settings
from learners.estimates.learned import Learned, MemoryOptions
from serve.encoders import Encoder, identity, make_encoder
from serve.errors import ServeError
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live, LiveOptions
from serve.routing.request import (
    BYTES_PER_TOKEN,
    WEIGHTS,
    PreferenceDefaults,
    RouteInput,
    read_request,
)
from serve.rules.conditions import meant
from serve.rules.rulebook import Rulebook
from serve.rules.ruling import Ruled, Ruling
from serve.sessions.states import SessionStates
from streams.clock import now_ms
from streams.training.state import Loader

NO_OBJECT = "it must be one request as a JSON object on one line"
FIELDS = (*(f.name for f in pb.RouteRequest.DESCRIPTOR.fields), "at", "expect")


@dataclass(frozen=True, slots=True)
class Example:
    """One line of the file."""

    line: int
    asked: RouteInput
    at_ms: int
    expect: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One that is no request."""

    line: int
    why: str


def examples_of(
    lines: Iterable[bytes], rules: Collection[str], now: int
) -> Iterator[Example | Unreadable]:
    """The file's requests, that expect some of `rules`."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _example(number, line, rules, now)
            except (ValueError, ParseError, ServeError) as error:
                yield Unreadable(number, _why(error))


def _example(number: int, line: bytes, rules: Collection[str], now: int) -> Example:
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError(NO_OBJECT)  # noqa: TRY004 - as json's own
    for name in said:
        if name not in FIELDS:
            raise ValueError(f"{name!r} is no field; it must be {meant(name, FIELDS)}")
    at, expect = said.pop("at", None), said.pop("expect", None)
    if "criticality" in said:
        said["criticality"] = str(said["criticality"]).upper()
    asked = read_request(ParseDict(said, pb.RouteRequest()), PreferenceDefaults())
    at_ms = now if at is None else _unix_ms(str(at))
    return Example(number, asked, at_ms, None if expect is None else _expected(expect, rules))


def _expected(expect: object, rules: Collection[str]) -> tuple[str, ...]:
    if not isinstance(expect, list):
        raise ValueError(f"expect is {expect!r}; it must be a list of names of rules")  # noqa: TRY004
    for name in expect:
        if name not in rules:
            raise ValueError(f"expect has {name!r}; it must be {meant(str(name), rules)}")
    return tuple(expect)


def _unix_ms(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"at is {text!r}; it must be a time, 2026-11-28T23:00:00Z") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _why(error: Exception) -> str:
    """What is wrong with a line, in a user's words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{NO_OBJECT} ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"{NO_OBJECT} (its text is not UTF-8)"
    of_field = re.fullmatch(r"Failed to parse (\w+) field: (.*?)\.*", str(error), re.DOTALL)
    return f"{of_field[1]}: {of_field[2]}" if of_field else str(error)


def tested(lines: Iterable[bytes], settings: Settings, path: Path) -> dict[str, Any]:
    """What became of each example. Raises what settings and encoders raise."""
    options = settings.deployment().replica
    encoder = make_encoder(options.encoder)
    book = Rulebook(options.rules, encoder, first_only=options.rules_match == "first")
    states = SessionStates(book.states, options.session_state_s)  # as if the lines came in turn
    ruling, live = Ruling(book, WEIGHTS, states), live_of(settings, path, encoder)
    found: list[dict[str, Any]] = [
        {"line": one.line, "unreadable": one.why}
        if isinstance(one, Unreadable)
        else _of(one, ruling, live, encoder)
        for one in examples_of(lines, [rule.name for rule in book.rules], now_ms())
    ]
    matched = Counter(name for one in found if "rules" in one for name in one["rules"])
    return {
        "requests": found,
        "rules": {rule.name: matched[rule.name] for rule in book.rules},
        "unexpected": sum("unexpected" in one for one in found),
        "unreadable": sum("unreadable" in one for one in found),
    }


def live_of(settings: Settings, path: Path, encoder: Encoder) -> Live:
    """The catalogue with what the site has learned of its models, if it has."""
    memory, options = settings.options(MemoryOptions), settings.options(LiveOptions)
    store, name = LocalSite.learned(settings, path), identity(encoder)
    loaded = Loader(store, name, memory, with_seen=False).load_newest() if store else None
    learned = loaded[0].learned if loaded else Learned(memory, memory.landmarks_of(name))
    return Live(settings.catalogue(), learned, name, options)


def _of(one: Example, ruling: Ruling, live: Live, encoder: Encoder) -> dict[str, Any]:
    names, asked = live.catalogue.names, one.asked
    allowed = np.array([[_allows(asked, name) for name in names]])
    refused: dict[int, ServeError] = {}
    embeddings = _embedded(asked, ruling, encoder)
    tokens = [asked.prompt_tokens or len((asked.text or "").encode()) / BYTES_PER_TOKEN]
    ruled = ruling.apply([asked], tokens, embeddings, allowed, live, one.at_ms, refused)
    rules = list(ruled.asked[0].rules)
    found: dict[str, Any] = {
        "line": one.line,
        "rules": rules,
        "models": [] if refused else _named(names, allowed, ruled.left),
        "preferred": []
        if refused or ruled.preferred is None
        else _preferred(names, allowed, ruled),
        "tags": list(ruled.asked[0].tags),
        "similarity": {} if embeddings is None else ruling.rulebook.similarity(embeddings),
        "error": str(refused[0]) if refused else None,
    }
    if one.expect is not None and set(one.expect) != set(rules):
        found["unexpected"] = sorted(set(one.expect) ^ set(rules))
    return found


def _allows(asked: RouteInput, name: str) -> bool:
    return name not in asked.denied_models and name in (asked.allowed_models or (name,))


def _embedded(asked: RouteInput, ruling: Ruling, encoder: Encoder) -> np.ndarray | None:
    if not ruling.rulebook.looks_at_embeddings:
        return None
    if asked.embedding is not None:
        return np.frombuffer(asked.embedding, "<f4")[None, :]
    return encoder.encode([asked.text or ""])


def _named(names: tuple[str, ...], allowed: np.ndarray, left: np.ndarray | None) -> list[str]:
    mask = allowed if left is None else allowed & left
    return [name for name, is_left in zip(names, mask[0], strict=True) if is_left]


def _preferred(names: tuple[str, ...], allowed: np.ndarray, ruled: Ruled) -> list[str]:
    """Those that rules prefer; none where they prefer all that is left."""
    assert ruled.preferred is not None
    left, preferred = allowed if ruled.left is None else allowed & ruled.left, ruled.preferred
    found = _named(names, left, preferred)
    return found if len(found) < int(left.sum()) else []


def lines_of(found: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = []
    for one in found["requests"]:
        if "unreadable" in one:
            lines.append(f"line {one['line']}: {one['unreadable']}")
            continue
        rules = ", ".join(one["rules"]) or "no rule"
        left = one["error"] or f"left: {', '.join(one['models'])}"
        prefers = f"; preferred: {', '.join(one['preferred'])}" if one["preferred"] else ""
        wrong = f"; NOT AS EXPECTED: {', '.join(one['unexpected'])}" if "unexpected" in one else ""
        lines.append(f"line {one['line']}: {rules}; {left}{prefers}{wrong}")
    unmet = [name for name, n in found["rules"].items() if not n]
    if unmet:
        lines.append(f"Met by no example: {', '.join(unmet)}")
    return lines
