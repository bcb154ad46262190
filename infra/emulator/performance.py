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

passes before the scheduler sees a request. The root is no law: of several powers it predicted rows
best that were hidden from the fit. One cause is known: SGLang's benchmarked servers look for new
requests only every 10 or, under load, 30 iterations (`--scheduler-recv-interval`), and iterations
grow with their batch. The coefficients of `fitted.json` come from measurements (`load/
fit_emulator.py`, which names their source).

Figures that were derived and not measured say so (`derived`), wherever they go.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

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
    prefill_tokens_max: int  # per iteration
    kv_tokens_max: int
    sequences_max: int
    derived: bool
    source: str

    def __post_init__(self) -> None:
        assert self.fixed_s > 0.0, "an iteration takes time"
        assert min(self.prefill_tokens_max, self.kv_tokens_max, self.sequences_max) > 0

    @classmethod
    def of_speed(cls, speed: Speed, sequences_max: int) -> Performance:
        """Of a server that answers so fast, and so many requests at once (0: without end).

        A first token takes an iteration, and half of another one where others are decoded: what is
        left of it is the front end's.
        """
        held = max(1.0, speed.held)
        iteration_s = speed.token_s + speed.token_s_per_held * held
        waited_s = iteration_s * (1.0 + 0.5 * (1.0 - 1.0 / held))
        return cls(
            fixed_s=max(speed.token_s, NO_TIME_S),
            per_sequence_s=speed.token_s_per_held,
            per_context_token_s=0.0,
            per_prompt_token_s=speed.first_s_per_prompt_token,
            request_s=max(0.0, speed.first_s - waited_s),
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
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
