"""A site's own settings as a world that can be simulated, and what had to be assumed for that.

    [[pools]] with a GPU     ─▶ emulated, however they are run: real servers too
    ... that were learned of ─▶ emulated as fast as their servers were (`snapshot.servers_of`)
    [[pools]] without one    ─▶ hosted: as fast as their model is stated to be, paid by the token
    [[models]] without pools ─▶ hosted likewise

The one rule: what is not the site's own statement is said in `assumed`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.capacity.fleet import Emulation, Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.emulator.performance import WITHOUT_END, Performance
from infra.emulator.power import Power
from infra.settings import checks
from infra.settings.fleet_plans import fleet_of
from infra.settings.model import Settings
from infra.settings.policies import policy_of
from learners.criticality import Criticality
from learners.novelty import GuardOptions
from learners.policies.policy import Policy
from serve.routing.catalogue import Catalogue, Model
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults, usual_of
from serve.rules.rule import Rule
from streams.errors import OptionRefused
from streams.training.prices import PricingOptions

# Of a hosted model's stated latency, until the first token; the rest is its tokens, evenly.
FIRST_TOKEN_SHARE = 0.2
HOSTED = GpuType(
    name="hosted",
    memory_bytes=1.0,
    bandwidth_bytes_per_s=1.0,
    bf16_flops=1.0,
    fp8_flops=1.0,
    power_w=0.0,
    usd_per_hour=0.0,
    available=1_000_000,
    startup_s=0.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedServers:
    """What one of a pool's real servers was learned to do."""

    performance: Performance
    # Requests that dispatchers give it at once, by criticality; 0: no limit is known.
    held_max: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """What a simulation needs to know."""

    fleet: Fleet
    catalogue: Catalogue
    target: LatencyTarget
    preference: tuple[float, float, float, float]  # weights: quality, US dollars, seconds, kJ
    policy: Policy
    placement: PlacementOptions  # without budgets
    pricing: PricingOptions  # with them
    rules: tuple[Rule, ...]
    guard: GuardOptions
    routers: int
    scales: bool  # whether its settings have the fleet follow demand
    settings: Settings
    assumed: tuple[str, ...]

    @property
    def hosted(self) -> frozenset[str]:
        """Pools that run on somebody else's machines."""
        return frozenset(p.name for p in self.fleet.pools if p.gpu == HOSTED)

    @property
    def limits(self) -> dict[str, Any]:
        """Of requests that state none, by `[preference]`."""
        usually = dict(usual_of(self.settings.options(PreferenceDefaults)))
        del usually["weights"]
        return usually

    @property
    def goes_by_the_clock(self) -> bool:
        """Whether it matters which hour of which day it is."""
        return bool(self.rules or self.pricing.budgets)

    @property
    def servers(self) -> dict[str, int]:
        """How many servers run already, by pool that states their URLs: there are no more."""
        pools: tuple[Any, ...] = (
            self.settings.pools
        )  # made from the layout: their keys have no types
        return {pool.name: len(pool.urls) for pool in pools if pool.urls}

    def with_replicas(self, replicas: dict[str, int]) -> Site:
        """The same with just these replicas, whatever its bounds are; hosted pools stay."""

        def with_its(plan: PoolPlan) -> PoolPlan:
            n = replicas.get(plan.name, 0)
            most = max(n, plan.replicas_max)
            return replace(plan, replicas=n, replicas_min=0, replicas_max=most)

        pools = tuple(p if p.gpu == HOSTED else with_its(p) for p in self.fleet.pools)
        return replace(self, fleet=replace(self.fleet, pools=pools))

    def with_cost_weight(self, per_usd: float) -> Site:
        """The same where a US dollar is worth so many points of quality."""
        quality, _, latency, energy = self.preference
        return replace(self, preference=(quality, per_usd, latency, energy))


def site_of(
    settings: Settings,
    target: LatencyTarget | None = None,
    learned: Mapping[str, LearnedServers] | None = None,
) -> Site:
    """`learned` is what servers of real pools do; of others it is not asked.

    Raises OptionRefused where a pool on GPUs does not say what model it runs.
    """
    learned = learned or {}
    target = target or settings.target()
    if not settings.models:
        raise OptionRefused("models", "none", "at least one: there is nothing to simulate")
    assumed: list[str] = []
    entries = [_simulated(entry, learned, assumed) for entry in settings.pools]
    fleet = _limited(fleet_of(settings.gpus, settings.models, entries, target), settings)
    stated = settings.catalogue()
    plans = [
        _as_learned(plan, stated, learned[plan.name], assumed)
        if plan.name in learned and plan.emulation is None
        else _placed(plan, stated, assumed)
        for plan in fleet.pools
    ]
    served = {plan.model for plan in plans}
    plans += [
        _placed(PoolPlan(name=model.name, model=model.name), stated, assumed)
        for model in stated.models
        if model.name not in served
    ]
    gpus = fleet.gpus + ((HOSTED,) if any(plan.gpu == HOSTED for plan in plans) else ())
    wanted, guard = settings.options(PreferenceDefaults), settings.options(GuardOptions)
    checks.guard(settings)
    return Site(
        fleet=Fleet(gpus=gpus, pools=tuple(replace(plan, target=target) for plan in plans)),
        catalogue=_catalogue(stated, plans, target),
        target=target,
        preference=(wanted.quality, wanted.cost, wanted.latency, wanted.energy),
        policy=policy_of(settings),
        placement=settings.options(PlacementOptions),
        pricing=settings.pricing(),
        rules=settings.ruled(),
        guard=guard,
        routers=settings.stated("router.replicas"),
        scales=settings.scaling().enabled,
        settings=settings,
        assumed=tuple(assumed),
    )


