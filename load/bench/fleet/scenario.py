"""What `bench fleet` runs: a market of GPUs, four models in thirteen pools, and who asks for what.

    prices, limits ─▶ Fleet ─┐
    outcome table  ─▶ table ─┼─▶ Scenario ─▶ simulate(…), once for every policy
    trace, classes ─▶ Traffic┘

    python -m load.bench.fleet.scenario mmlu_pro.parquet     rebuilds the bundled outcome table

*The market.* Prices are those of `infra/example-fleet.toml`, which names their sources. H100 and
B200 are the cheapest per unit of work and scarce, so that a busy hour needs a mix; of H200 there
are enough to carry everything alone, so that a fleet of one type has its chance.

*The models.* Speeds are those of the emulator for the model's own shape. Qualities are real answers
to 3,000 questions of MMLU-Pro (TIGER-AI-Lab/MMLU-Pro, Apache-2.0: figures and embeddings only), but
of stand-ins, as these very models were not all measured there: see `STAND_INS`. Half of them are
asked, the other half was learned before. A model's list price
is what serving costs on its cheapest GPU at full load, so no policy earns on the difference.

A fifth, smaller than all, is there only where the whole market is not enough: see `overload`.

*The promise.* With Azure's lengths the default target. With Mooncake's, prompts of 12,000 tokens:
reading one takes a 70B model seconds on any GPU, and who comes next waits for it; the target is
looser: 10 s and 1 s more per 1,000 prompt tokens, then five tokens a second.

A scenario is the same for every policy; only homogeneous fleets have other pools.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.fleet import Emulation, Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator import catalogue as data_sheets
from infra.emulator.fitted import performance_of, power_of
from infra.emulator.roofline import Deployment
from learners.criticality import Criticality
from learners.work import WorkTable
from load.data import tables, traces
from load.data.kinds import Kind
from load.data.tables import OutcomeTable
from load.data.traces import Trace
from load.data.traffic import Traffic
from load.simulation.warm_start import halves
from serve.routing.catalogue import Catalogue, Model

TABLE = Path(__file__).parents[2] / "data" / "fleet_outcomes.parquet"
PROMPTS = 3000
STAND_INS = {
    "llama-3.1-8b": "Meta-Llama-3_1-8B-Instruct",  # itself
    "gpt-oss-120b": "jamba-1.5-large",  # a mixture of experts, too
    "qwen3-32b": "gemini-1.5-flash-002",
    "llama-3.1-70b": "gpt-4o-2024-05",
    "llama-3.2-3b": "Phi-3-mini-4k-instruct",  # of 3.8B
}
# USD per hour, how many there are, seconds until one is there.
MARKET = {
    "l4": (0.38, 8, 120.0),
    "l40s": (0.85, 16, 120.0),
    "a100_sxm": (0.99, 8, 120.0),
    "h100_sxm": (1.89, 8, 120.0),
    "h200_sxm": (2.60, 40, 120.0),
    "b200_sxm": (4.89, 4, 300.0),
}
# The emulator's shape, precision, seconds to load.
MODELS = {
    "llama-3.1-8b": ("Llama-3.1-8B-Instruct", "fp8", 30.0),
    "gpt-oss-120b": ("gpt-oss-120b", "fp4", 45.0),
    "qwen3-32b": ("Qwen3-32B", "fp8", 40.0),
    "llama-3.1-70b": ("Llama-3.1-70B", "fp8", 60.0),
}
LAST_RESORT = {"llama-3.2-3b": ("Llama-3.2-3B-Instruct", "fp8", 20.0)}
# GPUs of one replica, by model and type: what carries most per USD within the target, of 1 to 8,
# as `load.fit.pool_limits` measures it. Left out: what costs thrice as much as elsewhere,
# or can't.
PARALLEL = {
    "llama-3.1-8b": {
        "l4": 2, "l40s": 1, "a100_sxm": 1, "h100_sxm": 1, "h200_sxm": 1, "b200_sxm": 1,
    },
    "gpt-oss-120b": {"l40s": 4, "h100_sxm": 2, "h200_sxm": 1, "b200_sxm": 1},
    "qwen3-32b": {"l40s": 4, "h100_sxm": 1, "h200_sxm": 2, "b200_sxm": 1},
    "llama-3.1-70b": {"l40s": 8, "h100_sxm": 2, "h200_sxm": 2, "b200_sxm": 2},
    "llama-3.2-3b": {
        "l4": 1, "l40s": 1, "a100_sxm": 1, "h100_sxm": 1, "h200_sxm": 1, "b200_sxm": 1,
    },
}  # fmt: skip
POOLS = (
    ("llama-3.1-8b", "l4", "eu"),
    ("llama-3.1-8b", "l40s", "us"),
    ("llama-3.1-8b", "a100_sxm", "us"),
    ("llama-3.1-8b", "h100_sxm", "eu"),
    ("gpt-oss-120b", "h100_sxm", "us"),
    ("gpt-oss-120b", "h200_sxm", "eu"),
    ("gpt-oss-120b", "b200_sxm", "us"),
    ("qwen3-32b", "l40s", "us"),
    ("qwen3-32b", "h100_sxm", "eu"),
    ("qwen3-32b", "h200_sxm", "us"),
    ("llama-3.1-70b", "h100_sxm", "us"),
    ("llama-3.1-70b", "h200_sxm", "eu"),
    ("llama-3.1-70b", "b200_sxm", "us"),
)
CLASSES = (  # name, share of the requests, criticality
    ("interactive", 0.60, Criticality.CRITICAL_PLUS),
    ("standard", 0.25, Criticality.CRITICAL),
    ("batch", 0.15, Criticality.SHEDDABLE),
)

SHORT_TARGET = LatencyTarget()
LONG_TARGET = LatencyTarget(ttft_s=10.0, ttft_s_per_1k_prompt_tokens=1.0, tpot_s=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Of every request, in points of quality; `per_usd` is set so that the trade-off matters.

    The mixture of experts is nearly as cheap to serve as the 8B and better, so few requests
    prefer the 8B: it is there for exploration, and for when capacity is dear.
    """

    quality: float = 1.0
    per_usd: float
    latency: float = 0.0
    energy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One trace and what answers it."""

    name: str
    traffic: Traffic
    tuning: Traffic  # a stretch that rivals are tuned on
    table: OutcomeTable  # what is asked about
    known: OutcomeTable  # what routers have learned before, see `load.simulation.warm_start`
    fleet: Fleet
    catalogue: Catalogue
    target: LatencyTarget
    preference: Preference


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioOptions:
    """How much of each trace is run, and how many users there are."""

    azure_users: float = 35.0  # times as many as in the trace: 300 requests a second at the peak
    azure_s: tuple[float, float] = (0.0, 3600.0)
    azure_tuning_s: tuple[float, float] = (1200.0, 2100.0)  # where it rises most
    mooncake_users: float = 6.0
    mooncake_s: tuple[float, float] = (0.0, 3600.0)
    mooncake_tuning_s: tuple[float, float] = (0.0, 1200.0)
    diurnal: traces.DiurnalOptions = traces.DiurnalOptions(requests_per_s=5.0)
    diurnal_s: tuple[float, float] = (0.0, 2 * traces.DAY_S)
    diurnal_tuning_s: tuple[float, float] = (8 * traces.HOUR_S, 10 * traces.HOUR_S)
    seed: int = 0


def scenario(name: str, options: ScenarioOptions) -> Scenario:
    """One of `azure`, `mooncake`, `diurnal`, from its seed."""
    rng = np.random.default_rng([options.seed, sorted(BUILT).index(name)])
    trace, (begin_s, end_s), tuning_s, target, per_usd = BUILT[name](options, rng)
    table, known = halves(outcomes().only(list(MODELS)))
    fleet = fleet_of_market()
    whole = traffic_of(trace, len(table), rng)
    return Scenario(
        name=name,
        traffic=between(whole, begin_s, end_s=end_s),
        tuning=between(whole, tuning_s[0], end_s=tuning_s[1]),
        table=table,
        known=known,
        fleet=fleet,
        catalogue=catalogue_of(fleet, trace, target),
        target=target,
        preference=Preference(per_usd=per_usd),
    )


def _azure(options: ScenarioOptions, rng: np.random.Generator) -> tuple[Any, ...]:
    trace = traces.scaled(traces.azure(), options.azure_users, rng)
    return trace, options.azure_s, options.azure_tuning_s, SHORT_TARGET, 1800.0


def _mooncake(options: ScenarioOptions, rng: np.random.Generator) -> tuple[Any, ...]:
    trace = traces.scaled(traces.mooncake(), options.mooncake_users, rng)
    return trace, options.mooncake_s, options.mooncake_tuning_s, LONG_TARGET, 170.0


def _diurnal(options: ScenarioOptions, rng: np.random.Generator) -> tuple[Any, ...]:
    # Mooncake's lengths: a day of Azure's would be ten times the requests for the same GPUs.
    trace = traces.diurnal(traces.mooncake(), options.diurnal, rng)
    return trace, options.diurnal_s, options.diurnal_tuning_s, LONG_TARGET, 170.0


BUILT = {"azure": _azure, "mooncake": _mooncake, "diurnal": _diurnal}


def outcomes() -> OutcomeTable:
    """The bundled table, columns by our names of models; costs are the catalogue's business."""
    return tables.read(TABLE)


