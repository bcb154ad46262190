"""Requests of a simulation as a router's columns, with the site's rules applied.

    traffic's columns ──Asking──────▶ RequestBatch: nothing is said of requests, and nobody rules
    ... and their kinds ─RuledAsking─▶ Ruling.apply ─┬─▶ RequestBatch, as `Decider` makes it
                                                     └─▶ refused by rules

What is ruled is ruled by the code that serves: a simulation has no rules of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import Kind
from load.data.traffic import Traffic
from load.simulation.loop.arrivals import Arrivals
from serve.errors import RuledOut, ServeError
from serve.routing.eligible import RequestBatch, columns, guarded, said_of, unsaid_columns
from serve.routing.live import Live
from serve.routing.request import WEIGHTS, RouteInput
from serve.rules.rulebook import Rulebook
from serve.rules.ruling import Ruled, Ruling, View
from serve.sessions.states import SessionStates

Numbers = NDArray[np.intp]  # (n,) positions in the traffic
Weights = tuple[float, float, float, float]  # quality, US dollars, seconds, kilojoules
KEPT = 65_536  # requests that say the same, and have the same text, are made once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """Some requests that come together."""

    numbers: Numbers  # (m,) of those to be decided
    requests: RequestBatch  # they
    tenants: Sequence[str]  # (m,) as telemetry counts them
    # (r,) of those that rules refuse, and by which rules each.
    refused: Numbers = field(default_factory=lambda: np.zeros(0, np.intp))
    by_rules: Sequence[tuple[str, ...]] = ()
    met: Sequence[tuple[str, ...]] = ()  # the rules that each of all these meets, in their order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """All models are allowed, there are no limits, and requests say nothing but how urgent they
    are: for these a view may leave things out (`plain_requests`).
    """

    arrivals: Arrivals
    criticality: NDArray[np.int8]  # by class
    preference: Weights

    def asked(self, numbers: Numbers, live: Live, now_ms: int) -> Asked:  # noqa: ARG002 - no rules
        """Requests of these numbers."""
        n, traffic, rows = len(numbers), self.arrivals.held, self.arrivals.rows(numbers)
        remembered: Any = live.estimator  # as `VirtualTrainer` has put it there
        said: dict[str, Any] = {
            "contexts": remembered.contexts(traffic.rows[rows]),
            "prompt_tokens": traffic.prompt_tokens[rows].astype(np.float64),
            "criticality": self.criticality[traffic.classes[rows]],
        }
        same = _same(self.preference, len(live.catalogue), 1 << n.bit_length())
        requests = RequestBatch(**{name: column[:n] for name, column in same.items()} | said)
        kinds = traffic.kinds
        tenants = [kinds[c].class_name for c in traffic.classes[rows].tolist()]
        return Asked(numbers=numbers, requests=requests, tenants=tenants)


@lru_cache(maxsize=16)
def _same(preference: tuple[float, ...], n_models: int, n: int) -> dict[str, NDArray[Any]]:
    """The columns that say the same of all requests, of n. They are handed out again, so nobody
    can change them: a router changes nothing in what it is asked.
    """
    same = {
        "preference": np.tile(np.array(preference, np.float64), (n, 1)),
        "allowed": np.ones((n, n_models), bool),
        **unsaid_columns(n),
    }
    for column in same.values():
        column.flags.writeable = False
    return same


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ruleset:
    """What a site does with requests before they are scored, and what it can look at."""

    rulebook: Rulebook
    usual: Mapping[str, Any] = field(default_factory=dict)  # of requests that do not say
    # By row of the outcome table: texts, None: nobody says it; and embeddings (t, dim) by the
    # site's own encoder. None: there are none.
    texts: Sequence[str | None] | None = None
    embeddings: NDArray[np.float32] | None = None
    session_state_s: float = 86_400.0  # after which a silent session is new again


class Ruler:
    """Rules on requests of a traffic; routers of one machine share it."""

    def __init__(self, ruleset: Ruleset, preference: Weights) -> None:
        self._of = ruleset
        states, book = None, ruleset.rulebook
        if book.states:
            states = SessionStates(book.states, ruleset.session_state_s)
        self._ruling = Ruling(book, WEIGHTS, states)
        self._usual = {**ruleset.usual, "weights": preference}
        self._said = lru_cache(KEPT)(self._made)

    def _made(self, kind: Kind, row: int) -> RouteInput:
        """A request that says what its kind does, with the text of its row."""
        text = None if self._of.texts is None else self._of.texts[row]
        said = {name: getattr(kind, name) for name in ("tenant", "task", "tags", "modality")}
        return RouteInput(text=text, criticality=kind.criticality, **said, **self._usual)

    def ruled(
        self, traffic: Traffic, rows: Numbers, live: View, now_ms: int
    ) -> tuple[Ruled, dict[int, ServeError]]:
        """Requests at these rows of a traffic as rules leave them, and whom they refuse."""
        texts, kinds = self._of.texts, traffic.kinds
        about = traffic.rows[rows] if texts is not None else np.zeros(len(rows), np.intp)
        each = zip(traffic.classes[rows].tolist(), about.tolist(), strict=True)
        asked = [self._said(kinds[of], row) for of, row in each]
        if traffic.sessions is not None and self._of.rulebook.states:
            asked = list(map(_of_session, asked, traffic.sessions[rows].tolist()))
        refused: dict[int, ServeError] = {}
        embeddings = self._of.embeddings
        found = self._ruling.apply(
            asked,
            traffic.prompt_tokens[rows].tolist(),
            None if embeddings is None else embeddings[traffic.rows[rows]],
            np.ones((len(rows), len(live.catalogue.names)), bool),
            live,
            now_ms,
            refused,
        )
        return found, refused


def _of_session(asked: RouteInput, session: int) -> RouteInput:
    return RouteInput.of({**vars(asked), "session": f"{session:x}"}) if session else asked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuledAsking:
    """Requests say what their kind does, and rules, limits and the guard hold, as in `Decider`."""

    arrivals: Arrivals
    ruler: Ruler

    def asked(self, numbers: Numbers, live: Live, now_ms: int) -> Asked:
        """Requests of these numbers."""
        traffic, rows = self.arrivals.held, self.arrivals.rows(numbers)
        ruled, refused = self.ruler.ruled(traffic, rows, live, now_ms)
        out = np.zeros(len(rows), bool)
        out[list(refused)] = True
        left = np.flatnonzero(~out)
        taken = [ruled.asked[row] for row in left.tolist()]
        return Asked(
            numbers=numbers[left],
            requests=self._requests(taken, rows[left], left, ruled, live),
            tenants=[traffic.kinds[c].class_name for c in traffic.classes[rows[left]].tolist()],
            refused=numbers[out],
            by_rules=[_rules_of(refused[row]) for row in np.flatnonzero(out).tolist()],
            met=[one.rules for one in ruled.asked],
        )

    def _requests(
        self,
        taken: Sequence[RouteInput],
        rows: Numbers,
        left: Numbers,
        ruled: Ruled,
        live: Live,
    ) -> RequestBatch:
        """The columns of requests at `rows`, which were `left` of those that were ruled on."""
        traffic, n = self.arrivals.held, len(taken)
        remembered: Any = live.estimator  # as `VirtualTrainer` has put it there
        requests = RequestBatch(
            contexts=remembered.contexts(traffic.rows[rows]),
            preference=np.array([one.weights for one in taken], np.float64).reshape(n, 4),
            allowed=np.ones((n, len(live.catalogue)), bool),
            tenants=np.array([one.tenant for one in taken], object),
            said=said_of(taken),
            left=None if ruled.left is None else ruled.left[left],
            preferred=None if ruled.preferred is None else ruled.preferred[left],
            **columns(taken) | {"prompt_tokens": traffic.prompt_tokens[rows].astype(np.float64)},
        )
        return guarded(requests, live, [one.guard for one in taken])


def _rules_of(problem: ServeError) -> tuple[str, ...]:
    assert isinstance(problem, RuledOut), "all else is decided by the router"
    return problem.rules
