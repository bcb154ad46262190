"""Which section of the settings file sets which options.

    [router]          DeploymentOptions, ReplicaOptions, …    one section, several dataclasses
    [policies.NAME]   the parameters of that policy           one section for each registered policy
    [[gpus]]          GpuType                                 a list of sections

A key that a class declares is in its section here, unless it names another one itself. So adding an
option changes only the class that has it; only a new class is added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from infra.capacity.fleet import Emulation, GpuType, PoolPlan, ServerOptions
from infra.capacity.latency_target import LatencyTarget
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.sections import Key, keys_of, model_of
from infra.settings.site_options import (
    CandidateChoice,
    LogChoice,
    ModelSize,
    PolicyChoice,
    PoolPlace,
    SiteOptions,
)
from infra.site_logs import LogsOptions
from learners.arms.shortlist import ArmOptions
from learners.drift import DriftOptions
from learners.estimates.billing import BillingOptions
from learners.estimates.estimator import BlendOptions
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from learners.estimates.ridge import RidgeOptions
from learners.estimates.sums.influence import InfluenceOptions
from learners.novelty import GuardOptions
from learners.policies.limits import LimitOptions
from learners.policies.newcomers import NewcomerOptions
from learners.policies.policy import POLICIES
from learners.policies.probes import ProbeOptions
from serve.access.rates import Rate
from serve.access.tokens import Token
from serve.arms.listed import ArmsFile
from serve.deploy.options import DeploymentOptions, DispatchersOptions
from serve.deploy.replica import ReplicaOptions
from serve.dispatch.budget import HedgeOptions, RetryOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.dispatch.judging.by_model import JudgeOptions
from serve.dispatch.judging.fused import FuseOptions
from serve.dispatch.judging.judging import JudgingOptions
from serve.dispatch.probes import DispatchProbeOptions
from serve.encoders import EncoderOptions
from serve.grpc_api.asking.batcher import BatcherOptions
from serve.grpc_api.listener import ListenerOptions
from serve.grpc_api.streams import StreamOptions
from serve.health.first_token import FirstTokenOptions
from serve.health.health import HealthOptions
from serve.health.outliers import OutlierOptions
from serve.openai_api.app import HttpOptions
from serve.openai_api.body import BodyOptions
from serve.openai_api.http_listener import HttpListenerOptions
from serve.openai_api.http_protocol import ConnectionOptions
from serve.routing.catalogue import Model
from serve.routing.live import LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults
from serve.rules.rule import Rule
from serve.sessions.held import SessionOptions
from serve.tracing.tracing import TracingOptions
from streams.feedback.feedback import FeedbackOptions
from streams.log.kafka_options import KafkaOptions
from streams.log.outbox import OutboxOptions
from streams.training.audit import AuditOptions
from streams.training.budgets import Budget
from streams.training.change import ChangeOptions
from streams.training.prices import PricingOptions
from streams.training.trainer import TrainerOptions


@dataclass(frozen=True, slots=True)
class Part:
    """One section: what it is about, and whose options are in it."""

    about: str
    kinds: tuple[type, ...] = ()


def policy_section(name: str) -> str:
    """Where the parameters of a policy are set."""
    return f"policies.{name.replace('-', '_')}"


TOP = ""
PARTS = {
    TOP: Part("", (SiteOptions,)),
    "router": Part(
        "The router's replicas on this host.",
        (DeploymentOptions, PolicyChoice, LimitOptions, BatcherOptions, ReplicaOptions),
    ),
    "policies": Part(
        "The policies' parameters. Only the section of the one that `router.policy` names counts."
    ),
    "listener": Part(
        "Where the router listens, and how many may stream.", (ListenerOptions, StreamOptions)
    ),
    "encoder": Part(
        "How prompts become vectors. Changing it means starting anew: vectors don't mix.",
        (EncoderOptions,),
    ),
    "preference": Part(
        "What matters to callers who don't say, in quality points (see `Preference` in the API).",
        (PreferenceDefaults,),
    ),
    "learning": Part(
        "How the past counts. Memory keys (half-lives, `history_rows_max`, `neighbours`) need a "
        "new `state_dir` when changed.",
        (
            MemoryOptions,
            HistoryOptions,
            BlendOptions,
            DriftOptions,
            InfluenceOptions,
            RidgeOptions,
            TrainerOptions,
            LiveOptions,
            BillingOptions,
        ),
    ),
    "newcomers": Part(
        "What a new model may take until it is proven. docs/new-models.md says how it is tried.",
        (NewcomerOptions,),
    ),
    "probes": Part(
        "Extra answers bought to learn from, for requests that take them. docs/probes.md has more.",
        (ProbeOptions, DispatchProbeOptions),
    ),
    "judge": Part(
        "Answers that another model judges, beside requests. docs/judging.md has more.",
        (JudgeOptions, JudgingOptions),
    ),
    "fuse": Part(
        "One answer that a model writes of several. docs/judging.md has more.", (FuseOptions,)
    ),
    "arms": Part(
        "Tools, retrievers, agents, modes: thousands, described by text. docs/arms.md has more.",
        (ArmsFile, ArmOptions),
    ),
    "guard": Part(
        "Requests that are far from everything seen, and who answers them. docs/rules.md has more.",
        (GuardOptions,),
    ),
    "feedback": Part("What feedback is believed.", (FeedbackOptions, AuditOptions, OutboxOptions)),
    "log": Part("Where decisions and feedback are logged.", (LogChoice, KafkaOptions)),
    "logs": Part("What processes log, as JSON lines in `state_dir/logs`.", (LogsOptions,)),
    "tracing": Part("Traces of OpenTelemetry. docs/operating.md has more.", (TracingOptions,)),
    "metrics": Part("Prometheus metrics of the loop."),
    "dashboard": Part("The page at `/dashboard` of dispatchers; docs/dashboard.md has more."),
    "telemetry": Part(
        "What processes report of themselves, shown by `fairlead status` and as metrics."
    ),
    "targets": Part(
        "How soon answers begin, and how fast they go on. Replicas are sized and priced by it.",
        (LatencyTarget,),
    ),
    "prices": Part(
        "What scarce capacity costs requests. docs/prices.md has the mathematics.",
        (PricingOptions, PlacementOptions),
    ),
    "change": Part(
        "A change of policy, tried before it counts. docs/changes.md has more.",
        (ChangeOptions, CandidateChoice),
    ),
    "autoscaling": Part(
        "Pools and routers follow demand. Off: there are as many replicas as are stated.",
        (AutoscalingOptions,),
    ),
    "dispatch": Part(
        "Dispatchers: they decide as routers do, then call the pool and stream its answer back.",
        (
            DispatchersOptions,
            HttpListenerOptions,
            ConnectionOptions,
            HttpOptions,
            BodyOptions,
            DispatchOptions,
            RetryOptions,
            HedgeOptions,
            SessionOptions,
        ),
    ),
    "health": Part(
        "When a pool's endpoint is passed over. Names and defaults follow Envoy's.",
        (HealthOptions, OutlierOptions, FirstTokenOptions),
    ),
}
PARTS |= {
    policy_section(name): Part((kind.__doc__ or "").partition("\n")[0], (kind,))
    for name, kind in POLICIES.items()
}
LISTS = {
    "tokens": Part(
        "Bearer tokens of callers, over gRPC and HTTP; none: everyone may call. `fairlead tokens "
        "new` makes them. docs/security.md says what a token is good for.",
        (Token,),
    ),
    "rates": Part(
        "Requests a second that tenants may send; none: as many as they like. They hold at "
        "routers, and apart from that at dispatchers. docs/security.md has more.",
        (Rate,),
    ),
    "gpus": Part(
        "The types of GPU that pools run on. One that is known by its name needs no figures but "
        "its price: those of its data sheet are taken.",
        (GpuType,),
    ),
    "models": Part(
        "The catalogue's models. `shape` and what follows it say how one is run, and count from "
        "the next start.",
        (Model, ModelSize),
    ),
    "pools": Part(
        "Their pools. A model without one gets a pool of its own name. `backend` and what follows "
        "it count from the next start.",
        (PoolPlan, ServerOptions, PoolPlace, Emulation),
    ),
    "budgets": Part(
        "What may be spent per hour or day, and what happens when it is. docs/budgets.md has more.",
        (Budget,),
    ),
    "rules": Part(
        "What holds for some requests, before anything learned. docs/rules.md says what `when` "
        "may say.",
        (Rule,),
    ),
}

# The section of each class; classes that are set by an entry of a list have none of their own.
HOME = {kind: section for section, part in PARTS.items() for kind in part.kinds}
IN_ENTRIES = dict.fromkeys((kind for part in LISTS.values() for kind in part.kinds), "")


def fields() -> dict[str, Any]:
    """The fields of `Settings`: keys at the top of the file, sections, lists of sections."""
    keys = [key for section, part in PARTS.items() for key in _keys(section, part)]
    keys.sort(key=lambda key: "." in key.option.key)  # those of other sections' classes come last
    return _fields_in(TOP, keys) | {name: _list_of(name, part) for name, part in LISTS.items()}


def _keys(section: str, part: Part) -> list[Key]:
    return [key for kind in part.kinds for key in keys_of(kind, section)]


def _fields_in(section: str, keys: Sequence[Key]) -> dict[str, Any]:
    """A section's own keys, then the sections within it."""
    own = [key for key in keys if key.section == section]
    _refuse_repeated(own)
    found = {key.name: key.field() for key in own}
    for inner in PARTS:
        outer, _, name = inner.rpartition(".")
        if inner != TOP and outer == section and (within := _fields_in(inner, keys)):
            model = model_of(inner, PARTS[inner].about, within)
            found[name] = (model, model())
    return found


def _list_of(name: str, part: Part) -> tuple[Any, Any]:
    keys = _keys("", part)
    _refuse_repeated(keys)
    model: Any = model_of(name, part.about, {key.name: key.field() for key in keys})
    return tuple[model, ...], Field((), description=part.about)


def _refuse_repeated(keys: Sequence[Key]) -> None:
    paths = [key.path for key in keys]
    assert len(set(paths)) == len(paths), f"one key is declared twice among {sorted(paths)}"
