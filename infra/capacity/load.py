"""What an emulated replica can carry within a latency target, and how near to it it is.

The coefficients of its iteration are those of `learners.work`. Its *load* is measured from what
came and from what it is behind with:

    load = work that came per second, recently, / how full it may be (`capacity.queueing`)
         + time to read the prompts that wait / target
         + time per token / target − 1, where that is more

What comes, not what is done: that stops at what a replica can do. Recently is the last few seconds,
later ones count more. The other two are zero while it keeps up, and have no bound when it does not.
How full it may be follows from the lengths of the last minute's requests.

1 means as much as it carries with 99 % within the target, on every GPU alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.queueing import load_max
from infra.emulator.gauges import EngineGauges
from infra.emulator.performance import Performance
from learners.work import WorkRates

LENGTHS_S = 60.0  # lengths are averaged over
REPLICAS = 4  # as in a pool of middle size: a replica does not know how many there are
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

    def __init__(self, engine: EngineGauges, target: LatencyTarget) -> None:
        self._engine, self._target = engine, target
        self._rates = rates_of(engine.performance, target)
        self._flow = 0.0  # work per second
        self._window = [0.0] * 5  # of this window: requests, prompt, output, work, its squares
        self._recent = [0.0] * 5  # the same, of the last minute
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)

    def came(self, prompt_tokens: int, output_tokens: int) -> None:
        """A request was submitted."""
        work_s = self._rates.work_s(prompt_tokens, output_tokens=output_tokens)
        of = self._window
        of[0] += 1.0
        of[1] += prompt_tokens
        of[2] += output_tokens
        of[3] += work_s
        of[4] += work_s * work_s

    def came_together(self, sums: Sequence[float]) -> None:
        """Several were, in this window: how many, their tokens, their work, and its squares."""
        if not self._window[0]:  # as almost always: they are told once a window
            self._window = list(sums)
            return
        self._window = [before + new for before, new in zip(self._window, sums, strict=True)]

    def read(self) -> float:
        """The load now; advance the engine first."""
        engine, target = self._engine, self._target
        before_s, busy_s, iterations = self._looked
        self._looked = (engine.now_s, engine.busy_s, engine.iterations)
        window_s = engine.now_s - before_s
        if window_s > 0.0:
            self._end_window(window_s)
        waiting_s = engine.waiting_prompt_tokens * self._rates.prompt_token_s
        iterations = engine.iterations - iterations
        token_s = (engine.busy_s - busy_s) / iterations if iterations else 0.0
        late = max(0.0, token_s / target.tpot_s - 1.0)
        return self._flow / self._full() + waiting_s / target.ttft_s + late

    def _end_window(self, window_s: float) -> None:
        kept = math.exp(-window_s / FLOW_S)
        self._flow = kept * self._flow + (1.0 - kept) * self._window[3] / window_s
        kept = math.exp(-window_s / LENGTHS_S)
        n, prompt, output, work_s, squares = self._window
        before = self._recent  # one by one: this is asked of every replica, every window
        self._recent = [
            kept * before[0] + n,
            kept * before[1] + prompt,
            kept * before[2] + output,
            kept * before[3] + work_s,
            kept * before[4] + squares,
        ]
        self._window = [0.0] * 5

    def _full(self) -> float:
        """How full it may be, by the lengths that came recently."""
        n, prompt, output, work_s, squares = self._recent
        if n < 1.0:
            return 1.0
        cv2 = max(0.0, squares * n / (work_s * work_s) - 1.0) if work_s else 0.0
        return load_max(
            self._rates,
            self._target,
            prompt / n,
            output_tokens_mean=output / n,
            cv2=cv2,
            replicas=REPLICAS,
        )