def traffic_of(trace: Trace, n_rows: int, rng: np.random.Generator) -> Traffic:
    """Ask the trace's requests about rows drawn from the table, by classes drawn by their share."""
    shares = np.array([share for _, share, _ in CLASSES])
    return Traffic(
        at_s=trace.at_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        rows=rng.integers(0, n_rows, len(trace)),
        classes=rng.choice(len(CLASSES), len(trace), p=shares),
        kinds=tuple(
            Kind(tenant=name, criticality=Criticality(level)) for name, _, level in CLASSES
        ),
    )


def between(traffic: Traffic, begin_s: float, *, end_s: float) -> Traffic:
    """The requests of a stretch, with times from its beginning on."""
    first, last = np.searchsorted(traffic.at_s, [begin_s, end_s])
    rows = slice(int(first), int(last))
    return replace(
        traffic,
        at_s=traffic.at_s[rows] - begin_s,
        prompt_tokens=traffic.prompt_tokens[rows],
        output_tokens=traffic.output_tokens[rows],
        rows=traffic.rows[rows],
        classes=traffic.classes[rows],
    )


def fleet_of_market() -> Fleet:
    """The thirteen pools. None has replicas yet: see `started`."""
    return Fleet(gpus=gpu_types(), pools=tuple(pool_plan(*pool) for pool in POOLS))