def _simulated(entry: Any, learned: Collection[str], assumed: list[str]) -> Any:
    """A pool's entry as an emulated pool, if it is on GPUs and nothing was learned of it."""
    if entry.backend == "emulated":
        return entry
    by_gpu = entry.gpu and entry.name not in learned
    changed: dict[str, Any] = {"urls": (), "command": (), "priority": False, "stream": True}
    changed |= {"requests_per_s": 0.0, "tokens_per_s": 0.0, "concurrency_max": 0, "power_url": ""}
    changed["backend"] = "emulated" if by_gpu else "none"
    if entry.urls:
        changed["replicas"] = min(len(entry.urls), entry.replicas_max)
    if by_gpu:
        assumed.append(f"pool {entry.name} runs as its model does on {entry.gpu} by the emulator")
    return entry.model_copy(update=changed)


def _limited(fleet: Fleet, settings: Settings) -> Fleet:
    """With as many requests at once as real servers are stated to be given."""
    pools: tuple[Any, ...] = settings.pools  # made from the layout: their keys have no types
    stated = {entry.name: entry.concurrency_max for entry in pools}
    plans = (replace(plan, held_max=_for_all(stated[plan.name])) for plan in fleet.pools)
    return replace(fleet, pools=tuple(plans))


def _for_all(held_max: int) -> tuple[int, ...]:
    """The same limit whatever the criticality; whoever is served first has none."""
    return tuple(held_max if level.priority else 0 for level in Criticality) if held_max else ()


def _placed(plan: PoolPlan, stated: Catalogue, assumed: list[str]) -> PoolPlan:
    """A pool without GPUs, on somebody else's."""
    if plan.gpu is not None:
        return plan
    model = stated.models[stated.column_of[plan.model]]
    assumed.append(
        f"pool {plan.name} is hosted: never full, {model.latency_ms:g} ms for "
        f"{model.output_tokens:g} tokens as stated, paid by the token, its energy not counted"
    )
    return replace(
        plan, gpu=HOSTED, replicas=max(1, plan.replicas), load_s=0.0, emulation=_hosted(model)
    )


def _as_learned(
    plan: PoolPlan, stated: Catalogue, learned: LearnedServers, assumed: list[str]
) -> PoolPlan:
    """A pool of real servers, as fast as they were; where no GPU is stated, on somebody else's."""
    performance = learned.performance
    model, at_once = stated.models[stated.column_of[plan.model]], performance.sequences_max
    token_ms = 1e3 * (performance.fixed_s + performance.per_sequence_s)
    varies = " on average" if performance.slow else ""
    limit = f"{at_once} requests at once" if at_once < WITHOUT_END else "no limit seen"
    assumed.append(
        f"pool {plan.name} is as fast as its servers were: {1e3 * performance.request_s:.3g} ms "
        f"and {1e6 * performance.per_prompt_token_s:.3g} ms per 1,000 tokens of prompt to the "
        f"first token{varies}, {token_ms:.3g} ms per token alone, {limit}"
    )
    return replace(
        plan,
        gpu=plan.gpu or HOSTED,
        replicas=max(1, plan.replicas),
        held_max=plan.held_max or learned.held_max,
        emulation=Emulation(
            performance=performance,
            power=plan.power or Power(idle_w=0.0, decode_w=0.0, prefill_w=0.0),
            context_tokens_max=round(min(model.context_tokens_max, 1e9)),
            output_tokens=max(1.0, model.output_tokens),
        ),
    )


def _hosted(model: Model) -> Emulation:
    """As fast as it is stated to be, whatever comes."""
    latency_s, tokens = model.latency_ms / 1e3, max(1.0, model.output_tokens)
    return Emulation(
        performance=Performance(
            fixed_s=max(1e-6, latency_s * (1.0 - FIRST_TOKEN_SHARE) / tokens),
            per_sequence_s=0.0,
            per_context_token_s=0.0,
            per_prompt_token_s=0.0,
            request_s=latency_s * FIRST_TOKEN_SHARE,
            prefill_tokens_max=1_000_000_000,
            kv_tokens_max=1_000_000_000_000,
            sequences_max=1_000_000,
            derived=True,
            source="as stated",
        ),
        power=Power(idle_w=0.0, decode_w=0.0, prefill_w=0.0),
        context_tokens_max=round(min(model.context_tokens_max, 1e9)),
        output_tokens=tokens,
    )


def _catalogue(stated: Catalogue, plans: Sequence[PoolPlan], target: LatencyTarget) -> Catalogue:
    """The site's models, each limited to what its pools take; the pools report what they carry."""
    longest = {
        model.name: min(p.engine.context_tokens_max for p in plans if p.model == model.name)
        for model in stated.models
    }
    models = [
        replace(m, context_tokens_max=min(m.context_tokens_max, float(longest[m.name])))
        for m in stated.models
    ]
    pools = [replace(plan, target=target).for_router(reports=True) for plan in plans]
    return Catalogue(models, pools, stated.prompt_tokens)
