"""How fast one replica of a model is: the time of an engine's iteration, and its limits.

    iteration = fixed                          weights are read, kernels start, GPUs talk
              + experts       · share of them that this iteration's tokens use
              + per_sequence  · decoding       sampling, activations
              + per_context   · tokens         the KV cache is read
              + per_prompt    · prompt tokens  prefill's arithmetic

A token uses a share e of a mixture's experts, so t tokens need 1 − (1 − e)^t of them from memory.

    front end = request                        HTTP, and the scheduler's own rhythm
              + per_prompt  · prompt tokens    tokenising
              + contention  · √requests        all those in the server, this one too
              + per_other   · others           of those worked on at once

passes before the scheduler sees a request. The root is no law: of several powers it predicted rows
best that were hidden from the fit. One cause is known: SGLang's benchmarked servers look for new
requests only every 10 or, under load, 30 iterations (`--scheduler-recv-interval`), and iterations
grow with their batch. The coefficients of `fitted.json` come from measurements (`load/
fit_emulator.py`, which names their source).

`slow` says how much that varies: quantiles, evenly spaced, of the time to a first token over what
it usually takes. Who draws r from it has its first token r times as late. Without it none varies.

Figures that were derived and not measured say so (`derived`), wherever they go.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from learners.servers.first_tokens import FirstTokens
from learners.servers.speed import Speed

NO_TIME_S = 1e-6  # an iteration takes some
WITHOUT_END = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """The coefficients of one replica, never negative; `fixed_s` is positive."""

    fixed_s: float
    experts_s: float = 0.0  # to read all experts; 0 for dense models
    expert_share: float = 0.0  # of the experts, used by one token
    per_sequence_s: float
    per_context_token_s: float
    per_prompt_token_s: float
    request_s: float  # of the front end, as the next two
    request_per_prompt_token_s: float = 0.0
    request_contention_s: float = 0.0
    request_per_other_s: float = 0.0
    slow: tuple[float, ...] = ()
    prefill_tokens_max: int  # per iteration
    kv_tokens_max: int
    sequences_max: int
    derived: bool
    source: str

    def __post_init__(self) -> None:
        assert self.fixed_s > 0.0, "an iteration takes time"
        assert min(self.prefill_tokens_max, self.kv_tokens_max, self.sequences_max) > 0

    @classmethod
    def of_speed(
        cls, speed: Speed, sequences_max: int, first: FirstTokens | None = None
    ) -> Performance:
        """Of a server that answers so fast, and so many requests at once (0: without end).

        A first token takes an iteration, and half of another one where others are decoded: what is
        left of it is the front end's. `first` is how long it takes and how much that varies; None:
        the mean is all that is known.
        """

        def waited_s(held: float) -> float:
            iteration_s = speed.token_s + speed.token_s_per_held * held
            return iteration_s * (1.0 + 0.5 * (1.0 - 1.0 / held))

        alone_s = speed.first_s - waited_s(max(1.0, speed.held))
        per_prompt_s, per_other_s = speed.first_s_per_prompt_token, 0.0
        if first is not None:
            full = float(sequences_max) if sequences_max > 1 else max(2.0, 2.0 * speed.held)
            alone_s = max(0.0, first.usual_s(1.0, prompt_tokens=0.0) - waited_s(1.0))
            with_all_s = max(0.0, first.usual_s(full, prompt_tokens=0.0) - waited_s(full))
            per_prompt_s = first.s_per_prompt_token
            per_other_s = max(0.0, (with_all_s - alone_s) / (full - 1.0))
        return cls(
            fixed_s=max(speed.token_s, NO_TIME_S),
            per_sequence_s=speed.token_s_per_held,
            per_context_token_s=0.0,
            per_prompt_token_s=per_prompt_s,
            request_s=max(0.0, alone_s),
            request_per_other_s=per_other_s,
            slow=() if first is None else first.slow,
            prefill_tokens_max=WITHOUT_END,
            kv_tokens_max=WITHOUT_END,
            sequences_max=sequences_max or WITHOUT_END,
            derived=False,
            source="learned of its servers",
        )

    def iteration_s(self, decoding: int, context_tokens: int, prompt_tokens: int) -> float:
        """Seconds of one iteration, by the equation above."""
        experts_s = 0.0
        if self.experts_s:
            unused = (1.0 - self.expert_share) ** (decoding + prompt_tokens)
            experts_s = self.experts_s * (1.0 - unused)
        return (
            self.fixed_s
            + experts_s
            + self.per_sequence_s * decoding
            + self.per_context_token_s * context_tokens
            + self.per_prompt_token_s * prompt_tokens
        )

    def front_end_s(self, prompt_tokens: int, requests: int) -> float:
        """Seconds before the scheduler sees a request; `requests` in the server, with it."""
        return (
            self.request_s
            + self.request_per_prompt_token_s * prompt_tokens
            + self.request_contention_s * math.sqrt(requests)
            + self.request_per_other_s * (min(requests, self.sequences_max) - 1)
        )

    def first_token_s(self, prompt_tokens: int, requests: int) -> float:
        """Seconds to a first token where nobody else is decoded: what `slow` multiplies."""
        return (
            self.front_end_s(prompt_tokens, requests)
            + self.fixed_s
            + self.per_prompt_token_s * prompt_tokens
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
