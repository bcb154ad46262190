"""One rule of the settings: when it holds, and what it does then.

    [[rules]]
    name = "personal data stays here"
    when = { pii = true }                 a table: all that it says must hold
    allow = ["own-small", "own-large"]

What `when` may say is in `conditions`. Rules only ever narrow what a request may have, and add to
what it says: so the order in which they are written does not matter, unless only the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from learners.option import option, required

WORD_MAX = 64  # of a tag; of a name, which travels in tickets


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule. What it leaves out, it does not touch."""

    name: str = required("Its name, unique.", min_length=1, max_length=WORD_MAX)
    when: Mapping[str, Any] = option(
        {}, "The condition: a table of signals, `all`, `any`, `not`. Empty: always."
    )
    allow: tuple[str, ...] = option((), "Only these models. Empty: all.")
    deny: tuple[str, ...] = option((), "Never these models.")
    allow_groups: tuple[str, ...] = option((), "Of arms: only those of these groups. Empty: all.")
    deny_groups: tuple[str, ...] = option((), "Of arms: never those of these groups.")
    prefer: tuple[str, ...] = option(
        (), "Only these, where one of them is within the request's limits and has a replica."
    )
    pin: str = option("", "Only this model. As `allow` with it alone.", max_length=200)
    floor: str = option(
        "", "Only models that are known to be at least as good as this one.", max_length=200
    )
    refuse: str = option("", "Refused, with this message to the caller.", max_length=500)
    preference: Mapping[str, float] = option(
        {}, "Weights in place of the request's: quality, cost, latency, energy."
    )
    quality_min: float = option(0.0, "The request's `quality_min` is at least this.", ge=0, le=1)
    cost_usd_max: float = option(
        math.inf,
        "The request's `cost_usd_max` is at most this, USD; 0: no limit.",
        ge=0,
        le=1e6,
        stands_for=(0.0, math.inf),
    )
    latency_ms_max: float = option(
        math.inf,
        "The request's `latency_ms_max` is at most this, ms; 0: no limit.",
        ge=0,
        le=1e9,
        stands_for=(0.0, math.inf),
    )
    guard: Literal["", "on", "off"] = option(
        "",
        "on: taken to be far from everything seen, as by `[guard]`. off: never.",
        choices=("", "on", "off"),
    )
    tag: str = option("", "A tag that the request gets, for budgets.", max_length=WORD_MAX)
    state: str = option(
        "",
        "The state that the request's session is in from its next request on; new: as at first.",
        max_length=WORD_MAX,
    )
    system_prompt: str = option(
        "", "Dispatch: said to the model before all messages.", max_length=20_000
    )
    extra: Mapping[str, Any] = option(
        {},
        "Dispatch: put into the call's body, over what the caller has there. Such as "
        '{ cache_salt = "none" } for a server whose cache is to be passed by.',
    )

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups of arms that it names, by key."""
        return {"allow_groups": self.allow_groups, "deny_groups": self.deny_groups}

    @property
    def models(self) -> dict[str, tuple[str, ...]]:
        """The models it names, by key."""
        one = {"pin": self.pin, "floor": self.floor}
        listed = {"allow": self.allow, "deny": self.deny, "prefer": self.prefer}
        return listed | {key: (name,) if name else () for key, name in one.items()}
