"""What an emulated replica can carry within a latency target, and how near to it it is.

The coefficients of its iteration are those of `learners.work`. Its *load* is told from what came and
from what it is behind with:

    load = work that came per second, lately  +  time to read the prompts that wait / target
                                              +  time per token / target − 1, where that is more

What comes, not what is done: that stops at what a replica can do. Lately is the last few seconds,
later ones count more. The other two are zero while it keeps up, and have no bound when it does not.

The one rule: 1 means as much as it carries within the target, on every GPU alike.
"""

from __future__ import annotations

import math

from infra.emulator.engine import Engine
from infra.emulator.performance import Performance
from infra.latency_target import LatencyTarget
from learners.work import WorkRates

FLOW_S = 5.0  # what came is averaged over: a few requests even of a slow replica
FIXED_SHARE_MAX = 0.95  # of the target; a replica slower than that is sized as if it just met it


def rates_of(performance: Performance, target: LatencyTarget) -> WorkRates:
    """The rates of a replica that may take `target.tpot_s` per token.

    Of a mixture all experts are read: a full batch uses them all.
    """
    fixed_s = performance.fixed_s + performance.experts_s
    return WorkRates(
        prompt_token_s=performance.per_prompt_token_s,
        output_token_s=performance.per_sequence_s,
        context_token_s=performance.per_context_token_s,
        fixed_s=min(fixed_s, FIXED_SHARE_MAX * target.tpot_s),
        tpot_s=target.tpot_s,
        sequences_max=performance.sequences_max,
        kv_tokens_max=performance.kv_tokens_max,
    )


class LoadGauge:
    """Tells an engine's load, from one look to the next. One for each engine."""

    def __init__(self, engine: Engine, target: LatencyTarget) -> None:
        self._engine, self._target = engine, target
        self._rates = rates_of(engine.performance, target)
        self._came_s = self._flow = 0.0
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)

    def came(self, prompt_tokens: int, output_tokens: int) -> None:
        """A request was submitted."""
        self._came_s += self._rates.work_s(prompt_tokens, output_tokens)

    def read(self) -> float:
        """The load now; advance the engine first."""
        engine, target = self._engine, self._target
        before_s, busy_s, iterations = self._looked
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)
        window_s = engine.now_s - before_s
        if window_s > 0.0:
            kept = math.exp(-window_s / FLOW_S)
            self._flow = kept * self._flow + (1.0 - kept) * self._came_s / window_s
            self._came_s = 0.0
        waiting_s = engine.waiting_prompt_tokens * self._rates.prompt_token_s
        iterations = engine.iterations - iterations
        token_s = (engine.busy_s - busy_s) / iterations if iterations else 0.0
        late = max(0.0, token_s / target.tpot_s - 1.0)
        return self._flow + waiting_s / target.ttft_s + late
