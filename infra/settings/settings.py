"""All settings: one TOML file, every key with its unit, bounds and reason.

    fairlead.toml ─┐
                   ├──▶ Settings (checked) ──▶ options of each part
    FAIRLEAD__… ───┘    environment variables win, as in FAIRLEAD__LISTENER__PORT=9000

Models and pools are read again while running; everything else counts from the next start. The
documentation of settings is generated from this file (`fairlead settings`).

The one rule: no other file of the project reads configuration files or environment variables.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from infra.capacity.fleet import Fleet, PoolPlan
from infra.errors import SettingsInvalid, SettingsUnreadable
from infra.settings.fleet_plans import fleet_of
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.sections_fleet import (
    DispatchSection,
    GpuSection,
    HealthSection,
    ModelSection,
    PoolSection,
    Section,
    dispatchers_of,
    section_of,
    sessions_of,
)
from infra.settings.sections_scaling import AutoscalingSection, PricesSection, TargetsSection
from learners.estimates.estimator import BlendOptions
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from learners.estimates.ridge import RidgeOptions
from learners.policies import policy as policies
from serve.deploy.deployment import DeploymentOptions
from serve.deploy.dispatch_deployment import DispatchersOptions
from serve.deploy.replica import ReplicaOptions
from serve.encoders import DIM_MAX, EncoderOptions
from serve.grpc_api.listener import ListenerOptions
from serve.grpc_api.servicer import ServicerOptions
from serve.routing.batcher import BatcherOptions
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.live import LiveOptions
from serve.routing.request import WEIGHT_MAX, PreferenceDefaults
from streams.errors import OptionRefused
from streams.feedback.feedback import FeedbackOptions
from streams.log.contract import DECISIONS, FEEDBACK
from streams.log.kafka_options import KafkaOptions
from streams.log.outbox import OutboxOptions
from streams.training.audit import AuditOptions
from streams.training.trainer import TrainerOptions
from streams.training.upkeep import UpkeepOptions

PREFIX = "FAIRLEAD__"  # of environment variables; `__` also goes from a section to its key


class RouterSection(Section):
    """The router's replicas on this host."""

    replicas: int = Field(2, ge=1, le=64, description="Replicas. Two survive the loss of one.")
    policy: Literal["greedy", "epsilon-greedy", "linucb", "thompson", "squarecb"] = Field(
        "squarecb",
        description="How to explore. SquareCB did best over three outcome tables (DESIGN.md).",
    )
    policy_strength: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="The policy's one number: ε, α, the scale of deviations, or γ. 0: its default.",
    )
    waiting_max: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Requests that may wait in a replica; more are refused.",
    )
    batch_max: int = Field(
        256, ge=1, le=4096, description="Requests scored together: about 5 ms of the event loop."
    )
    log_decisions: bool = Field(True, description="Write every decision to the decision log.")
    log_prompts: bool = Field(
        False, description="Put prompts into the decision log, too. They may be personal data."
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of the draws, to repeat a run. None: from the system."
    )


class ListenerSection(Section):
    """Where the router listens."""

    host: str = Field(
        "127.0.0.1", description="Address to bind. Only this host can call unless it is changed."
    )
    port: int = Field(7480, ge=1, le=65_535, description="TCP port, shared by all replicas.")
    connection_age_s_max: float = Field(
        300.0,
        ge=1,
        le=86_400,
        description="Seconds after which a connection is renewed, so that new replicas get calls.",
    )
    grace_s: float = Field(
        5.0, ge=0, le=600, description="Seconds for ongoing calls when stopping."
    )
    tls_certificate: Path | None = Field(None, description="PEM file; with `tls_key`, serve TLS.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key.")


class EncoderSection(Section):
    """How prompts become vectors. Changing it means starting anew: vectors don't mix."""

    kind: Literal[
        "wordllama", "hashing", "minilm", "sentence-transformers", "openai", "embeddings-only"
    ] = Field("wordllama", description="Encoder. The default's weights come with its package.")
    dim: int = Field(
        0,
        ge=0,
        le=DIM_MAX,
        description="Length of vectors; 0 is the kind's own. openai and embeddings-only need it.",
    )
    model: str = Field("", description="The encoder's model, where the kind leaves a choice.")
    url: str = Field("", description="openai: base URL, up to and with the version.")
    api_key: str = Field(
        "", repr=False, description="openai: bearer token. Better set FAIRLEAD__ENCODER__API_KEY."
    )
    timeout_s: float = Field(
        2.0, gt=0, le=60, description="openai: seconds the server may take; the request waits."
    )


