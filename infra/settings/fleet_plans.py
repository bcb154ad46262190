"""From what settings say of GPUs, models and pools to a `Fleet` that can be run.

    GpuSection, ModelSection, PoolSection ─▶ fleet_of ─▶ Fleet        or OptionRefused

A pool is checked against its model and its GPUs here, because Ray would only wait: for GPUs that
there are too few of, for weights that do not fit. Emulated pools get their speed from what was
measured; where nobody measured the pair, from what was derived, and marked so.

The one rule: what is refused is refused before anything is started, by the key's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from infra.capacity.fleet import Emulation, Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.emulator import catalogue as known
from infra.emulator.fitted import efficiency, performance_of, power_of
from infra.emulator.performance import Performance
from infra.emulator.roofline import Deployment, derive
from infra.endpoints.openai_endpoint import OpenAiOptions
from infra.settings.sections_fleet import GpuSection, ModelSection, PoolSection
from streams.errors import OptionRefused

Named = TypeVar("Named")  # whatever has a `name`
RAY_NAME = re.compile("[A-Za-z0-9._-]+")  # Ray puts names into paths and splits them at "#"


def fleet_of(
    gpus: Sequence[GpuSection],
    models: Sequence[ModelSection],
    pools: Sequence[PoolSection],
    target: LatencyTarget,
) -> Fleet:
    """The fleet that these sections describe. Raises OptionRefused."""
    types = _by_name("gpus", [section.gpu() for section in gpus])
    by_name = _by_name("models", models)
    plans = _by_name("pools", [_plan(pool, by_name, types, target) for pool in pools])
    fleet = Fleet(gpus=tuple(types.values()), pools=tuple(plans.values()))
    _check_room(fleet)
    return fleet


def _by_name(kind: str, among: Sequence[Named]) -> dict[str, Named]:
    found = {one.name: one for one in among}
    if len(found) < len(among):
        names = [one.name for one in among]
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionRefused(f"{kind}.name", twice, "unique")
    return found


def _check_room(fleet: Fleet) -> None:
    """Refuse to begin with more replicas than there are GPUs: Ray would wait for ever."""
    for gpu in fleet.gpus:
        wanted = sum(
            p.replicas * p.gpus_per_replica for p in fleet.pools if p.gpu == gpu and p.deployed
        )
        if wanted > gpu.available:
            raise OptionRefused(
                f"gpus.{gpu.name}.available", gpu.available, f"at least the {wanted} of its pools"
            )


def _plan(
    pool: PoolSection,
    models: Mapping[str, ModelSection],
    gpus: Mapping[str, GpuType],
    target: LatencyTarget,
) -> PoolPlan:
    """One pool, checked."""
    where = f"pools.{pool.name}"
    if pool.model not in models:
        raise OptionRefused(f"{where}.model", pool.model, f"one of {_names(models)}")
    if pool.gpu and pool.gpu not in gpus:
        raise OptionRefused(f"{where}.gpu", pool.gpu, f"one of {_names(gpus)}")
    model, gpu = models[pool.model], gpus.get(pool.gpu)
    _check_backend(pool, where)
    if not pool.replicas_min <= pool.replicas <= pool.replicas_max:
        limits = f"{pool.replicas_min} to {pool.replicas_max} (replicas_min, replicas_max)"
        raise OptionRefused(f"{where}.replicas", pool.replicas, limits)
    return PoolPlan(
        name=pool.name,
        model=pool.model,
        backend=pool.backend,
        region=pool.region,
        gpu=gpu,
        gpus_per_replica=model.tensor_parallel,
        replicas=pool.replicas,
        replicas_min=pool.replicas_min,
        replicas_max=pool.replicas_max,
        load_s=pool.load_s if pool.residency == "cold" else 0.0,
        urls=pool.urls,
        command=pool.command,
        upstream_model=pool.upstream_model,
        api_key=pool.api_key or None,
        extra=pool.extra,
        priority=pool.priority,
        emulation=_emulation(pool, model, gpu) if gpu and pool.backend == "emulated" else None,
        target=target,
    )


def _names(known_ones: Mapping[str, object]) -> str:
    return ", ".join(known_ones) or "none, for there are none"


def _check_backend(pool: PoolSection, where: str) -> None:
    """That a pool can be run or called as it says, found out before anything is started."""
    if pool.backend != "openai" and (pool.urls or pool.command):
        raise OptionRefused(
            f"{where}.backend", pool.backend, "openai where urls or command are set"
        )
    if pool.backend != "openai" and pool.priority:
        raise OptionRefused(f"{where}.backend", pool.backend, "openai where priority is set")
    if (pool.backend == "emulated" or pool.command) and not RAY_NAME.fullmatch(pool.name):
        wanted = "letters, digits, '.', '_' and '-': Ray runs it under this name"
        raise OptionRefused("pools.name", pool.name, wanted)
    if pool.backend == "emulated" and not pool.gpu:
        raise OptionRefused(f"{where}.gpu", "missing", "given: the pool is emulated")
    if pool.backend != "openai":
        return
    if bool(pool.urls) == bool(pool.command):
        given = "both given" if pool.urls else "both missing"
        raise OptionRefused(f"{where}.urls and command", given, "one of the two")
    try:
        for url in pool.urls or ("http://127.0.0.1/v1",):
            OpenAiOptions(url=url, model=pool.model, api_key=pool.api_key or None)
    except OptionRefused as refused:
        name = "urls" if refused.option == "url" else refused.option
        raise OptionRefused(f"{where}.{name}", refused.value, refused.allowed) from None


def _emulation(pool: PoolSection, model: ModelSection, gpu: GpuType) -> Emulation:
    on = Deployment(
        model=model.described(),
        gpu=known.Gpu(**{name: getattr(gpu, name) for name in known.Gpu.__slots__}),
        precision=model.precision,
        gpus=model.tensor_parallel,
    )
    if not on.kv_tokens_max:
        raise OptionRefused(
            f"models.{model.name}.tensor_parallel",
            model.tensor_parallel,
            f"more: on so many {gpu.name} its weights leave no memory for a cache",
        )
    performance = _performance(on)
    context = min(model.context_tokens_max, on.model.context_tokens_max, on.kv_tokens_max)
    return Emulation(
        performance=performance,
        power=power_of(on, performance),
        context_tokens_max=round(context),
        output_tokens=max(1.0, model.output_tokens),
        confidence=pool.confidence,
        speed=pool.speed,
    )


def _performance(on: Deployment) -> Performance:
    """As measured; where nobody measured just this model and GPU, derived and marked so."""
    if known.MODELS.get(on.model.name) == on.model and known.GPUS.get(on.gpu.name) == on.gpu:
        return performance_of(on.model.name, on.gpu.name, precision=on.precision, gpus=on.gpus)
    return derive(on, efficiency(mixture=bool(on.model.experts)))
