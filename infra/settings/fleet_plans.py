"""From what settings say of GPUs, models and pools to a `Fleet` that can be run.

    [[gpus]], [[models]], [[pools]] ─▶ fleet_of ─▶ Fleet        or OptionRefused

A pool is checked against its model and its GPUs here, because Ray would only wait: for GPUs that
there are too few of, for weights that do not fit. Emulated pools get their speed from what was
measured; where nobody measured the pair, from what was derived, and marked so. What is refused is
refused before anything is started, by the key's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from infra.capacity.fleet import Emulation, Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.emulator import catalogue as known
from infra.emulator.fitted import efficiency, performance_of, power_of, rated_power
from infra.emulator.performance import Performance
from infra.emulator.power import Power
from infra.emulator.roofline import Deployment, derive
from infra.endpoints.options import OpenAiOptions
from infra.settings.layout import IN_ENTRIES
from infra.settings.sections import build
from infra.settings.site_options import ModelSize, PoolPlace
from serve.routing.catalogue import Model
from streams.errors import OptionRefused


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Made = TypeVar("Made")
Named = TypeVar("Named", bound=_Named)
RAY_NAME = re.compile("[A-Za-z0-9._-]+")  # Ray puts names into paths and splits them at "#"


class StatedModel(NamedTuple):
    """A model as the catalogue has it, and how it is run."""

    stated: Model
    size: ModelSize

    @property
    def name(self) -> str:
        """Unique among models."""
        return self.stated.name

    @property
    def sized(self) -> bool:
        """Whether it is said how large it is."""
        return bool(self.size.shape) or self.size.parameters_1e9 is not None


def of_entry(kind: type[Made], entry: BaseModel, **given: object) -> Made:
    """The options that one entry of a list sets."""
    return build(kind, IN_ENTRIES, partial(getattr, entry), **given)


def fleet_of(
    gpus: Sequence[BaseModel],
    models: Sequence[BaseModel],
    pools: Sequence[BaseModel],
    target: LatencyTarget,
) -> Fleet:
    """The fleet that these entries describe. Raises OptionRefused."""
    types = _by_name("gpus", [_gpu(entry) for entry in gpus])
    stated = [StatedModel(of_entry(Model, one), of_entry(ModelSize, one)) for one in models]
    by_name = _by_name("models", stated)
    plans = _by_name("pools", [_plan(entry, by_name, types, target) for entry in pools])
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


def _gpu(entry: BaseModel) -> GpuType:
    """With the data sheet's figures where none are stated. Raises OptionRefused."""
    gpu, sheets = of_entry(GpuType, entry), known.GPUS
    figures = [name for name in known.Gpu.__slots__ if name != "name"]
    missing = [name for name in figures if math.isnan(getattr(gpu, name))]
    if missing and gpu.name not in sheets:
        known_ones = f"one of {', '.join(sorted(sheets))}, or have all its figures"
        raise OptionRefused(f"gpus.{gpu.name}", f"without {missing[0]}", known_ones)
    return replace(gpu, **{name: getattr(sheets[gpu.name], name) for name in missing})


def _plan(
    entry: BaseModel,
    models: Mapping[str, StatedModel],
    gpus: Mapping[str, GpuType],
    target: LatencyTarget,
) -> PoolPlan:
    """One pool, checked."""
    pool, place = of_entry(PoolPlan, entry, target=target), of_entry(PoolPlace, entry)
    where = f"pools.{pool.name}"
    if pool.model not in models:
        raise OptionRefused(f"{where}.model", pool.model, f"one of {_names(models)}")
    if place.gpu and place.gpu not in gpus:
        raise OptionRefused(f"{where}.gpu", place.gpu, f"one of {_names(gpus)}")
    _check_backend(pool, place, where)
    if not pool.replicas_min <= pool.replicas <= pool.replicas_max:
        limits = f"{pool.replicas_min} to {pool.replicas_max} (replicas_min, replicas_max)"
        raise OptionRefused(f"{where}.replicas", pool.replicas, limits)
    model, gpu = models[pool.model], gpus.get(place.gpu)
    on = _deployment(model, gpu) if gpu and (pool.backend == "emulated" or model.sized) else None
    real = pool.backend == "openai" and on is not None and on.kv_tokens_max > 0
    performance = _performance(on) if real and on else None
    return replace(
        pool,
        performance=performance,
        power=_power(pool, on, performance, gpu, model.size.tensor_parallel),
        gpu=gpu,
        gpus_per_replica=model.size.tensor_parallel,
        load_s=place.load_s if place.residency == "cold" else 0.0,
        emulation=_emulation(entry, model, on) if on and pool.backend == "emulated" else None,
    )


