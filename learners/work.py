"""How much of a replica a request takes: its work, in seconds of a replica at full load.

An engine with continuous batching makes one token for each of n sequences per iteration, which
takes W + n·(s + c·context), and between them reads prompts at a seconds per token. With λ requests
a second of P prompt and O output tokens (mean context C = P + O/2) the iteration takes as long as
all of it together asks for, T = W / (1 − λ·(a·P + s·O + c·C·O)), and n = λ·O·T sequences run. Three
things may not be exceeded, and each is *linear* in λ:

    T ≤ τ, the target per token     λ·(a·P + s·O + c·C·O) / (1 − W/τ)           ≤ 1
    n ≤ S, sequences at once        λ·(a·P + (s + W/S)·O + c·C·O)               ≤ 1
    n·C ≤ K, tokens in the cache    λ·(a·P + s·O + (c + W/K)·C·O)               ≤ 1

A request's work is what stands beside λ, the largest of the three: the work of all requests that
arrive in a second may be as much as there are replicas. That is what prices are charged on, what
fleets are sized by, and (times watts) what a request's energy is.

Work adds up. Where an approximation is needed it is on the side of more work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRates:
    """The coefficients of one pool's replicas; seconds, all ≥ 0. Zeros: requests are no work."""

    prompt_token_s: float = 0.0  # a
    output_token_s: float = 0.0  # s
    context_token_s: float = 0.0  # c
    fixed_s: float = 0.0  # W; below the target
    tpot_s: float = 1.0  # τ: the target, seconds per output token
    sequences_max: float = 1.0  # S
    kv_tokens_max: float = 1.0  # K
    request_s: float = 0.0  # of any request, whatever its length: where no more is known

    def __post_init__(self) -> None:
        assert 0.0 <= self.fixed_s < self.tpot_s, "an idle replica must meet the target"
        assert min(self.sequences_max, self.kv_tokens_max) > 0.0

    def faster(self, factor: float) -> WorkRates:
        """The same, on a replica whose clock is so many times as fast."""
        return replace(
            self,
            prompt_token_s=self.prompt_token_s / factor,
            output_token_s=self.output_token_s / factor,
            context_token_s=self.context_token_s / factor,
            fixed_s=self.fixed_s / factor,
            tpot_s=self.tpot_s / factor,
            request_s=self.request_s / factor,
        )

    def work_s(self, prompt_tokens: float, *, output_tokens: float) -> float:
        """Work of one request; plain arithmetic, for who asks once per request."""
        held = (prompt_tokens + output_tokens / 2.0) * output_tokens
        least = (
            self.request_s
            + prompt_tokens * self.prompt_token_s
            + output_tokens * self.output_token_s
            + held * self.context_token_s
        )
        full = self.fixed_s * max(output_tokens / self.sequences_max, held / self.kv_tokens_max)
        return max(least / (1.0 - self.fixed_s / self.tpot_s), least + full)


class WorkTable:
    """The rates of P pools as columns."""

    def __init__(self, rates: Sequence[WorkRates]) -> None:
        columns = np.array([astuple(one) for one in rates], np.float64).reshape(-1, 8).T
        self._a, self._s, self._c, w, tau, sequences, kv, self._each = columns
        self._spare = 1.0 - w / tau
        self._per_sequence, self._per_held = w / sequences, w / kv

    @property
    def columns(self) -> Floats:
        """What `work_s` takes of each (7, P), in the order of `learners.kernels.charge`."""
        return np.stack(
            [
                self._a,
                self._s,
                self._c,
                self._each,
                self._spare,
                self._per_sequence,
                self._per_held,
            ]
        )

    def work_s(self, prompt_tokens: Floats, output_tokens: Floats) -> Floats:
        """Work (n, P) of n prompts' lengths (n,) answered at lengths (n, P) or (1, P)."""
        prompt = prompt_tokens[:, None]
        context = prompt + output_tokens / 2.0
        held = context * output_tokens
        least = self._each + prompt * self._a + output_tokens * self._s + held * self._c
        full = np.maximum(output_tokens * self._per_sequence, held * self._per_held)
        return np.maximum(least / self._spare, least + full)
