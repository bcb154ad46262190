"""How far answers agree, and what that says of each: quality without a label or a judge.

    two answers ─────▶ F1 of their words (Rajpurkar et al. 2016)
    three or more ───▶ distances of all pairs ─▶ each one's distance from what is right ─▶ quality

Of several answers to one question nobody knows which is right, but errors made independently are
far from each other. With λ_i = truth + ε_i the expected squared distances are sums, δ_ij = σ_i² +
σ_j², so of any three

    σ_i² = (δ_ij + δ_ik − δ_jk) / 2

and each σ_i² is the mean over all pairs of others (Smoothie, Guha et al. 2024, for one request).
Here δ is one minus the F1 of words, within [0, 1]. So who says what most say has quality 1, who
stands alone 0; where all differ each has a half. It is much for questions that have one answer, and
little for free text; and models that err alike (relatives of one family) look right together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

AGREEMENT = "agreement"  # the source of such feedback
ANSWERS_MIN = 3  # of two that differ either may be right


def agreement(answer: str, given: str) -> float | None:
    """F1 of the words of two answers; None where there are no words.

    >>> agreement("The answer is B.", "the answer is b"), agreement("A", "B")
    (1.0, 0.0)
    """
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, given))
    if not ours or not theirs:
        return None
    shared = (ours & theirs).total()
    return 2.0 * shared / (ours.total() + theirs.total())


def qualities(answers: Sequence[str]) -> list[float | None]:
    """Of each of several answers, 0 to 1; None for those without words, or where too few have.

    >>> qualities(["B", "B", "C"]), qualities(["B", "C"])
    ([1.0, 1.0, 0.0], [None, None])
    """
    worded = [i for i, answer in enumerate(answers) if re.search(r"\w", answer)]
    found: list[float | None] = [None] * len(answers)
    if len(worded) < ANSWERS_MIN:
        return found
    apart = {
        frozenset(pair): 1.0 - (agreement(answers[pair[0]], answers[pair[1]]) or 0.0)
        for pair in combinations(worded, 2)
    }
    for i in worded:
        others = list(combinations([j for j in worded if j != i], 2))
        squares = [
            (apart[frozenset((i, j))] + apart[frozenset((i, k))] - apart[frozenset((j, k))]) / 2
            for j, k in others
        ]
        found[i] = min(max(1.0 - sum(squares) / len(others), 0.0), 1.0)
    return found