def _power(
    pool: PoolPlan,
    on: Deployment | None,
    performance: Performance | None,
    gpu: GpuType | None,
    gpus: int,
) -> Power | None:
    """What a real server draws: by what its model makes of its GPUs, or by these alone."""
    if on is not None and performance is not None:
        return power_of(on, performance)
    if gpu is None or pool.backend != "openai":
        return None
    return rated_power(gpu.power_w, gpus=gpus)


def _names(known_ones: Mapping[str, object]) -> str:
    return ", ".join(known_ones) or "none, for there are none"


def _check_backend(pool: PoolPlan, place: PoolPlace, where: str) -> None:
    """That a pool can be run or called as it says, found out before anything is started."""
    if pool.backend != "openai" and (pool.urls or pool.command):
        raise OptionRefused(
            f"{where}.backend", pool.backend, "openai where urls or command are set"
        )
    if pool.backend != "openai" and (pool.server.priority or not pool.server.stream):
        asked = "priority" if pool.server.priority else "stream = false"
        raise OptionRefused(f"{where}.backend", pool.backend, f"openai where {asked} is set")
    figures = ("requests_per_s", "tokens_per_s", "concurrency_max", "power_url")
    stated = [name for name in figures if getattr(pool, name)]
    if pool.backend != "openai" and stated:
        raise OptionRefused(f"{where}.backend", pool.backend, f"openai where {stated[0]} is set")
    if (pool.backend == "emulated" or pool.command) and not RAY_NAME.fullmatch(pool.name):
        wanted = "letters, digits, '.', '_' and '-': Ray runs it under this name"
        raise OptionRefused("pools.name", pool.name, wanted)
    if pool.backend == "emulated" and not place.gpu:
        raise OptionRefused(f"{where}.gpu", "missing", "given: the pool is emulated")
    if pool.backend != "openai":
        return
    if bool(pool.urls) == bool(pool.command):
        given = "both given" if pool.urls else "both missing"
        raise OptionRefused(f"{where}.urls and command", given, "one of the two")
    _check_urls(pool, where)


def _check_urls(pool: PoolPlan, where: str) -> None:
    """That its servers, and who measures their power, can be called."""
    if pool.power_url and not pool.power_url.startswith(("http://", "https://")):
        raise OptionRefused(f"{where}.power_url", pool.power_url, "http://… or https://…")
    try:
        for url in pool.urls or ("http://127.0.0.1/v1",):
            OpenAiOptions.of(pool.server, url=url, model=pool.model)
    except OptionRefused as refused:
        name = "urls" if refused.option == "url" else refused.option
        raise OptionRefused(f"{where}.{name}", refused.value, refused.allowed) from None


def _deployment(model: StatedModel, gpu: GpuType) -> Deployment:
    return Deployment(
        model=model.size.of(model.stated),
        gpu=known.Gpu(**{name: getattr(gpu, name) for name in known.Gpu.__slots__}),
        precision=model.size.precision,
        gpus=model.size.tensor_parallel,
    )


def _emulation(entry: BaseModel, model: StatedModel, on: Deployment) -> Emulation:
    if not on.kv_tokens_max:
        raise OptionRefused(
            f"models.{model.name}.tensor_parallel",
            model.size.tensor_parallel,
            f"more: on so many {on.gpu.name} its weights leave no memory for a cache",
        )
    performance, stated = _performance(on), model.stated
    context = min(stated.context_tokens_max, on.model.context_tokens_max, on.kv_tokens_max)
    return of_entry(
        Emulation,
        entry,
        performance=performance,
        power=power_of(on, performance),
        context_tokens_max=round(context),
        output_tokens=max(1.0, stated.output_tokens),
    )


def _performance(on: Deployment) -> Performance:
    """As measured; where nobody measured just this model and GPU, derived and marked so."""
    if known.MODELS.get(on.model.name) == on.model and known.GPUS.get(on.gpu.name) == on.gpu:
        return performance_of(on.model.name, on.gpu.name, precision=on.precision, gpus=on.gpus)
    return derive(on, efficiency(mixture=bool(on.model.experts)))
