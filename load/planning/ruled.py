"""What a site's rules can see of a trace's requests, and what they can't: that is said.

    kinds of requests, texts of the outcome table ─┬─▶ Ruleset, for the simulation
    [[rules]], [guard], limits of [preference] ────┘
    rules, before any simulation ──left_by_rules──▶ the models that each request may have
    conditions that nobody says anything for ──by rule──▶ assumed

The rules are the site's own, applied by the code that serves. Where nobody says what a condition
asks for it does not hold, as in a live site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import Kind, said_by
from load.data.tables import Encode, OutcomeTable
from load.data.traffic import Traffic
from load.planning.questions import Questions
from load.planning.site import Site
from load.simulation.loop.asking import Ruler, Ruleset
from serve.encoders import Encoder, make_encoder
from serve.routing.catalogue import Catalogue
from serve.rules.rulebook import Rulebook

OF_TEXTS = ("keywords", "pattern", "language", "code", "pii", "jailbreak")
OF_KINDS = ("tenant", "task", "tags", "modality")
USUAL = {"modality": "text", "state": "in state new"}  # what requests are that do not say
DISPATCHED = ("system_prompt", "extra")
UNDATED = (
    "the trace states no dates: it is taken to begin on Monday, 6 October 2025, at 0:00 UTC, by "
    "which hours, days and budgets go"
)


class Dated(Protocol):
    """A trace, whole or in parts."""

    @property
    def since_1970(self) -> bool:
        """Whether it states dates."""

    @property
    def says_sessions(self) -> bool:
        """Whether it says which conversations requests belong to."""


def ruleset_of(site: Site, kinds: Sequence[Kind], questions: Questions) -> Ruleset | None:
    """None where nothing is said of requests, and nothing is ruled: they are plain then.

    Raises OptionRefused, and EncoderUnavailable.
    """
    said = set(said_by(kinds)) & {"tenant", "task", "tags"}
    if not (said or site.rules or site.limits or site.guard.model):
        return None
    encoder = _encoder_of(site) if Rulebook(site.rules).looks_at_embeddings else None
    first = site.settings.stated("router.rules_match") == "first"
    return Ruleset(
        rulebook=Rulebook(site.rules, encoder, first_only=first),
        usual=site.limits,
        texts=questions.asked.texts,
        embeddings=None if encoder is None else _embedded(questions.asked, encoder),
        session_state_s=site.settings.stated("router.session_state_s"),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """The models, and how good each is taken to be (k,): what rules ask of a view."""

    catalogue: Catalogue
    known_quality: NDArray[np.float64]


def left_by_rules(
    site: Site,
    clock_s: float,
    traffic: Traffic,
    questions: Questions,
    quality: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which models rules leave each request of a traffic (n, k), and prefer where any is preferred;
    none of one that they refuse. `quality` (k,) is what models are known to be worth.
    """
    left = np.ones((len(traffic), len(site.catalogue)), bool)
    ruleset = ruleset_of(site, traffic.kinds, questions)
    if ruleset is None or not site.rules:
        return left
    ruler, known = Ruler(ruleset, site.preference), _Known(site.catalogue, quality)
    minute = (traffic.at_s // 60.0).astype(np.intp)
    for one in np.unique(minute).tolist():  # rules go by the hour and minute
        rows = np.flatnonzero(minute == one)
        at_ms = round(1e3 * (clock_s + traffic.at_s[rows[0]]))
        found, refused = ruler.ruled(traffic, rows, known, at_ms)
        if found.left is None or found.preferred is None:
            continue
        wanted = found.left & found.preferred
        left[rows] = np.where(wanted.any(axis=1, keepdims=True), wanted, found.left)
        left[rows[list(refused)]] = False
    return left


def _encoder_of(site: Site) -> Encoder:
    return _made(site.settings.deployment().encoder)


_made = lru_cache(maxsize=4)(make_encoder)  # a plan simulates dozens of fleets


def _embedded(table: OutcomeTable, encoder: Encoder) -> NDArray[np.float32] | None:
    """A table's prompts as the site's encoder has them (t, dim): made of the texts; without these
    the table's own, where they are as long. None where nobody knows.
    """
    if table.texts is None:
        return table.embeddings if _as_long(table, encoder) else None
    return _encoded(table.texts, encoder.encode)


@lru_cache(maxsize=4)
def _encoded(texts: tuple[str | None, ...], encode: Encode) -> NDArray[np.float32]:
    """Vectors (t, dim); all zeros where there is no text, which is like nothing."""
    rows = [row for row, text in enumerate(texts) if text]
    made = encode([texts[row] or "" for row in rows])
    found = np.zeros((len(texts), made.shape[1]), np.float32)
    found[rows] = made
    return found


def _as_long(table: OutcomeTable, encoder: Encoder) -> bool:
    hashed = encoder.name.startswith("hashing")  # nobody else's vectors are like these
    return table.embeddings.shape[1] == encoder.dim and not hashed


def assumed_of(
    site: Site, trace: Dated, kinds: Sequence[Kind], questions: Questions
) -> Iterator[str]:
    """What rules, budgets and the guard would need, and nobody says here."""
    if _looks_at_dates(site) and not trace.since_1970:
        yield UNDATED
    texts, said = questions.asked.texts is not None, said_by(kinds)
    said += ("state",) * trace.says_sessions
    for rule in site.rules:
        unsaid = [name for name in signals(rule.when) if not _is_said(name, site, questions, said)]
        for name in (one for one in unsaid if one in USUAL):
            yield f"rule {rule.name!r}: nobody says {name} here, so all are {USUAL[name]}"
        if never := [name for name in unsaid if name not in USUAL]:
            yield f"rule {rule.name!r}: nobody says {', '.join(never)} here, so that can't hold"
        idle = [name for name in DISPATCHED if getattr(rule, name)]
        if idle:
            yield f"rule {rule.name!r}: {' and '.join(idle)} change no emulated answer"
        if "examples" in signals(rule.when) and "examples" not in unsaid and not texts:
            yield f"rule {rule.name!r}: the table's embeddings are taken to be the site's encoder's"
    yield from _of_budgets(site, kinds)
    yield from _of_guard(site, questions)


def _looks_at_dates(site: Site) -> bool:
    asked_for = {name for rule in site.rules for name in signals(rule.when)}
    return bool(site.pricing.budgets or asked_for & {"hours", "days"})


def _of_budgets(site: Site, kinds: Sequence[Kind]) -> Iterator[str]:
    there = {
        "tenant": {kind.tenant for kind in kinds},
        "tag": {tag for kind in kinds for tag in kind.tags} | {rule.tag for rule in site.rules},
        "model": set(site.catalogue.names),
    }
    for budget in site.pricing.budgets:
        if budget.scope in there and budget.value not in there[budget.scope]:
            what = f"{budget.scope} {budget.value!r}"
            yield f"budget {budget.name!r}: nothing here is of {what}, so it counts nothing"


def _of_guard(site: Site, questions: Questions) -> Iterator[str]:
    n = 0 if questions.known is None else len(questions.known)
    if site.guard.model and n < site.guard.prompts_min:
        yield (
            f"[guard]: nothing is far before {site.guard.prompts_min:,} different prompts are "
            f"known; routers begin with {n:,}"
        )


def _is_said(name: str, site: Site, questions: Questions, said: Sequence[str]) -> bool:
    """Whether a condition could hold for any request."""
    if name in OF_TEXTS:
        return questions.asked.texts is not None
    if name == "examples":
        return _embedded(questions.asked, _encoder_of(site)) is not None
    return name in said if name in (*OF_KINDS, "state") else True


def signals(when: Mapping[str, Any]) -> list[str]:
    """The names of all that a condition asks for, each once.

    >>> signals({"task": "sum", "any": [{"pii": True}, {"not": {"task": "x"}}]})
    ['task', 'pii']
    """
    found: list[str] = []
    for name, value in when.items():
        if name in ("all", "any"):
            found += [one for table in value for one in signals(table)]
        elif name == "not":
            found += signals(value)
        elif name != "similarity_min":
            found.append(name)
    return list(dict.fromkeys(found))
