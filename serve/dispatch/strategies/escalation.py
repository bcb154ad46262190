"""Whether a cheap answer is good enough, and which model is asked where it is not.

    confidence         surer than the request says?                   else the best model
    gain               worth as much as the best utility there is?    else whose that is
    self_consistency   the same, by how far several answers agree     else whose that is

By gain, utilities are those of the decision: quality, less price and time by the request's
preference. The cheap answer is there and paid for, so it counts by its quality alone. How good it
is likely to be is what was predicted of its model, moved by what it shows: how sure it was
(`sureness`), or how its model's answers agree (`self_consistency`). By the latter other models'
utilities move, too: a question on which one model's answers differ is hard for the next as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learners.targets import Target
from serve.dispatch.attempt import Attempt, Place
from serve.dispatch.backend import Piece
from serve.dispatch.caller import AnswerState
from serve.dispatch.strategies.self_consistency import Spread, quality, shift_of
from serve.dispatch.strategies.sureness import Sureness
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live

Case = pb.Decision | pb.Alternative


@dataclass(slots=True, kw_only=True)
class Cheap:
    """The answer of a cascade's first model, whole and not settled."""

    attempt: Attempt
    pieces: Sequence[Piece]
    spread: Spread | None = None  # of its model's answers; None: it was asked once
    because: str = ""  # what is said of it if another's answer is given


class Escalation:
    """Of one dispatcher. Used from one event loop."""

    def __init__(self, quality_weight: float, uniform: Callable[[], float]) -> None:
        """`quality_weight` is that of requests that state none."""
        self._quality_weight, self._uniform = quality_weight, uniform
        self._sureness = Sureness()

    def better(self, request: AnswerState, cheap: Cheap, confidence_min: float) -> str:
        """The model that shall answer instead; "" where the cheap answer is good enough."""
        others = [case for case in request.cases() if case.model != cheap.attempt.place.model]
        if not others:
            return ""
        if request.dispatch.escalate == "confidence":
            sure = cheap.attempt.confidence
            short = sure is not None and sure < confidence_min
            best = best_of(request, cheap.attempt.place.model)
            return best if short and best != cheap.attempt.place.model else ""
        weight = self._weight(request)
        gains = {case.model: case.utility + self._moved(request, cheap, case) for case in others}
        most = max(gains, key=gains.__getitem__)
        return most if gains[most] > weight * self._quality(request, cheap) else ""

    def _weight(self, request: AnswerState) -> float:
        preference = request.dispatch.route.preference
        return preference.quality if preference.HasField("quality") else self._quality_weight

    def _moved(self, request: AnswerState, cheap: Cheap, case: Case) -> float:
        """By how much another model's utility moves."""
        if cheap.spread is None:
            return 0.0
        return self._weight(request) * shift_of(request.live, case.model, cheap.spread)[0]

    def _quality(self, request: AnswerState, cheap: Cheap) -> float:
        """Of the cheap answer, as is likely."""
        model, confidence = cheap.attempt.place.model, cheap.attempt.confidence
        predicted = next(c.quality.mean for c in request.cases() if c.model == model)
        if cheap.spread is None:
            return self._sureness.quality(model, predicted=predicted, confidence=confidence)
        uniform = self._uniform()
        return quality(request.live, model, cheap.spread, predicted=predicted, uniform=uniform)


def cheapest_of(request: AnswerState) -> str:
    """The model that is tried first."""
    return min(request.cases(), key=lambda case: case.cost_usd.mean).model


def places_of(request: AnswerState, model: str) -> list[Place]:
    """Where a model can be called."""
    return [place for place in request.places if place.model == model]


def best_of(request: AnswerState, cheap: str) -> str:
    """The model with the best predicted quality, unless it can't be told from the cheapest's.

    Before anything is learned no two models can: the cheapest would be the best, and nothing ever
    escalated. So of those that are as good within what their estimates are off, it is the one with
    the best stated quality, and then the dearest: a price says something of quality, too.
    """
    cases, live = request.cases(), request.live
    top = max(cases, key=lambda case: case.quality.mean)
    off = {case.model: _off(case, live) for case in cases}
    alike = [
        case
        for case in cases
        if top.quality.mean - case.quality.mean <= math.hypot(off[top.model], off[case.model])
    ]
    if cheap not in {case.model for case in alike}:
        return top.model
    return max(alike, key=lambda case: (_stated(case, live), case.cost_usd.mean)).model


def _off(case: Case, live: Live) -> float:
    """Standard deviation of a predicted quality itself, without the noise of single outcomes."""
    noise = float(live.estimator.noise[live.catalogue.column_of[case.model], Target.QUALITY])
    return math.sqrt(max(0.0, case.quality.deviation**2 - noise**2))


def _stated(case: Case, live: Live) -> float:
    """The quality that is stated of a model; where none is, what is predicted."""
    stated = float(live.catalogue.quality[live.catalogue.column_of[case.model]])
    return case.quality.mean if math.isnan(stated) else stated