def homogeneous(gpu: str) -> Fleet | None:
    """Every model on this type alone; None where a model can't run on it."""
    if not all(gpu in by_gpu for by_gpu in PARALLEL.values()):
        return None
    return Fleet(gpus=gpu_types(), pools=tuple(pool_plan(m, gpu, "eu") for m in MODELS))


def everywhere(*models: str) -> Fleet:
    """These models, each on every type that can run it."""
    pools = tuple(pool_plan(model, gpu, "eu") for model in models for gpu in PARALLEL[model])
    return Fleet(gpus=gpu_types(), pools=pools)


def gpu_types() -> tuple[GpuType, ...]:
    """The market, with the data sheets' figures."""
    return tuple(
        GpuType(
            **{name: getattr(data_sheets.GPUS[gpu], name) for name in data_sheets.Gpu.__slots__},
            usd_per_hour=usd,
            available=available,
            startup_s=startup_s,
        )
        for gpu, (usd, available, startup_s) in MARKET.items()
    )


def pool_plan(model: str, gpu: str, region: str, gpus: int | None = None) -> PoolPlan:
    """One pool without replicas, as large as the market allows."""
    shape, precision, load_s = (MODELS | LAST_RESORT)[model]
    gpus = gpus or PARALLEL[model][gpu]
    performance = performance_of(shape, gpu, precision=precision, gpus=gpus)
    on = Deployment(
        model=data_sheets.MODELS[shape], gpu=data_sheets.GPUS[gpu], precision=precision, gpus=gpus
    )
    return PoolPlan(
        name=f"{model}-{gpu.removesuffix('_sxm')}-{region}",
        model=model,
        backend="emulated",
        region=region,
        gpu=next(one for one in gpu_types() if one.name == gpu),
        gpus_per_replica=gpus,
        replicas=0,
        replicas_max=MARKET[gpu][1] // gpus,
        load_s=load_s,
        emulation=Emulation(
            performance=performance,
            power=power_of(on, performance),
            context_tokens_max=round(min(on.model.context_tokens_max, performance.kv_tokens_max)),
            output_tokens=300.0,
        ),
    )