class PreferenceSection(Section):
    """What matters to callers who don't say, in quality points (see `Preference` in the API)."""

    quality: float = Field(1.0, ge=0, le=WEIGHT_MAX, description="Points per point of quality.")
    cost: float = Field(
        20.0, ge=0, le=WEIGHT_MAX, description="Points per US dollar; at 20, 5 cents buy a point."
    )
    latency: float = Field(0.01, ge=0, le=WEIGHT_MAX, description="Points per second of waiting.")
    energy: float = Field(
        0.0,
        ge=0,
        le=WEIGHT_MAX,
        description="Points per kilojoule; 0: energy counts only as far as it is in the cost.",
    )


class LearningSection(Section):
    """How the past counts.

    Memory keys (half-lives, `history_rows_max`, `neighbours`) need a new `state_dir` when changed.
    """

    model_half_life_s: float = Field(
        MemoryOptions().model_half_life_s,
        ge=60,
        le=1e9,
        description="Seconds after which an outcome counts half for what models can do.",
    )
    pool_half_life_s: float = Field(
        MemoryOptions().pool_half_life_s,
        ge=60,
        le=1e9,
        description="The same for a pool's latency and failures, which change faster.",
    )
    history_rows_max: int = Field(
        HistoryOptions().rows_max,
        ge=1000,
        le=2_000_000,
        description="Outcomes searched for similar requests; 100,000 take 26 MB per replica.",
    )
    neighbours: int = Field(
        HistoryOptions().neighbours,
        ge=1,
        le=1000,
        description="Similar outcomes weighed per request; 50 to 200 do equally well.",
    )
    neighbours_share: float = Field(
        BlendOptions().neighbours_share,
        ge=0,
        le=1,
        description="Share of the neighbours in the estimate; the rest is the linear model's.",
    )
    shared_penalty: float = Field(
        RidgeOptions().shared_penalty,
        gt=0,
        le=1e6,
        description="Outcomes' worth of doubt in what all models share.",
    )
    own_penalty: float = Field(
        RidgeOptions().own_penalty,
        gt=0,
        le=1e6,
        description="Outcomes' worth of doubt in what sets a model apart.",
    )
    trainers: int = Field(
        1,
        ge=1,
        le=64,
        description="Trainers that share the feedback; more than one needs kafka and partitions.",
    )
    publish_s: float = Field(
        TrainerOptions().publish_s,
        ge=0.05,
        le=3600,
        description="Seconds between snapshots: how soon an outcome has effect.",
    )
    poll_s: float = Field(
        LiveOptions().poll_s, ge=0.01, le=3600, description="Seconds between looks at the store."
    )


class FeedbackSection(Section):
    """What feedback is believed."""

    age_s_max: float = Field(
        FeedbackOptions().age_s_max,
        ge=60,
        le=90 * 86_400,
        description="Seconds after its decision that feedback still counts; 1 byte per decision.",
    )
    clock_skew_s_max: float = Field(
        FeedbackOptions().clock_skew_s_max,
        ge=0,
        le=3600,
        description="Seconds that feedback may seem older than its decision: clocks differ.",
    )
    answer_s: float = Field(
        AuditOptions().answer_s,
        ge=1,
        le=90 * 86_400,
        description="Seconds after which a decision without any feedback counts as unanswered.",
    )
    silence_s: float = Field(
        600.0,
        ge=1,
        le=1e9,
        description="Alarm when nothing was learned for so many seconds while decisions flow.",
    )
    on_gap: Literal["stop", "continue"] = Field(
        "stop", description="What to do when the log has lost feedback that was not read yet."
    )
    waiting_max: int = Field(
        OutboxOptions().items_max,
        ge=1,
        le=10_000_000,
        description="Items held in memory while the log is away; more are dropped and counted.",
    )


