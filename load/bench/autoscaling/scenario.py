"""What `bench autoscaling` asks for, of which fleet, planned how: for both of its forms.

    phases, seed ─▶ Arrivals ─┬─▶ callers, at their times   (autoscaling.live)
                              └─▶ Traffic, for `simulate`   (autoscaling.bench)
    settings      ─▶ fleet, prices, targets: for both
    planner_options ─▶ the same planner: for both

Two models in three pools. Short prompts prefer the large model, long ones the small: with
every token of the prompt the large one costs more, and it is better by the same 0.2 points. Reading
prompts is what fills replicas here, so a few requests a second exhaust them and answers of sixteen
tokens do: engines run at their own speed, and two cores carry all of it.

The small model has an L40S always; beyond two of them there are H100s, which cost more and carry
more. The large one has no replica unless there is demand for it.

A planner of minutes would sleep through a bench of minutes. `planner_options` says which of its
times are shorter here than by default.

Both forms get the same arrivals, the same settings and the same planner's options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.demand.expected import ExpectedOptions
from infra.autoscaling.planner import PlannerOptions, RouterOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import StabilisationOptions
from infra.settings.scaling_options import AutoscalingOptions
from load.bench.settings import head
from load.data.kinds import Kind
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic

# Model, GPU type, GPUs there are, replicas at least.
POOLS = {
    "small-l40s": ("small", "l40s", 2, 1),
    "small-h100": ("small", "h100_sxm", 2, 0),
    "large-h200": ("large", "h200_sxm", 4, 0),
}
USD_PER_HOUR = {"l40s": 0.4, "h100_sxm": 3.0, "h200_sxm": 2.6}
# The emulator's shape, quality, US dollars per million tokens of the prompt.
MODELS = {"small": ("Llama-3.1-8B-Instruct", 0.6, 0.1), "large": ("Llama-3.1-70B", 0.8, 10.0)}
OUTPUT_TOKENS = 16
STARTUP_S, LOAD_S = 4.0, 8.0  # a replica's process on this machine; its model, so to speak
STEP_S = 1.0

SHORT, LONG, DECIDED = "short", "long", "decided"
CLASSES = (SHORT, LONG, DECIDED)
PROMPT_TOKENS = {SHORT: 400, LONG: 1600, DECIDED: 1}  # means; decided: only asked where to go
SHARES = {SHORT: 0.5, LONG: 0.5, DECIDED: 0.5}  # of a phase's rate
LENGTHS_SPREAD = 0.2  # to either side, uniform
ROWS, DIM = 50, 64  # of a table in which every prompt is worth the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time at one rate."""

    seconds: float
    dispatched_per_s: float  # and half as many decisions beside them


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """n requests in the order of their times."""

    at_s: NDArray[np.float64]  # (n,)
    classes: NDArray[np.intp]  # (n,) index into `CLASSES`
    prompt_tokens: NDArray[np.int64]  # (n,)
    seconds: float  # all phases together

    @property
    def dispatched(self) -> NDArray[np.bool_]:
        """Which (n,) are dispatched; others are only decided."""
        return self.classes != CLASSES.index(DECIDED)

    def later(self, by_s: float) -> Arrivals:
        """The same after a silence."""
        return replace(self, at_s=self.at_s + by_s, seconds=self.seconds + by_s)

    def traffic(self) -> Traffic:
        """The same for a simulation.

        What was only decided about is answered there, too: a prompt of one token fills nothing.
        """
        n = len(self.at_s)
        return Traffic(
            at_s=self.at_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=np.full(n, OUTPUT_TOKENS),
            rows=np.arange(n) % ROWS,
            classes=self.classes,
            kinds=tuple(Kind(tenant=name) for name in CLASSES),
        )


def arrivals(phases: tuple[Phase, ...], seed: int) -> Arrivals:
    """Requests at random times (Poisson), of random lengths."""
    rng = np.random.default_rng(seed)
    at_s, classes, began_s = [], [], 0.0
    for phase in phases:
        for number, name in enumerate(CLASSES):
            n = rng.poisson(phase.seconds * phase.dispatched_per_s * SHARES[name])
            at_s.append(began_s + rng.uniform(0.0, phase.seconds, n))
            classes.append(np.full(n, number, np.intp))
        began_s += phase.seconds
    times, kinds = np.concatenate(at_s), np.concatenate(classes)
    order = np.argsort(times)
    kinds = kinds[order]
    means = np.array([PROMPT_TOKENS[name] for name in CLASSES])[kinds]
    spread = rng.uniform(1.0 - LENGTHS_SPREAD, 1.0 + LENGTHS_SPREAD, len(kinds))
    lengths = np.maximum(1, np.rint(means * spread)).astype(np.int64)
    return Arrivals(times[order], kinds, lengths, began_s)


def outcomes() -> OutcomeTable:
    """Answers are worth what the settings state, whatever was asked."""
    quality = np.tile([of[1] for of in MODELS.values()], (ROWS, 1))
    embeddings = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    tokens, cost_usd = np.full(ROWS, PROMPT_TOKENS[LONG]), np.zeros_like(quality)
    return OutcomeTable("equal", tuple(MODELS), embeddings, tokens, quality, cost_usd)


def planner_options(value_usd: float) -> PlannerOptions:
    """With times that fit into a few minutes; what is not named here is as by default."""
    return PlannerOptions(
        expected=ExpectedOptions(idle_s=10.0),  # ten minutes, by default
        sizing=SizingOptions(value_usd=value_usd, lead_s=5.0),  # half a minute
        # Three minutes, one minute, ten minutes.
        stabilisation=StabilisationOptions(down_s=20.0, grow_s=20.0, fresh_s=20.0),
        routers=RouterOptions(least=1, most=1),
    )


def scaling_options() -> AutoscalingOptions:
    """How often it is planned."""
    return AutoscalingOptions(enabled=True, step_s=STEP_S, routers_min=1, routers_max=1)


def machines() -> list[dict[str, float]]:
    """One for each type of GPU, as logical resources."""
    return [{f"gpu_{gpu}": float(gpus)} for _, gpu, gpus, _ in POOLS.values()]


def settings_toml(folder: Path, port: int) -> str:
    """The settings file; `port` and the next two are listened at."""
    text = f"""{head(folder, port)}
[telemetry]
period_s = {STEP_S}
[autoscaling]
enabled = true
step_s = {STEP_S}
routers_max = 1
"""
    for _, gpu, gpus, _ in POOLS.values():
        text += (
            f'[[gpus]]\nname = "{gpu}"\nusd_per_hour = {USD_PER_HOUR[gpu]}\n'
            f"available = {gpus}\nstartup_s = {STARTUP_S}\n"
        )
    for name, (shape, quality, usd) in MODELS.items():
        text += (
            f'[[models]]\nname = "{name}"\nshape = "{shape}"\nquality = {quality}\n'
            f"usd_per_1m_input_tokens = {usd}\noutput_tokens = {OUTPUT_TOKENS}\nlatency_ms = 500\n"
        )
    for name, (model, gpu, gpus, least) in POOLS.items():
        text += (
            f'[[pools]]\nname = "{name}"\nmodel = "{model}"\ngpu = "{gpu}"\nbackend = "emulated"\n'
            f"replicas = {least}\nreplicas_min = {least}\nreplicas_max = {gpus}\n"
            f'residency = "cold"\nload_s = {LOAD_S}\n'
        )
    return text
