"""What an emulated replica can carry within a latency target, and how near to it it is.

The coefficients of its iteration are those of `learners.work`. Its *load* is told from what it did:

    load = work done in the window / window  +  time to read the prompts that wait / target

Work done is the time of iterations without their fixed part, over the share of the target that the
fixed part leaves. It stops at what a replica can do; what waits has no such bound, so a load well
above one says how much too much there is.

The one rule: 1 means as much as it carries within the target, on every GPU alike.
"""

from __future__ import annotations

from infra.emulator.engine import Engine
from infra.emulator.performance import Performance
from infra.latency_target import LatencyTarget
from learners.work import WorkRates

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
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)

    def read(self) -> float:
        """The load since the last look; advance the engine first. 0 if no time has passed."""
        engine, rates = self._engine, self._rates
        before_s, busy_s, iterations = self._looked
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)
        window_s = engine.now_s - before_s
        if window_s <= 0.0:
            return 0.0
        fixed_s = rates.fixed_s * (engine.iterations - iterations)
        done_s = max(0.0, engine.busy_s - busy_s - fixed_s) / (1.0 - rates.fixed_s / rates.tpot_s)
        waiting_s = engine.waiting_prompt_tokens * rates.prompt_token_s
        return done_s / window_s + waiting_s / self._target.ttft_s
