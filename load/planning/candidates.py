"""Pools that the site does not have and could: each of its models on each of its types of GPU.

    [[models]] with a shape × [[gpus]] − [[pools]] ─▶ pools without replicas

A pair whose weights leave no memory for a cache is no candidate. A model is spread over as many
GPUs as its `tensor_parallel` says.
"""

from __future__ import annotations

from typing import Any

from infra.settings.fleet_plans import fleet_of
from infra.settings.model import Settings
from infra.settings.sections import section_of
from streams.errors import OptionRefused


def with_candidates(settings: Settings) -> Settings:
    """The settings with every pool that could be."""
    pools: tuple[Any, ...] = settings.pools  # made from the layout, so their keys have no types
    models: tuple[Any, ...] = settings.models
    gpus: tuple[Any, ...] = settings.gpus
    there = {(pool.model, pool.gpu) for pool in pools}
    names = {pool.name for pool in pools}
    kind: Any = section_of(type(settings).model_fields["pools"])
    found = []
    for model in models:
        for gpu in gpus:
            entry = {
                "name": f"{model.name}-{gpu.name}".replace("_", "-"),
                "model": model.name,
                "backend": "emulated",
                "gpu": gpu.name,
                "replicas": 0,
                "replicas_min": 0,
            }
            if (model.name, gpu.name) in there or entry["name"] in names:
                continue
            pool = kind(**entry)
            if _runs(settings, pool):
                found.append(pool)
    return settings.model_copy(update={"pools": (*pools, *found)})


def _runs(settings: Settings, pool: Any) -> bool:
    try:
        fleet_of(settings.gpus, settings.models, [pool], settings.target())
    except OptionRefused:
        return False
    return True
