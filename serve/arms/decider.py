"""Requests for arms becoming decisions: the k nearest are retrieved, ranked, and one is drawn.

    asked ─▶ vectors ─▶ alike in what they may have ─▶ Shortlist ─▶ Decision, ticket
               └─ each bad one gets its own error                              └─ k arms, their
                                                            propensities, the chosen one's pair

The k retrieved are the candidates of an ordinary decision: its `model` is the arm, its `pool` the
arm's group, its ticket is opened, explained and learned from like any other, and has all that
off-policy evaluation needs. So has its line of the decision log (`logging`).

What is known comes from the newest snapshot, solved where that is watched, off the request path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.arms.experience import Experience
from learners.arms.shortlist import ArmOptions, Arms, Ranked, Shortlist
from learners.context import Contexts
from learners.policies.policy import Policy
from serve.arms.asked import ArmInput
from serve.arms.listed import Arm
from serve.arms.logging import lines_of
from serve.arms.ruled import none_left, ruled
from serve.encoders import Encoder, identity
from serve.encoders.usable import vectors_of
from serve.errors import InvalidRequest, NoModelFits, ServeError, UnknownModel
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.decider import check_deadlines
from serve.routing.eligible import Verdict
from serve.routing.writing.decision_bytes import FALLBACKS
from serve.rules.rulebook import Rulebook
from streams.feedback.decisions import DecisionBatch
from streams.feedback.report import ARMS
from streams.feedback.said import Said, end_of
from streams.feedback.ticket import CANDIDATE, HEAD, Issuer, Sealer, key_of

ENCODED_AT_ONCE = 256
NAMED = 20  # arms, or groups, in a refusal
NO_SUCH = -2  # a group that no arm is of
QUALITY_AND_USD = [0, 1]  # of the weights of a request


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The arms by one snapshot."""

    shortlist: Shortlist
    experience: Experience
    version: int
    published_at_ms: int

    def age_ms(self, now_ms: int) -> int:
        """Time since the snapshot was published; 0 before there is one."""
        return max(0, now_ms - self.published_at_ms) if self.version else 0


