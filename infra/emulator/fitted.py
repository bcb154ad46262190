"""The measured setups that ship, and what is derived from them for the others.

    fitted.json ─▶ performance_of(model, gpu, …)   measured: as it was fitted
                                                   not measured: derived by roofline, and marked
               ─▶ power_of(deployment, performance)

A pair without measurements is never given a measured one's figures unmarked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from infra.emulator import catalogue
from infra.emulator.performance import Performance
from infra.emulator.power import Power, PowerShares, power
from infra.emulator.roofline import Deployment, Efficiency, derive, roofline

ROWS_MIN = 8  # of measurements, to estimate a setup's efficiency from


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One setup of `fitted.json`."""

    label: str  # model|gpu|backend|precision|tp|dp|moe_tp|moe_ep
    backend: str
    deployment: Deployment
    rows: int  # it was fitted to
    performance: Performance


@cache
def fitted() -> tuple[Fitted, ...]:
    """All setups, in the file's order."""
    return tuple(_fitted(entry) for entry in _file()["setups"])


def performance_of(
    model: str, gpu: str, *, precision: str, gpus: int, backend: str | None = None
) -> Performance:
    """Of the setup with most rows, without attention's data parallelism; else derived.

    Raises NotDescribed if the catalogue lacks the model or GPU.
    """
    on = Deployment(
        model=catalogue.model(model), gpu=catalogue.gpu(gpu), precision=precision, gpus=gpus
    )
    found = [
        one
        for one in fitted()
        if (one.deployment.model, one.deployment.gpu) == (on.model, on.gpu)
        and (one.deployment.precision, one.deployment.gpus) == (precision, gpus)
        and one.deployment.ranks == 1
        and backend in {None, one.backend}
        and not one.performance.derived
    ]
    if found:
        return max(found, key=lambda one: one.rows).performance
    return derive(on, efficiency(mixture=bool(on.model.experts)))


@cache
def efficiency(*, mixture: bool) -> Efficiency:
    """Medians over the well measured setups, of mixtures of experts or of dense models."""
    return efficiency_of([
        one
        for one in fitted()
        if one.rows >= ROWS_MIN and bool(one.deployment.model.experts) == mixture
    ])  # fmt: skip


def efficiency_of(among: Sequence[Fitted]) -> Efficiency:
    """How these setups relate to their rooflines.

    An iteration's fixed time is fitted as overhead + factor · roofline: kernels and collectives
    take their time however fast the memory is.
    """
    least = [roofline(one.deployment) for one in among]

    def median(name: str) -> float:
        pairs = zip(among, least, strict=True)
        ratios = [
            getattr(one.performance, name) / getattr(bound, name)
            for one, bound in pairs
            if getattr(bound, name)
        ]
        return float(np.median(ratios)) if ratios else 0.0

    overhead_s, fixed = _line(
        [bound.fixed_s for bound in least], [one.performance.fixed_s for one in among]
    )
    return Efficiency(
        overhead_s=overhead_s,
        fixed=fixed,
        experts=median("experts_s"),
        per_sequence=median("per_sequence_s"),
        per_context_token=median("per_context_token_s"),
        per_prompt_token=median("per_prompt_token_s"),
        request_s=float(np.median([one.performance.request_s for one in among])),
    )


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Non-negative intercept and slope of least relative error."""
    from scipy.optimize import nnls

    table = np.column_stack([np.ones(len(x)), x]) / np.array(y)[:, None]
    (intercept, slope), _ = nnls(table, np.ones(len(y)))
    return float(intercept), float(slope)


def power_of(on: Deployment, performance: Performance) -> Power:
    """Watts of a replica; the bandwidth use is that of the weights in a decode iteration."""
    read_s = on.weights_bytes / on.bandwidth_bytes_per_s
    use = read_s / (performance.fixed_s + performance.experts_s)
    return power(_power_shares(), on.gpu.power_w, on.gpus, use)


def rated_power(gpu_power_w: float, *, gpus: int) -> Power:
    """Watts of a replica of which its GPUs alone are known: memory is taken to be in full use."""
    return power(_power_shares(), gpu_power_w, gpus, 1.0)


def _power_shares() -> PowerShares:
    names = ("idle", "decode", "bandwidth", "prefill")
    return PowerShares(**{name: _file()["power"][name] for name in names})


@cache
def _file() -> dict[str, Any]:
    return json.loads((files("infra.emulator") / "fitted.json").read_text())


def _fitted(entry: dict[str, Any]) -> Fitted:
    deployment = Deployment(
        model=catalogue.model(entry["model"]),
        gpu=catalogue.gpu(entry["gpu"]),
        precision=entry["precision"],
        gpus=entry["gpus"],
        ranks=entry["ranks"],
        kv_bytes=entry["kv_bytes"],
    )
    names = ("model", "gpu", "backend", "precision", "tp", "dp", "moe_tp", "moe_ep")
    return Fitted(
        label="|".join(str(entry[name]) for name in names),
        backend=entry["backend"],
        deployment=deployment,
        rows=entry["rows"],
        performance=Performance(**entry["performance"]),
    )
