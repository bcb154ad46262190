"""The settings as one checked value, and the options that each part of Fairlead gets from it.

    layout ──fields──▶ Settings ─▶ catalogue()    models and pools, for routers
                                ─▶ deployment()   routers and trainers
                                ─▶ dispatchers(), fleet(), scaling(), kafka(), target()

Which keys there are follows from `infra.settings.layout`. A method builds its options from the keys
that set them, after checking what concerns several keys at once; only there is a key named here.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import create_model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from infra.capacity.fleet import Fleet, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.settings import checks
from infra.settings.fleet_plans import fleet_of, of_entry
from infra.settings.layout import HOME, fields
from infra.settings.policies import policy_of
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.sections import Section, build
from infra.settings.site_options import CandidateChoice, LogChoice, SiteOptions
from learners.policies.policy import Policy
from serve.access.rates import Rate
from serve.access.tokens import Access, Token
from serve.arms.listed import Arm, ArmsFile, read_arms
from serve.deploy.options import DeploymentOptions, DispatchersOptions
from serve.deploy.replica import ReplicaOptions
from serve.grpc_api.listener import ListenerOptions
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.placement import PlacementOptions
from serve.rules.rule import Rule
from streams.errors import OptionRefused
from streams.feedback.ticket import key_of
from streams.log.kafka_options import KafkaOptions
from streams.training.budgets import Budget
from streams.training.change import ChangeOptions
from streams.training.prices import PricingOptions
from streams.training.trainer import TrainerOptions

Made = TypeVar("Made")

PREFIX = "FAIRLEAD__"  # of environment variables; `__` also goes from a section to its key
Keys: Any = create_model("Keys", __base__=BaseSettings, **fields())


class Settings(Keys):
    """Everything that can be set. Times are in seconds unless a name says otherwise."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret; `infra.settings.settings` shows the others
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    if TYPE_CHECKING:  # the lists; `of_entry` makes options of an entry, `options` of all else
        gpus: tuple[Section, ...]
        models: tuple[Section, ...]
        pools: tuple[Section, ...]
        tokens: tuple[Section, ...]
        rates: tuple[Section, ...]
        budgets: tuple[Section, ...]
        rules: tuple[Section, ...]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what was read from the file."""
        del settings_cls, dotenv_settings, file_secret_settings
        # Looking for each key takes as long as all else: only where there is one of ours.
        if not any(name.upper().startswith(PREFIX) for name in os.environ):
            return (init_settings,)
        return env_settings, init_settings

    def stated(self, path: str) -> Any:
        """What the key says, as it is written in the file."""
        return reduce(getattr, path.split("."), self)

    def options(self, kind: type[Made], **given: object) -> Made:
        """The options of one class as they are set; what is `given` is taken as it is."""
        return build(kind, HOME, self.stated, **given)

    def catalogue(self) -> Catalogue:
        """Models and pools. Raises OptionRefused where they don't fit together."""
        plans, told = self.fleet().pools, self.stated("telemetry.period_s") > 0
        models = [_model(of_entry(Model, entry), plans) for entry in self.models]
        pools = [plan.for_router(reports=self._reports(plan), watched=told) for plan in plans]
        served = {pool.model for pool in pools}
        pools += [Pool(name=m.name, model=m.name) for m in models if m.name not in served]
        return Catalogue(models, pools, self.options(SiteOptions).prompt_tokens)

    def pool_names(self) -> list[str]:
        """The names of all pools, those included that models have by themselves."""
        return [pool.name for pool in self.catalogue().pools] if self.models else []

    def fleet(self) -> Fleet:
        """GPU types and pools. Raises OptionRefused where they don't fit together."""
        return fleet_of(self.gpus, self.models, self.pools, self.target())

    def target(self) -> LatencyTarget:
        """How soon answers are to begin, and how fast to go on."""
        return self.options(LatencyTarget)

    def deployment(self) -> DeploymentOptions:
        """The options of routers and trainers. Raises OptionRefused and SettingsUnreadable."""
        checks.certificate(self)
        checks.trainers(self)
        checks.guard(self)
        checks.judge(self)
        tokens = tuple(of_entry(Token, entry) for entry in self.tokens)
        Access(tokens)
        rates = tuple(of_entry(Rate, entry) for entry in self.rates)
        checks.rates(rates)
        candidate, change = self.trial()
        pricing = self.pricing()
        placement = self.options(PlacementOptions, pricing=pricing)
        replica = self.options(
            ReplicaOptions,
            policy=policy_of(self),
            tokens=tokens,
            rates=rates,
            placement=placement,
            rules=self.ruled(),
            arms=self.listed_arms(),
            candidate=candidate,
            change=change,
        )
        trainer = self.options(TrainerOptions, pricing=pricing, change=change)
        return self.options(DeploymentOptions, replica=replica, trainer=trainer)

    def trial(self) -> tuple[Policy | None, ChangeOptions]:
        """The candidate of a change, and how it is tried. Raises OptionRefused."""
        content = self.options(CandidateChoice).policy
        change, candidate = self.options(ChangeOptions), None
        if content:
            candidate = policy_of(type(self)(**_tables_of("change.policy", content)))
        if change.mode in ("shadow", "canary") and candidate is None:
            raise OptionRefused("change.policy", "missing", f"a settings file for {change.mode}")
        # Another candidate, or another share, is another change: its outcomes don't add up.
        made_of = (policy_of(self), candidate, change.share, change.holdback)
        return candidate, replace(change, name=f"{key_of(repr(made_of)):016x}"[:8])

    def pricing(self) -> PricingOptions:
        """How capacity and budgets are priced. Raises OptionRefused."""
        # The budget of [prices] is paced like the others, by what is decided, not by outcomes.
        return self.options(PricingOptions, budgets=self.budgeted(), budget_usd_per_hour=math.inf)

    def budgeted(self) -> tuple[Budget, ...]:
        """What may be spent: `[[budgets]]`, and that of `[prices]`. Raises OptionRefused."""
        found = [of_entry(Budget, entry) for entry in self.budgets]
        if usd_per_hour := self.stated("prices.budget_usd_per_hour"):
            found.append(Budget(name="budget_usd_per_hour", amount=usd_per_hour, hard=False))
        checks.budgets(self, found)
        return tuple(found)

    def ruled(self) -> tuple[Rule, ...]:
        """What holds before anything learned: `[[rules]]`. Raises OptionRefused."""
        found = tuple(of_entry(Rule, entry) for entry in self.rules)
        checks.rules(self, found, sorted({arm.group for arm in self.listed_arms() if arm.group}))
        return found

    def listed_arms(self) -> tuple[Arm, ...]:
        """The arms of `arms.file`; none where it is not named. Raises OptionRefused."""
        content = self.options(ArmsFile).file
        if content and self.stated("encoder.kind") == "embeddings-only":
            wanted = "one that takes texts, where there are arms: they are described by texts"
            raise OptionRefused("encoder.kind", "embeddings-only", wanted)
        return read_arms(content) if content else ()

    def dispatchers(self) -> DispatchersOptions:
        """How dispatchers run. Raises OptionRefused."""
        checks.api_keys(self)
        checks.ports(self)
        return self.options(DispatchersOptions)

    def scaling(self) -> AutoscalingOptions:
        """How the fleet is sized."""
        most = max(self.stated("router.replicas"), self.stated("autoscaling.routers_max"))
        return self.options(AutoscalingOptions, routers_max=most)

    def kafka(self) -> KafkaOptions | None:
        """How to reach Kafka; None where the log is a file. Raises OptionRefused."""
        return self.options(KafkaOptions) if self.options(LogChoice).kind == "kafka" else None

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Where is listened, host and port, by the setting that says so."""
        listener, dispatch = self.options(ListenerOptions), self.dispatchers()
        found = {"listener.port": (listener.host, listener.port)}
        if listener.reserved_port:
            found["listener.reserved_port"] = (listener.host, listener.reserved_port)
        if dispatch.replicas:
            found["dispatch.port"] = (listener.host, dispatch.port)
            found["dispatch.http_port"] = (listener.host, dispatch.replica.http_listener.port)
        site = self.options(SiteOptions)
        if site.metrics_port:
            found["metrics.port"] = (site.metrics_host, site.metrics_port)
        return found

    def _reports(self, plan: PoolPlan) -> bool:
        """Whether telemetry has a pool's replicas: their own, or that of dispatchers."""
        watched = plan.backend == "emulated" or self.stated("dispatch.replicas") > 0
        return self.stated("telemetry.period_s") > 0 and plan.deployed and watched


def _model(stated: Model, plans: Sequence[PoolPlan]) -> Model:
    """Limited to prompts that all its emulated pools take: a request may come to any of them."""
    emulations = [plan.emulation for plan in plans if plan.model == stated.name]
    limits = [float(one.context_tokens_max) for one in emulations if one is not None]
    return replace(stated, context_tokens_max=min([stated.context_tokens_max, *limits]))


def _tables_of(key: str, content: bytes) -> dict[str, Any]:
    """What a file of settings says of its policy. Raises OptionRefused."""
    try:
        found = tomllib.loads(content.decode())
    except ValueError as error:
        raise OptionRefused(key, str(error), "a settings file in TOML") from None
    return {name: found[name] for name in ("router", "policies") if name in found}