class LogSection(Section):
    """Where decisions and feedback are logged."""

    kind: Literal["sqlite", "kafka"] = Field(
        "sqlite", description="sqlite: a file in state_dir, for one host. kafka: a real broker."
    )
    bootstrap_servers: str = Field(
        KafkaOptions().bootstrap_servers,
        description='kafka: "host:port,host:port", any of which knows the others.',
    )
    feedback_partitions: int = Field(
        KafkaOptions().partitions[FEEDBACK],
        ge=1,
        le=1024,
        description="kafka: partitions of the feedback topic when it is made; at least `trainers`. "
        "Don't add any later: with several trainers, decisions would change hands.",
    )
    decisions_partitions: int = Field(
        KafkaOptions().partitions[DECISIONS],
        ge=1,
        le=1024,
        description="kafka: partitions of the decision log when it is made.",
    )
    replication_factor: int = Field(
        KafkaOptions().replication_factor,
        ge=1,
        le=16,
        description="kafka: copies of every record; 3 where a broker may be lost.",
    )
    retention_s: float = Field(
        KafkaOptions().retention_ms / 1000,
        ge=60,
        le=1e9,
        description="Seconds that records are kept; longer than any outage of the trainer. sqlite: "
        "what was not learned yet is kept in any case.",
    )
    retention_bytes_max: int = Field(
        16 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="sqlite: bytes that the log may hold; then the oldest goes that is learned.",
    )
    compression: Literal["zstd", "gzip", "none"] = Field(
        "zstd", description="kafka: how records are compressed; JSON shrinks to a third."
    )
    buffer_bytes_max: int = Field(
        KafkaOptions().buffer_bytes_max,
        ge=1 << 20,
        le=1 << 34,
        description="kafka: bytes held in memory while brokers are away; then appends fail.",
    )
    security: dict[str, str | int | bool] = Field(
        {},
        repr=False,
        description="kafka: TLS and SASL settings by kafka-python's names, such as ssl_cafile.",
    )


class MetricsSection(Section):
    """Prometheus metrics of the loop."""

    port: int = Field(
        0, ge=0, le=65_535, description="TCP port on 127.0.0.1 for Prometheus; 0: no metrics."
    )


class TelemetrySection(Section):
    """What processes report of themselves, shown by `fairlead status` and as metrics."""

    period_s: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Seconds between reports; below 0.1 counts as 0.1. 0: none. A process that is "
        "silent for 10 s is taken to be gone.",
    )


