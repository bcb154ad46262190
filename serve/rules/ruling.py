"""Rules applied to a batch before it is scored: what requests say is changed, models are ruled out.

    requests ──Rulebook──▶ rules each meets ──▶ requests with their limits, weights and tags
                                            └─▶ masks over models: what is left, what is preferred

Everything happens before the draw, so propensities are those of the draw among what was left.
Several rules hold together: of two lists of allowed models what is in both, of two limits the
narrower; `prefer` and `preference` of the first rule that has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.errors import RuledOut, ServeError
from serve.rules.facts import Asked
from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from serve.sessions.states import SessionStates

Mask = NDArray[np.bool_]
MASKS_KEPT = 1024  # combinations of rules
Found = tuple[int, ...]  # numbers of rules that matched, in their order


One = TypeVar("One", bound=Asked)


class Named(Protocol):
    """What has models."""

    @property
    def names(self) -> tuple[str, ...]:
        """Theirs (k,)."""


class View(Protocol):
    """The models, and what is known of each: `serve.routing.live.Live`."""

    @property
    def catalogue(self) -> Named:
        """The models there are."""

    @property
    def known_quality(self) -> NDArray[np.float64]:
        """On average (k,): learned, and before outcomes as stated."""


class Ruled(NamedTuple):
    """A batch with its rules applied. Masks are None where no request met a rule."""

    asked: Sequence[Any]
    left: Mask | None = None  # (n, k) models that rules leave
    preferred: Mask | None = None  # (n, k)


class Ruling:
    """The rules of one replica. Used from one thread."""

    def __init__(
        self, rulebook: Rulebook, weights: Sequence[str], states: SessionStates | None = None
    ) -> None:
        """`weights` are the names of a preference's weights, in their order."""
        self.rulebook, self._weights, self._states = rulebook, weights, states
        self._live: View | None = None  # what the masks are of
        self._masks = lru_cache(MASKS_KEPT)(self._mask_of)

    def apply(
        self,
        asked: Sequence[Any],
        tokens: Sequence[float],
        embeddings: NDArray[np.float32] | None,
        allowed: Mask,
        live: View,
        now_ms: int,
        refused: dict[int, ServeError],
    ) -> Ruled:
        """Rule on n requests; whom a rule leaves nothing is added to `refused`."""
        if not len(self.rulebook):
            return Ruled(asked)
        matched = self.rulebook.matched(
            asked, tokens, embeddings, now_ms, self._states_of(asked, now_ms)
        )
        if not any(matched):
            return Ruled(asked)
        if live is not self._live:
            self._live = live
            self._masks.cache_clear()
        changed, left, preferred = list(asked), np.ones_like(allowed), np.ones_like(allowed)
        for row, found in enumerate(matched):
            if not found:
                continue
            rules = [self.rulebook.rules[at] for at in found]
            changed[row] = changed_by(asked[row], rules, self._weights)
            self._put_state(asked[row], rules, now_ms)
            left[row], preferred[row] = self._masks(found)
            problem = _problem(rules, left[row] & allowed[row])
            if problem is not None and allowed[row].any():
                refused.setdefault(row, problem)
        return Ruled(changed, left, preferred)

    def _states_of(self, asked: Sequence[Any], now_ms: int) -> Sequence[str]:
        """The states of their sessions, where rules give any."""
        if self._states is None or not self.rulebook.states:
            return ()
        return [self._states.of(one.tenant, one.session, now_ms) for one in asked]

    def _put_state(self, one: Any, rules: Sequence[Rule], now_ms: int) -> None:
        """What the first of these rules that says so makes of the request's session."""
        state = next((rule.state for rule in rules if rule.state), "")
        if state and self._states is not None:
            self._states.put(one.tenant, one.session, state, now_ms)

    def _mask_of(self, found: Found) -> tuple[Mask, Mask]:
        """The models (k,) that rules leave, and prefer."""
        assert self._live is not None
        rules = [self.rulebook.rules[at] for at in found]
        return left_by_rules(rules, self._live), preferred_by(rules, self._live)


def changed_by(one: One, rules: Sequence[Rule], weights: Sequence[str]) -> One:
    """The request as it is routed."""
    said: Any = one
    tags = dict.fromkeys([*one.tags, *(rule.tag for rule in rules if rule.tag)])
    changes: dict[str, object] = {"rules": tuple(rule.name for rule in rules), "tags": tuple(tags)}
    least = max((rule.quality_min for rule in rules), default=0.0)
    if least > (said.quality_min or 0.0):
        changes["quality_min"] = least
    for name in ("cost_usd_max", "latency_ms_max"):
        most, own = min(getattr(rule, name) for rule in rules), getattr(said, name)
        if most < np.inf and (own is None or most < own):
            changes[name] = most
    changes["guard"] = next((rule.guard for rule in rules if rule.guard), "")
    preference = next((rule.preference for rule in rules if rule.preference), None)
    if preference:
        pairs = zip(weights, said.weights, strict=True)
        changes["weights"] = tuple(float(preference.get(name, own)) for name, own in pairs)
    found: One = replace(said, **changes)
    return found


def left_by_rules(rules: Sequence[Rule], live: View) -> Mask:
    """The models (k,) that every one of these rules leaves."""
    left = np.ones(len(live.catalogue.names), np.bool_)
    for rule in rules:
        for only in (rule.allow, (rule.pin,) if rule.pin else ()):
            if only:
                left &= _listed(only, live)
        left &= ~_listed(rule.deny, live)
        if rule.floor in live.catalogue.names:
            known = live.known_quality
            left &= known >= known[live.catalogue.names.index(rule.floor)]
        if rule.refuse:
            left[:] = False
    return left


def preferred_by(rules: Sequence[Rule], live: View) -> Mask:
    """The models (k,) that the first of these rules with a preference among them prefers."""
    first = next((rule for rule in rules if rule.prefer), None)
    return (
        np.ones(len(live.catalogue.names), np.bool_)
        if first is None
        else _listed(first.prefer, live)
    )


def _listed(names: Sequence[str], live: View) -> Mask:
    return np.isin(live.catalogue.names, names)


def _problem(rules: Sequence[Rule], left: Mask) -> RuledOut | None:
    """Why a request has no model left by rules, if so."""
    if left.any():
        return None
    refusing = next((rule for rule in rules if rule.refuse), None)
    if refusing is not None:
        return RuledOut((refusing.name,), refusing.refuse)
    narrow = [r for r in rules if r.allow or r.deny or r.pin or r.floor]
    return RuledOut(
        tuple(rule.name for rule in narrow or rules),
        "of the models that the request allows, they leave none; ask the operator, or allow more",
    )
