"""A plan as settings that `fairlead up` takes: the site's own file with the plan's replicas in it.

    fairlead.toml + replicas, weight of cost ─▶ TOML: the same keys, but for those that were planned

What the file says of anything else stays, comments excepted. Pools that the plan has and the file
has not are added, run as another pool of their model is; as many GPUs as the plan needs are
`available`. Of servers that run already those are left that the plan needs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load.planning.search import gpus_of
from load.planning.site import Site
from load.planning.sizing import Sized

HEADER = (
    "# Planned by `fairlead plan`: replicas, preference.cost, gpus.available and, where other\n"
    "# ones were asked for, targets are the plan's.\n"
)
NOT_RUN = "# Emulated, until it is said how they are run (`command` or `urls`): {}\n"
# Of a pool that is added, what another one of its model does not say.
OF_ITS_OWN = ("name", "gpu", "region", "replicas", "replicas_min", "replicas_max", "urls")


def fragment(path: Path, site: Site, fleet: Sized, per_usd: float) -> str:
    """The file's settings with a plan in them."""
    settings = tomllib.loads(path.read_text("utf-8-sig"))
    stated = {pool["name"]: pool for pool in settings.get("pools", [])}
    not_run = []
    for plan in site.fleet.pools:
        replicas = fleet.replicas.get(plan.name)
        if replicas is None or not (replicas or plan.name in stated):
            continue
        entry = stated.get(plan.name) or _added(settings, plan.name, plan.model, plan.machine.name)
        if replicas:
            entry.pop("draining", None)  # it is planned: requests are to come
        if entry.get("urls"):
            entry |= {"urls": entry["urls"][:replicas]} if replicas else {"draining": True}
            continue
        if plan.name not in stated and _is_real(stated, plan.model) and "command" not in entry:
            not_run.append(plan.name)
        entry["replicas"] = replicas
        entry["replicas_max"] = max(1, replicas, entry.get("replicas_max", 8))
        entry["replicas_min"] = min(entry.get("replicas_min", 0), replicas)
    used = gpus_of(site, fleet)
    for gpu in settings.get("gpus", []):
        gpu["available"] = max(gpu.get("available", 8), used.get(gpu["name"], 0))
    settings.setdefault("preference", {})["cost"] = per_usd
    if site.target != site.settings.target():
        settings["targets"] = settings.get("targets", {}) | asdict(site.target)
    said = NOT_RUN.format(", ".join(not_run)) if not_run else ""
    return HEADER + said + "\n".join(_toml(settings)) + "\n"


def _added(settings: dict[str, Any], name: str, model: str, gpu: str) -> dict[str, Any]:
    """A pool that the file has not, run by the command of another one of its model."""
    pools: list[dict[str, Any]] = settings.setdefault("pools", [])
    alike: dict[str, Any] = next(
        (one for one in pools if one.get("model") == model and "command" in one), {}
    )
    kept = {key: value for key, value in alike.items() if key not in OF_ITS_OWN}
    entry = {"backend": "emulated"} | kept | {"name": name, "model": model, "gpu": gpu}
    pools.append(entry)
    return entry


def _is_real(stated: Mapping[str, Any], model: str) -> bool:
    """Whether one of its model's pools, or of all where it has none, is no emulated one."""
    of_it = [pool for pool in stated.values() if pool.get("model") == model]
    of_it = of_it or list(stated.values())
    return any(pool.get("backend") != "emulated" for pool in of_it)


def _toml(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Plain keys first, then tables, then lists of tables, as TOML has it."""
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        inner = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict):
            yield f"\n[{inner}]"
            yield from _toml(value, inner)
        elif _is_tables(value):
            for one in value:
                yield f"\n[[{inner}]]"
                yield from _toml(one, inner)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    """JSON's strings, numbers and lists are TOML's; its objects are not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | int | float):
        return json.dumps(value, ensure_ascii=False)
    return str(value)  # dates and times