def started(fleet: Fleet, replicas: Mapping[str, int]) -> Fleet:
    """The same fleet with so many replicas to begin with."""
    pools = tuple(replace(pool, replicas=replicas.get(pool.name, 0)) for pool in fleet.pools)
    return replace(fleet, pools=pools)


def work_s_of(fleet: Fleet, traffic: Traffic | Trace, target: LatencyTarget) -> NDArray[np.float64]:
    """Seconds (n, P) of a full replica that each request would take in each pool."""
    rates = [rates_of(pool.engine.performance, target) for pool in fleet.pools]
    prompt, output = traffic.prompt_tokens.astype(float), traffic.output_tokens.astype(float)
    return WorkTable(rates).work_s(prompt, output[:, None])


def usd_per_s(pool: PoolPlan) -> float:
    """Of one replica."""
    return pool.machine.usd_per_hour * pool.gpus_per_replica / 3600.0


def catalogue_of(fleet: Fleet, lengths: Traffic | Trace, target: LatencyTarget) -> Catalogue:
    """List prices: what a token costs on the model's cheapest GPU when that is full."""
    prompt, output = float(lengths.prompt_tokens.mean()), float(lengths.output_tokens.mean())
    mean_s = work_s_of(fleet, lengths, target).mean(axis=0)
    models = []
    for model in dict.fromkeys(pool.model for pool in fleet.pools):
        of = [column for column, pool in enumerate(fleet.pools) if pool.model == model]
        column = min(of, key=lambda c: mean_s[c] * usd_per_s(fleet.pools[c]))
        pool = fleet.pools[column]
        rates = rates_of(pool.engine.performance, target)
        input_s = rates.prompt_token_s / (1.0 - rates.fixed_s / rates.tpot_s)
        output_s = (mean_s[column] - input_s * prompt) / output
        models.append(
            Model(
                name=model,
                usd_per_1m_input_tokens=float(input_s * usd_per_s(pool) * 1e6),
                usd_per_1m_output_tokens=float(output_s * usd_per_s(pool) * 1e6),
                output_tokens=output,
                latency_ms=output * rates.tpot_s / 3 * 1e3,
                context_tokens_max=pool.engine.context_tokens_max,
            )
        )
    plans = [replace(plan, target=target) for plan in fleet.pools]
    pools = [plan.for_router(reports=True) for plan in plans]
    return Catalogue(models, pools, prompt_tokens=prompt)


def _bundle(source: Path) -> None:
    """3,000 prompts drawn with a fixed seed, the stand-ins' columns under our models' names.

    A question that is there twice is taken once: it would be asked by one half and known by the
    other.
    """
    table = tables.read(source)
    _, once = np.unique(table.embeddings, axis=0, return_index=True)
    table = table.take(np.sort(once)).shuffled(seed=6, n_max=PROMPTS)
    columns = [table.models.index(name) for name in STAND_INS.values()]
    tables.write(
        OutcomeTable(
            TABLE.stem,
            tuple(STAND_INS),
            table.embeddings,
            table.prompt_tokens,
            table.quality[:, columns],
            np.zeros((len(table), len(columns))),
        ),
        TABLE,
    )


if __name__ == "__main__":
    _bundle(Path(sys.argv[1]))
