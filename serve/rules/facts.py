"""What conditions are asked about one request; what costs something is found once, if at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serve.rules.hints import has_card
from serve.rules.languages import language_of
from serve.rules.patterns import Patterns
from serve.sessions.states import NEW

DAY_MS, MINUTE_MS = 86_400_000, 60_000
THURSDAY = 3  # the weekday of Unix time 0, where Monday is 0


class Asked(Protocol):
    """A request as far as rules look at it."""

    @property
    def text(self) -> str | None:
        """The prompt; None where its embedding came instead."""

    @property
    def task(self) -> str:
        """Its kind of work, in the caller's word."""

    @property
    def tags(self) -> Sequence[str]:
        """Further words of the caller's."""

    @property
    def tenant(self) -> str:
        """On whose behalf."""

    @property
    def modality(self) -> str:
        """What it is beside text; "": nothing is said of it."""


class Facts:
    """One request. A text that did not come (only its embedding did) has no signal."""

    __slots__ = ("_card", "_language", "asked", "at_ms", "found", "similar", "state", "tokens")

    def __init__(
        self,
        asked: Asked,
        tokens: float,
        at_ms: int,
        patterns: Patterns,
        *,
        similar: Sequence[bool] = (),
        state: str = NEW,
    ) -> None:
        """`similar` says of each group of examples whether the request is like one of them,
        `state` which one its session is in.
        """
        self.asked, self.tokens, self.at_ms, self.similar = asked, tokens, at_ms, similar
        self.state = state
        self.found = patterns.found_in(asked.text)  # numbers of the patterns its text has
        self._language: str | None = None
        self._card: bool | None = None

    @property
    def language(self) -> str:
        """Of its text; "" where it is not known."""
        if self._language is None:
            self._language = language_of(self.asked.text or "")
        return self._language

    @property
    def has_card(self) -> bool:
        """Whether the number of a payment card is in its text."""
        if self._card is None:
            self._card = has_card(self.asked.text or "")
        return self._card

    @property
    def minute(self) -> int:
        """Of the day, in UTC."""
        return self.at_ms % DAY_MS // MINUTE_MS

    @property
    def weekday(self) -> int:
        """Monday is 0, in UTC."""
        return (self.at_ms // DAY_MS + THURSDAY) % 7
