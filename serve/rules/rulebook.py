"""All rules, compiled: which of them a request meets.

    rules ──compiled──▶ patterns, examples, tests          once, when a replica starts
    requests, embeddings ──matched──▶ numbers of rules      a hundred rules take some 20 µs

What costs most, looking through the text, is done once for all rules (`patterns`); similarity to
examples is one product for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.encoders import Encoder
from serve.errors import TextRefused
from serve.rules.conditions import Needs, Test, compiled, meant
from serve.rules.facts import Asked, Facts
from serve.rules.patterns import Patterns
from serve.rules.rule import Rule
from serve.sessions.states import NEW
from streams.errors import OptionRefused


class Rulebook:
    """Rules in their order."""

    def __init__(
        self, rules: Sequence[Rule], encoder: Encoder | None = None, *, first_only: bool = False
    ) -> None:
        """With `first_only` the first rule that matches counts alone. Without an encoder the
        rules are only checked. Raises OptionRefused, and EncoderUnavailable.
        """
        self.rules, self._first_only, needs = tuple(rules), first_only, Needs()
        self._tests: list[Test] = []
        n_groups = []  # of examples, by rule
        for rule in rules:
            before = len(needs.examples)
            self._tests.append(compiled(f"rules.{rule.name}.when", rule.when, needs))
            n_groups.append(len(needs.examples) - before)
        # The states that sessions may come to be in, other than "new".
        self.states = tuple(dict.fromkeys(rule.state for rule in rules if rule.state))
        for name in needs.states:
            if name not in (NEW, *self.states):
                raise OptionRefused("rules.when.state", name, meant(name, (NEW, *self.states)))
        self._patterns = Patterns(needs.patterns)
        self._group_of = [at for at, n in enumerate(n_groups) for _ in range(n)]
        self._least = np.array([least for _, least in needs.examples])
        texts = [text for texts, _ in needs.examples for text in texts]
        self._starts = np.cumsum([0, *(len(texts) for texts, _ in needs.examples)])[:-1]
        self.looks_at_embeddings = bool(texts)
        self._examples = np.zeros((0, 0), np.float32)  # (m, dim)
        if texts and encoder is not None:
            self._examples = _encoded(texts, encoder)

    def __len__(self) -> int:
        return len(self.rules)

    def matched(
        self,
        asked: Sequence[Asked],
        tokens: Sequence[float],
        embeddings: NDArray[np.float32] | None,
        at_ms: int,
        states: Sequence[str] = (),
    ) -> list[tuple[int, ...]]:
        """Of each request, the numbers of the rules that it meets, in their order.

        `states` are those of their sessions; left out: all are new.
        """
        similar: Sequence[Sequence[bool]] = [()] * len(asked)
        if self.looks_at_embeddings and embeddings is not None:
            similar = self._similar(embeddings)
        return [
            self._of(Facts(one, n, at_ms, self._patterns, similar=like, state=state))
            for one, n, like, state in zip(
                asked, tokens, similar, states or [NEW] * len(asked), strict=True
            )
        ]

    def similarity(self, embedding: NDArray[np.float32]) -> dict[str, float]:
        """By rule with examples, how similar a request (1, dim) is to the nearest of them."""
        found: dict[str, float] = {}
        for group, cosine in zip(self._group_of, self._cosines(embedding)[0], strict=True):
            name = self.rules[group].name
            found[name] = max(found.get(name, -1.0), float(cosine))
        return found

    def _of(self, facts: Facts) -> tuple[int, ...]:
        found = []
        for at, test in enumerate(self._tests):
            if test(facts):
                found.append(at)
                if self._first_only:
                    break
        return tuple(found)

    def _similar(self, embeddings: NDArray[np.float32]) -> list[list[bool]]:
        """Whether each request is like one of each group of examples."""
        found: list[list[bool]] = (self._cosines(embeddings) >= self._least).tolist()
        return found

    def _cosines(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest example's (n, groups)."""
        cosines: NDArray[np.float32] = _unit(embeddings) @ self._examples.T
        nearest: NDArray[np.float32] = np.maximum.reduceat(cosines, self._starts, axis=1)
        return nearest


def _encoded(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    try:
        return _unit(encoder.encode(texts))
    except TextRefused as error:
        wanted = "left out, or [encoder] of a kind that reads texts"
        raise OptionRefused("rules.when.examples", encoder.name, wanted) from error


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