class Settings(BaseSettings):
    """Everything that can be set. Times are in seconds unless a name says otherwise."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret; `_said` shows what is none
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    state_dir: Path = Field(
        Path(".fairlead"),
        description="Folder of the log, the ticket key and, unless `snapshots` says otherwise, "
        "snapshots.",
    )
    snapshots: str = Field(
        "", description="Folder or object store URI of snapshots. Empty: in state_dir."
    )
    ray_address: str = Field(
        "",
        description='Ray cluster to run in: "host:port", or "auto" on one of its machines. Its '
        "nodes state their GPUs as resources, gpu_<name of the type>. Empty: a cluster of this "
        "machine alone, which then passes for one with all `[[gpus]]`.",
    )
    prompt_tokens: float = Field(
        500.0,
        gt=0,
        le=1e7,
        description="Tokens of a prompt whose length nobody states. Read again while running.",
    )
    router: RouterSection = RouterSection()
    listener: ListenerSection = ListenerSection()
    encoder: EncoderSection = EncoderSection()
    preference: PreferenceSection = PreferenceSection()
    learning: LearningSection = LearningSection()
    feedback: FeedbackSection = FeedbackSection()
    log: LogSection = LogSection()
    metrics: MetricsSection = MetricsSection()
    telemetry: TelemetrySection = TelemetrySection()
    targets: TargetsSection = TargetsSection()
    prices: PricesSection = PricesSection()
    autoscaling: AutoscalingSection = AutoscalingSection()
    dispatch: DispatchSection = DispatchSection()
    health: HealthSection = HealthSection()
    gpus: tuple[GpuSection, ...] = Field(
        (),
        description="The types of GPU that pools run on. One that is known by its name needs no "
        "figures but its price: those of its data sheet are taken.",
    )
    models: tuple[ModelSection, ...] = Field(
        (),
        description="The catalogue's models. `shape` and what follows it say how one is run, and "
        "count from the next start.",
    )
    pools: tuple[PoolSection, ...] = Field(
        (),
        description="Their pools. A model without one gets a pool of its own name. `backend` and "
        "what follows it count from the next start.",
    )

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
        return env_settings, init_settings

    def catalogue(self) -> Catalogue:
        """Models and pools. Raises OptionRefused where they don't fit together."""
        ours = {"quality", "context_tokens_max"}
        plans = self.fleet().pools
        emulated = [plan for plan in plans if plan.emulation is not None]
        models = [
            Model(
                **section.model_dump(include=set(Model.__slots__) - ours),
                quality=_quality(section),
                context_tokens_max=_context_tokens(section, emulated),
            )
            for section in self.models
        ]
        pools = [plan.for_router(reports=self._reports(plan)) for plan in plans]
        served = {pool.model for pool in pools}
        pools += [Pool(name=m.name, model=m.name) for m in models if m.name not in served]
        return Catalogue(models, pools, self.prompt_tokens)

    def deployment(self) -> DeploymentOptions:
        """The options of all parts. Raises OptionRefused and SettingsUnreadable."""
        learning, feedback = self.learning, self.feedback
        encoder = EncoderOptions(**self.encoder.model_dump())
        feedback_options = FeedbackOptions(
            age_s_max=feedback.age_s_max, clock_skew_s_max=feedback.clock_skew_s_max
        )
        memory = MemoryOptions(
            model_half_life_s=learning.model_half_life_s,
            pool_half_life_s=learning.pool_half_life_s,
            history=HistoryOptions(
                rows_max=learning.history_rows_max, neighbours=learning.neighbours
            ),
        )
        blend = BlendOptions(
            neighbours_share=learning.neighbours_share,
            ridge=RidgeOptions(
                shared_penalty=learning.shared_penalty, own_penalty=learning.own_penalty
            ),
        )
        replica = ReplicaOptions(
            encoder=encoder,
            policy=self._policy(),
            memory=memory,
            live=LiveOptions(poll_s=learning.poll_s, blend=blend),
            servicer=ServicerOptions(
                preference=PreferenceDefaults(**self.preference.model_dump()),
                batcher=BatcherOptions(
                    waiting_max=self.router.waiting_max, batch_max=self.router.batch_max
                ),
            ),
            listener=self._listener(),
            outbox=OutboxOptions(items_max=feedback.waiting_max),
            sessions=sessions_of(self.dispatch),
            placement=self.prices.placement(),
            feedback=feedback_options,
            log_decisions=self.router.log_decisions,
            log_prompts=self.router.log_prompts,
            telemetry_s=self.telemetry.period_s,
        )
        trainer = TrainerOptions(
            publish_s=learning.publish_s,
            on_gap=feedback.on_gap,
            feedback=feedback_options,
            memory=memory,
            audit=AuditOptions(answer_s=feedback.answer_s),
            pricing=self.prices.pricing(),
            upkeep=UpkeepOptions(retention_s=self.log.retention_s),
        )
        return DeploymentOptions(
            replicas=self.router.replicas,
            trainers=self._trainers(),
            replica=replica,
            trainer=trainer,
            encoder=encoder,
            seed=self.router.seed,
        )

    def pool_names(self) -> list[str]:
        """The names of all pools, those included that models have by themselves."""
        return [pool.name for pool in self.catalogue().pools] if self.models else []

    def fleet(self) -> Fleet:
        """GPU types and pools. Raises OptionRefused where they don't fit together."""
        return fleet_of(self.gpus, self.models, self.pools, self.targets.target())

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Where is listened, host and port, by the setting that says so."""
        host, dispatch = self.listener.host, self.dispatch
        found = {"listener.port": (host, self.listener.port)}
        if dispatch.replicas:
            found["dispatch.port"] = (host, dispatch.port)
            found["dispatch.http_port"] = (host, dispatch.http_port)
        if self.metrics.port:
            found["metrics.port"] = ("127.0.0.1", self.metrics.port)
        return found

    def scaling(self) -> AutoscalingOptions:
        """How the fleet is sized."""
        return self.autoscaling.options(self.router.replicas)

    def dispatchers(self) -> DispatchersOptions:
        """How dispatchers run. Raises OptionRefused and SettingsUnreadable."""
        return dispatchers_of(self.dispatch, self.health, self._listener())

    def _reports(self, plan: PoolPlan) -> bool:
        """Whether a pool's replicas are told of in telemetry, by themselves or by dispatchers."""
        watched = plan.backend == "emulated" or self.dispatch.replicas > 0
        return self.telemetry.period_s > 0 and plan.deployed and watched

    def _trainers(self) -> int:
        """Each trainer needs a partition of its own."""
        trainers, log = self.learning.trainers, self.log
        partitions = log.feedback_partitions if log.kind == "kafka" else 1
        if trainers > partitions:
            raise OptionRefused(
                "learning.trainers", trainers, f"at most the feedback's {partitions} partitions"
            )
        return trainers

    def kafka(self) -> KafkaOptions | None:
        """How to reach Kafka; None where the log is a file. Raises OptionRefused."""
        log = self.log
        if log.kind != "kafka":
            return None
        return KafkaOptions(
            bootstrap_servers=log.bootstrap_servers,
            security=log.security,
            partitions={
                **KafkaOptions().partitions,
                FEEDBACK: log.feedback_partitions,
                DECISIONS: log.decisions_partitions,
            },
            replication_factor=log.replication_factor,
            retention_ms=round(log.retention_s * 1000),
            compression=log.compression,
            buffer_bytes_max=log.buffer_bytes_max,
        )

    def _policy(self) -> policies.Policy:
        strength = self.router.policy_strength
        kind, name = {
            "greedy": (policies.Greedy, ""),
            "epsilon-greedy": (policies.EpsilonGreedy, "epsilon"),
            "linucb": (policies.LinUcb, "alpha"),
            "thompson": (policies.Thompson, "scale"),
            "squarecb": (policies.SquareCb, "gamma"),
        }[self.router.policy]
        if kind is policies.EpsilonGreedy and strength > 1:
            raise OptionRefused("router.policy_strength", strength, "0 to 1 for epsilon-greedy")
        return kind(**{name: strength}) if name and strength else kind()

    def _listener(self) -> ListenerOptions:
        section = self.listener
        if (section.tls_certificate is None) != (section.tls_key is None):
            raise OptionRefused(
                "listener.tls_certificate and tls_key", "one of the two", "both given, or neither"
            )
        tls = {
            name: _bytes_of(path)
            for name in ("tls_certificate", "tls_key")
            if (path := getattr(section, name)) is not None
        }
        plain = section.model_dump(exclude={"tls_certificate", "tls_key"})
        return ListenerOptions(**plain, **tls)


