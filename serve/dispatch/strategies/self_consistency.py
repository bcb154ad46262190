"""What a model's own answers to one question say of it, by how far they agree (self-consistency).

    n answers of one model ─▶ groups that say the same ─▶ all │ most │ none ─▶ a tag of the request
                                                                                    │
    how good models are for requests with that tag, learned from outcomes ◀─────────┘

Sampled several times, a model repeats what it knows and scatters where it guesses (Wang et al.
2023; ACAR routes by it). What an agreement is worth differs by model and by site, so it is learned:
the tag is in the ticket of the answer that was given, and its outcome counts for that model and tag
as for any tag (`learners.estimates.trait_effects`). Until there are outcomes, log odds of the
predicted quality are moved by a guess, which counts as 25 outcomes. Because only answers that
were given are ever learned from, what is not known for sure is drawn (Thompson sampling): so an
answer of answers that differ is given now and then, until it is known whether it may be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

from learners.traits import traits_of
from serve.dispatch.strategies.agreement import agreement
from serve.dispatch.strategies.sureness import log_odds
from serve.routing.live import Live

Spread = Literal["all", "most", "none"]

TAG = "self-consistency:"  # and the spread: the tag of a ticket
ALIKE_MIN = 0.8  # F1 of words from which two answers say the same
# In log odds, by which the quality is moved that was predicted before anybody answered.
GUESSED: dict[Spread, float] = {"all": 1.0, "most": -1.0, "none": -3.0}
GUESS_OUTCOMES, GUESS_DEVIATION = 25.0, 0.07  # what it counts as; how far off it may well be
_LAST = re.compile(r"(?<![\w.,])(-?\d[\d,]*(?:\.\d+)?|[A-Z])\W*$")


def spread_of(answers: Sequence[str]) -> tuple[int, Spread | None]:
    """The answer that most others say too, the first of these; None: too few have words.

    >>> spread_of(["Rome", "Paris", "paris"]), spread_of(["1", "2"]), spread_of(["1"])
    ((1, 'most'), (0, 'none'), (0, None))
    """
    worded = [i for i, answer in enumerate(answers) if re.search(r"\w", answer)]
    if len(worded) < 2:
        return (worded or [0])[0], None
    backing = {i: sum(alike(answers[i], answers[j]) for j in worded) for i in worded}
    given = max(worded, key=lambda i: (backing[i], -i))
    most = backing[given]
    return given, "all" if most == len(worded) else "most" if 2 * most > len(worded) else "none"


def alike(one: str, other: str) -> bool:
    """Whether two answers say the same: where both end in a number or a letter, by that.

    >>> alike("6 x 7 is 42.", "So it is **42.0**"), alike("The answer is 4", "The answer is 5")
    (True, False)
    """
    last = _last(one), _last(other)
    if None not in last:
        return last[0] == last[1]
    return (agreement(one, other) or 0.0) >= ALIKE_MIN


def _last(text: str) -> str | float | None:
    found = _LAST.search(text[-200:])
    if found is None:
        return None
    word = found[1].replace(",", "")
    return word if word.isalpha() else float(word)


def tag_of(spread: Spread) -> str:
    """As tickets and the decision log have it."""
    return f"{TAG}{spread}"


def quality(live: Live, model: str, spread: Spread, *, predicted: float, uniform: float) -> float:
    """How good the answer is likely to be that its model's answers agree on so far."""
    guess = 1.0 / (1.0 + math.exp(-(log_odds(predicted) + GUESSED[spread]))) - predicted
    shift, n = shift_of(live, model, spread)
    guessed = GUESS_OUTCOMES / (GUESS_OUTCOMES + n)  # as much of it is left
    deviation = GUESS_DEVIATION * math.sqrt(guessed)
    drawn = NormalDist().inv_cdf(min(max(uniform, 0.001), 0.999)) * deviation
    return min(max(predicted + (1.0 - guessed) * shift + guessed * guess + drawn, 0.0), 1.0)


def shift_of(live: Live, model: str, spread: Spread) -> tuple[float, float]:
    """By how much outcomes shift a model where answers agree so far; how many outcomes."""
    effects = live.estimator.effects
    if effects is None:
        return 0.0, 0.0
    at = traits_of("", (tag_of(spread),), "")[0], live.catalogue.column_of[model]
    return float(effects.shifts[at]), float(effects.counts[at])