class ArmDecider:
    """Of one replica. Decides on its event loop; another thread calls `refresh`."""

    def __init__(
        self,
        arms: Sequence[Arm],
        encoder: Encoder,
        ranking: ArmOptions,
        policy: Policy,
        sealer: Sealer,
        issuer: Issuer,
        now_ms: Callable[[], int],
        rng: np.random.Generator,
        log: Callable[[DecisionBatch], object] | None = None,
        rulebook: Rulebook | None = None,
    ) -> None:
        """Encode what the arms say; `log` takes lines and must not raise.

        Raises EncoderUnavailable and TextRefused.
        """
        self._log, self._encoder_name, self._rulebook = log, identity(encoder), rulebook
        self._arms, self._encoder, self._ranking, self._policy = arms, encoder, ranking, policy
        self._sealer, self._issuer, self._now_ms, self._rng = sealer, issuer, now_ms, rng
        self._encoder_key = key_of(self._encoder_name)
        self._place_of = {arm.id: place for place, arm in enumerate(arms)}
        groups = sorted({arm.group for arm in arms if arm.group})
        self._group_of = {name: number for number, name in enumerate(groups)}
        self._keys = np.array([arm.key for arm in arms], np.uint64)
        self._pool_keys = np.array([key_of(f"arms/{arm.group}") for arm in arms], np.uint64)
        self._declared = Arms(
            keys=self._keys.tolist(),
            descriptions=self._described([arm.text for arm in arms]),
            groups=np.array([self._group_of.get(arm.group, -1) for arm in arms], np.intp),
            price_usd=np.array([arm.price_usd for arm in arms]),
        )
        self._known = self._solved(Experience(), 0, 0)

    @property
    def names(self) -> dict[int, str]:
        """Arms and groups by their keys in tickets."""
        arms = {arm.key: arm.id for arm in self._arms}
        return arms | {key_of(f"arms/{name}"): name for name in ("", *self._group_of)}

    def refresh(self, experience: Experience, version: int, published_at_ms: int) -> None:
        """Take what a snapshot knows; it is solved again where it knows something new."""
        known = self._known
        if experience is known.experience or not (len(experience) or len(known.experience)):
            self._known = Known(known.shortlist, experience, version, published_at_ms)
        else:
            self._known = self._solved(experience, version, published_at_ms)

    def decide(self, asked: Sequence[ArmInput]) -> list[bytes | Exception]:
        """A `Decision` of router.proto for each, or why there is none."""
        now_ms, known = self._now_ms(), self._known
        refused: dict[int, ServeError] = {}
        vectors = vectors_of(asked, self._encoder, refused, compiled=False)
        check_deadlines([one.route for one in asked], now_ms, refused)
        asked = ruled(asked, self._rulebook, vectors, now_ms, refused)
        replies: list[Any] = [refused.get(i) for i in range(len(asked))]
        contexts = self._contexts(vectors)
        for rows in _alike(asked, refused).values():
            try:
                allowed = self._allowed(asked[rows[0]])
            except ServeError as error:
                for row in rows:
                    replies[row] = error
                continue
            alike = [asked[row] for row in rows]
            found = self._ranked(alike, contexts[rows], allowed, known, now_ms)
            for row, reply in zip(rows, found, strict=True):
                replies[row] = reply
        return replies

    def _ranked(
        self,
        asked: Sequence[ArmInput],
        contexts: Contexts,
        allowed: NDArray[np.bool_] | None,
        known: Known,
        now_ms: int,
    ) -> list[bytes]:
        """Decisions of requests that may have the same arms."""
        weights = np.array([one.route.weights for one in asked])
        uniform = self._rng.random(len(asked))
        ranked = known.shortlist.choose(contexts, uniform, weights[:, QUALITY_AND_USD], allowed)
        ids = self._issuer.take(len(asked))
        tickets = self._sealed(asked, ids, contexts, weights, ranked, known, now_ms)
        if self._log is not None:
            for line in lines_of(
                asked, ids, contexts, weights, ranked, self._arms,
                decided_at_ms=now_ms, version=known.version, encoder=self._encoder_name,
            ):  # fmt: skip
                self._log(line)
        age_ms = known.age_ms(now_ms)
        return [
            pb.Decision(
                request_id=one.route.request_id,
                decision_id=ids[row].hex(),
                snapshot_version=known.version,
                snapshot_age_ms=age_ms,
                ticket=tickets[row],
                rules=one.route.rules,
                fallbacks=self._others(one, ranked, row),
                **self._case(ranked, row, int(ranked.place[row])),
            ).SerializeToString()
            for row, one in enumerate(asked)
        ]

    def _others(self, one: ArmInput, ranked: Ranked, row: int) -> list[pb.Alternative]:
        """The other arms retrieved, as many as are asked for, the best first."""
        most = one.route.fallbacks_max if one.route.fallbacks_max is not None else FALLBACKS
        order = np.argsort(-ranked.utility[row], kind="stable").tolist()
        others = [place for place in order if place != ranked.place[row]][:most]
        return [pb.Alternative(**self._case(ranked, row, place)) for place in others]

    def _case(self, ranked: Ranked, row: int, place: int) -> dict[str, Any]:
        """What is said of one arm, chosen or not."""
        arm, of = self._arms[ranked.arms[row, place]], (row, place)
        quality = pb.Estimate(mean=ranked.quality[of], deviation=ranked.deviation[of])
        return {
            "model": arm.id,
            "pool": arm.group,
            "propensity": ranked.propensity[of],
            "utility": ranked.utility[of],
            "quality": quality,
            "cost_usd": pb.Estimate(mean=arm.price_usd),
        }

    def _sealed(
        self,
        asked: Sequence[ArmInput],
        ids: Sequence[bytes],
        contexts: Contexts,
        weights: NDArray[np.float64],
        ranked: Ranked,
        known: Known,
        now_ms: int,
    ) -> list[bytes]:
        """Tickets that outcomes come back with."""
        n, k = ranked.arms.shape
        of = np.arange(n), ranked.place
        prices = known.shortlist.price_usd
        tenants = [one.route.tenant.encode() for one in asked]
        heads, candidates = np.zeros(n, HEAD), np.zeros((n, k), CANDIDATE)
        heads["decided_at_ms"], heads["encoder"] = now_ms, self._encoder_key
        heads["snapshot_version"], heads["policy"] = known.version, key_of(ARMS)
        heads["model"], heads["pool"] = self._keys[ranked.chosen], self._pool_keys[ranked.chosen]
        heads["propensity"], heads["preference"] = ranked.propensity[of], weights
        heads["expected_cost_usd"] = heads["estimated_cost_usd"] = prices[ranked.chosen]
        heads["n_candidates"], heads["tenant_bytes"] = k, [len(tenant) for tenant in tenants]
        heads["context"], heads["estimated_quality"] = contexts, ranked.quality[of]
        candidates["model"], candidates["pool"] = (
            self._keys[ranked.arms],
            self._pool_keys[ranked.arms],
        )
        for name in ("propensity", "utility", "quality"):
            candidates[name] = getattr(ranked, name)
        candidates["cost_usd"], candidates["verdict"] = prices[ranked.arms], Verdict.ELIGIBLE
        said = [
            end_of(
                Said(one.route.task, tuple(one.route.tags), one.route.rules, pair=pair.tobytes())
            )
            for one, pair in zip(asked, ranked.chosen_pairs, strict=True)
        ]
        return self._sealer.seal(ids, heads, candidates, tenants, said=said)

    def _allowed(self, one: ArmInput) -> NDArray[np.bool_] | None:
        """Which arms a request may have; None: all. Raises UnknownModel, NoModelFits and others."""
        if not any(_limits(one)):
            return None
        route, declared = one.route, self._declared
        assert declared.groups is not None and declared.price_usd is not None
        limit_usd = route.cost_usd_max
        allowed = declared.price_usd <= (np.inf if limit_usd is None else limit_usd)
        if one.denied_groups:
            denied = [self._group_of.get(name, NO_SUCH) for name in one.denied_groups]
            allowed &= ~np.isin(declared.groups, denied)
            if not allowed.any():
                raise none_left(route.rules)
        if one.groups:
            allowed &= np.isin(declared.groups, [self._group(name) for name in one.groups])
        if route.allowed_models:
            named = np.zeros(len(allowed), bool)
            named[self._places("request.allowed_models", route.allowed_models)] = True
            allowed &= named
        allowed[self._places("request.denied_models", route.denied_models)] = False
        if not allowed.any() and route.rules:
            raise none_left(route.rules)
        if not allowed.any():
            raise NoModelFits(
                f"none of the {len(allowed):,} arms is in the groups asked for, allowed, and "
                f"within cost_usd_max"
            )
        return allowed

    def _group(self, name: str) -> int:
        if name not in self._group_of:
            known = ", ".join(list(self._group_of)[:NAMED]) or "none"
            raise InvalidRequest("groups", repr(name[:100]), f"groups of the arms: {known}")
        return self._group_of[name]

    def _places(self, field: str, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self._place_of:
                known = *tuple(self._place_of)[:NAMED], f"{len(self._place_of):,} arms in all"
                raise UnknownModel(field, name[:100], known)
        return [self._place_of[name] for name in names]

    def _solved(self, experience: Experience, version: int, published_at_ms: int) -> Known:
        shortlist = Shortlist(
            self._declared, experience, self._ranking, self._policy, as_of_ms=published_at_ms
        )
        return Known(shortlist, experience, version, published_at_ms)

    def _described(self, texts: Sequence[str]) -> Contexts:
        parts = [
            self._contexts(self._encoder.encode(texts[start : start + ENCODED_AT_ONCE]))
            for start in range(0, len(texts), ENCODED_AT_ONCE)
        ]
        return np.concatenate(parts)

    def _contexts(self, vectors: NDArray[np.float32]) -> Contexts:
        return self._encoder.projection.contexts(vectors, np.zeros(len(vectors), np.float32))


def _limits(one: ArmInput) -> tuple[object, ...]:
    """What says which arms a request may have; nothing true: any."""
    models = one.route.allowed_models, one.route.denied_models
    return one.groups, one.denied_groups, *models, one.route.cost_usd_max


def _alike(
    asked: Sequence[ArmInput], refused: dict[int, ServeError]
) -> dict[tuple[object, ...], list[int]]:
    """Rows that are not refused, by which arms they may have."""
    found: dict[tuple[object, ...], list[int]] = {}
    for row, one in enumerate(asked):
        if row not in refused:
            found.setdefault(_limits(one), []).append(row)
    return found