def read_settings(path: Path | None) -> Settings:
    """Settings of a file (None: defaults alone), where the environment says nothing else.

    Raises SettingsUnreadable and SettingsInvalid.
    """
    found: dict[str, object] = {}
    if path is not None:
        try:
            found = TomlConfigSettingsSource(Settings, path)()
        except (OSError, ValueError) as error:
            raise SettingsUnreadable(str(path), str(error)) from error
        if not path.is_file():
            raise SettingsUnreadable(str(path), "there is no such file")
    where = "from the environment" if path is None else str(path)
    unknown = tuple(f"{name} is set, but names no setting" for name in _unknown_variables())
    if unknown:
        raise SettingsInvalid(where, unknown)
    try:
        settings = Settings(**found)
        if settings.models or settings.pools:
            settings.catalogue()
        settings.fleet()
        settings.deployment()  # and other keys that must fit together
        settings.dispatchers()
        settings.kafka()
    except ValidationError as error:
        raise SettingsInvalid(where, tuple(map(_said, error.errors()))) from error
    except (OptionRefused, SettingsError) as error:
        raise SettingsInvalid(where, (str(error),)) from error
    return settings


def _unknown_variables() -> list[str]:
    """Environment variables of ours that would be ignored: pydantic looks for known names only."""
    ours = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    first = {name: name[len(PREFIX) :].lower().partition("__")[0] for name in ours}
    return [name for name in ours if first[name] not in Settings.model_fields]


def _said(problem: Mapping) -> str:
    """One problem as pydantic found it: the key, its value unless that is a secret, the limit."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":  # a misspelt secret is a secret, too
        return f"{key} is not a setting"
    if problem["type"] == "missing":
        return f"{key} is missing"
    value = "(hidden)" if _secret(problem["loc"], problem["input"]) else repr(problem["input"])
    return f"{key} is {value}: {problem['msg'].lower()}"


def _secret(path: Sequence[int | str], value: object) -> bool:
    """Whether a value is, or has in it, something that is not to be shown."""
    section: type[BaseModel] | None = Settings
    for part in path:
        if isinstance(part, int):  # an entry of a list of sections
            continue
        field = section.model_fields.get(part) if section else None
        if field is None:
            return False
        if not field.repr:
            return True
        section = section_of(field)
    holds = section is not None and any(not field.repr for field in section.model_fields.values())
    return holds and isinstance(value, dict | list)


class FileCatalogue:
    """The catalogue of a settings file, parsed again whenever the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None  # the file's time of change and size
        self._catalogue: Catalogue | None = None

    def read(self) -> Catalogue:
        """The catalogue as the file has it now. Raises SettingsUnreadable and SettingsInvalid."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise SettingsUnreadable(str(self._path), str(error)) from error
        seen = (status.st_mtime_ns, status.st_size)
        if self._catalogue is None or seen != self._seen:
            self._catalogue, self._seen = self._parse(), seen
        return self._catalogue

    def _parse(self) -> Catalogue:
        settings = read_settings(self._path)
        try:
            return settings.catalogue()
        except OptionRefused as error:  # no models: fine for other uses of the file
            raise SettingsInvalid(str(self._path), (str(error),)) from error


def _context_tokens(section: ModelSection, emulated: Sequence[PoolPlan]) -> float:
    """What all of a model's pools take: a request may come to any of them."""
    room = [p.emulation.context_tokens_max for p in emulated if p.model == section.name]
    return min([section.context_tokens_max, *map(float, room)])


def _quality(section: ModelSection) -> float:
    return math.nan if section.quality is None else section.quality


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsUnreadable(str(path), str(error)) from error
