"""Take what seems best: always, or all but a fixed share of the time."""

from __future__ import annotations

from dataclasses import dataclass

from learners.option import option
from learners.policies.policy import Matrix, Scores, register, sure


@register("greedy")
@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Always the best estimate; equals share."""

    def probabilities(self, scores: Scores) -> Matrix:
        return sure(scores.barred)


@register("epsilon-greedy")
@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedy:
    """The best estimate, but a share `epsilon` goes to all allowed models alike."""

    epsilon: float = option(
        0.05, "ε: share of requests that go to all allowed models alike.", ge=0, le=1
    )

    def probabilities(self, scores: Scores) -> Matrix:
        uniform = scores.allowed / scores.allowed.sum(axis=1, keepdims=True)
        return (1.0 - self.epsilon) * sure(scores.barred) + self.epsilon * uniform
