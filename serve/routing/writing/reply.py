"""What is said about a decision in words: why no model fits, and what a ticket explains.

Nothing is decided here: what is written was decided in `router`. Decisions themselves are written
in `decision_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from learners.context import real
from serve.errors import NoModelFits
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.choices import Choices
from serve.routing.eligible import Verdict
from serve.routing.live import Live
from serve.routing.request import WEIGHTS, RouteInput
from streams.feedback.report import ARMS
from streams.feedback.ticket import Ticket, key_of

NO_ARMS: Mapping[int, str] = MappingProxyType({})
REASONS_MAX = 20  # models of which a refusal says why
REASONS = {
    Verdict.NOT_ALLOWED: "not allowed by the request",
    Verdict.TOO_DEAR: "predicted cost above the request's limit",
    Verdict.TOO_SLOW: "predicted latency above the request's limit",
    Verdict.PROMPT_TOO_LONG: "the prompt is longer than the model takes",
    Verdict.NO_REPLICA: "none of its pools had a replica",
    Verdict.BELOW_QUALITY: "probability of success below the request's quality_min",
    Verdict.STRONG_SHARE: "the strong model, on other prompts further ahead: strong_share_max",
    Verdict.OVER_BUDGET: "more than what a budget has left",
    Verdict.RULED_OUT: "ruled out by a rule of the operator's",
    Verdict.NOT_PREFERRED: "a rule of the operator's, or the guard, prefers others",
    Verdict.DRAINING: "the operator drains it: it gets no more requests",
}


def write_probes(
    ids: Sequence[bytes], tickets: Sequence[bytes], choices: Choices, live: Live
) -> list[pb.Probe]:
    """The suggestions of calls that were bought to learn from, n of them."""
    estimate = pb.Estimate
    return [
        pb.Probe(
            decision_id=ids[i].hex(),
            model=live.catalogue.names[j],
            pool=live.catalogue.pool_names[choices.pool[i]],
            ticket=tickets[i],
            quality=estimate(mean=choices.quality[i, j], deviation=choices.quality_deviation[i, j]),
            cost_usd=estimate(
                mean=choices.cost_usd[i, j], deviation=choices.cost_usd_deviation[i, j]
            ),
        )
        for i, j in enumerate(choices.chosen.tolist())
    ]


def no_model_fits(one: RouteInput, row: int, choices: Choices, live: Live) -> NoModelFits:
    """Say of every model why it was out."""
    why: dict[Verdict, Callable[[int], str]] = {
        Verdict.NOT_ALLOWED: lambda j: "not allowed",
        Verdict.TOO_DEAR: lambda j: (
            f"predicted cost ${choices.cost_usd[row, j]:.3g} is above cost_usd_max "
            f"{one.cost_usd_max:g}"
        ),
        Verdict.TOO_SLOW: lambda j: (
            f"predicted latency {choices.latency_ms[row, j]:.0f} ms is above latency_ms_max "
            f"{one.latency_ms_max:g}"
        ),
        Verdict.PROMPT_TOO_LONG: lambda j: (
            f"the prompt has more than its {live.catalogue.context_tokens_max[j]:.0f} tokens"
        ),
        Verdict.NO_REPLICA: lambda j: "none of its pools has a replica now",
        # Neither refuses a request by itself.
        Verdict.BELOW_QUALITY: lambda j: REASONS[Verdict.BELOW_QUALITY],
        Verdict.STRONG_SHARE: lambda j: REASONS[Verdict.STRONG_SHARE],
        Verdict.OVER_BUDGET: lambda j: "more than what a budget has left",
        Verdict.RULED_OUT: lambda j: f"ruled out by the rules {', '.join(one.rules)}",
        Verdict.NOT_PREFERRED: lambda j: REASONS[Verdict.NOT_PREFERRED],
        Verdict.DRAINING: lambda j: "it is being drained",
    }
    verdicts = [Verdict(int(verdict)) for verdict in choices.verdict[row]]
    # Those that the request allows first: that others are not allowed, its sender knows.
    telling = sorted(range(len(verdicts)), key=lambda j: verdicts[j] is Verdict.NOT_ALLOWED)
    reasons = [f"{live.catalogue.names[j]}: {why[verdicts[j]](j)}" for j in telling[:REASONS_MAX]]
    if len(telling) > REASONS_MAX:
        reasons.append(f"and {len(telling) - REASONS_MAX} more models")
    return NoModelFits("no model fits the request. " + "; ".join(reasons))


def write_explanation(
    ticket: Ticket, live: Live, policies: Sequence[str], arms: Mapping[int, str] = NO_ARMS
) -> pb.Explanation:
    """What a ticket says; names it only knows by key are looked up in the present catalogue.

    `policies` are the router's own, then the reasons for further attempts. `arms` are names of arms
    and their groups, by key.
    """
    head, chosen = ticket.head, int(ticket.head["model"])
    further = {key_of(name): name for name in policies[1:]}.get(int(head["policy"]), "")
    names = {
        **arms,
        **dict(zip(live.catalogue.model_keys.tolist(), live.catalogue.names, strict=True)),
    }
    pools = {**arms, **{key_of(pool.name): pool.name for pool in live.catalogue.pools}}
    policy_of = {key_of(name): name for name in (*policies, ARMS)}
    candidates = sorted(ticket.candidates, key=lambda c: (c["verdict"], -c["utility"]))
    best = max(
        (float(c["utility"]) for c in candidates if c["verdict"] == Verdict.ELIGIBLE), default=0.0
    )
    return pb.Explanation(
        decision_id=ticket.decision_id.hex(),
        tenant=ticket.tenant,
        decided_at_unix_ms=int(head["decided_at_ms"]),
        snapshot_version=int(head["snapshot_version"]),
        encoder=_name({live.encoder_key: live.encoder}, int(head["encoder"])),
        context=real(head["context"]).tolist(),
        preference=pb.Preference(**dict(zip(WEIGHTS, head["preference"], strict=True))),
        policy=_name(policy_of, int(head["policy"])),
        models=[
            pb.Considered(
                model=_name(names, int(c["model"])),
                pool=_name(pools, int(head["pool"] if c["model"] == chosen else c["pool"])),
                chosen=bool(c["model"] == chosen),
                propensity=c["propensity"],
                utility=c["utility"],
                quality=c["quality"],
                cost_usd=c["cost_usd"],
                latency_ms=c["latency_ms"],
                reason=_reason(c, chosen=bool(c["model"] == chosen), best=best, further=further),
            )
            for c in candidates
        ],
        task=ticket.said.task,
        tags=ticket.said.tags,
        rules=ticket.said.rules,
        guarded=ticket.said.guarded,
    )


def _reason(candidate: np.void, *, chosen: bool, best: float, further: str) -> str:
    """Why a model was chosen, or why it was not; `further` is why there was another attempt."""
    if chosen and further:
        return f"{further}: called after the decision, nothing was drawn"
    verdict = Verdict(int(candidate["verdict"]))
    if verdict != Verdict.ELIGIBLE:
        out = REASONS[verdict]
        tried = f"; tried all the same, with probability {candidate['propensity']:.3g}"
        return f"{out}, by a stale or unsure estimate{tried}" if chosen else out
    behind, p = best - float(candidate["utility"]), float(candidate["propensity"])
    if chosen and behind <= 0:
        return f"chosen: highest utility, drawn with probability {p:.3g}"
    if chosen:
        return f"chosen to explore: {behind:.3g} points behind, drawn with probability {p:.3g}"
    if behind <= 0:
        return f"highest utility, but another was drawn to explore; probability {p:.3g}"
    return f"{behind:.3g} points behind the best; probability {p:.3g}"


def _name(names: dict[int, str], key: int) -> str:
    """The name behind a key; the key itself when it is not known here any more."""
    return names.get(key, f"{key:016x}")
