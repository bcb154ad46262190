"""What is promised to a caller: how soon an answer begins, and how fast it goes on.

Longer prompts take longer to read on any machine, so the time to a first token has a part per
prompt token. A request is *within target* if both its times are.

What is not finished, refused or lost is not within target.
"""

from __future__ import annotations

from dataclasses import dataclass

from learners.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTarget:
    """Seconds."""

    ttft_s: float = option(2.0, "Seconds to an answer's first token.", gt=0, le=3600)
    ttft_s_per_1k_prompt_tokens: float = option(
        0.5, "Seconds that are added to `ttft_s` per 1,000 tokens of the prompt.", ge=0, le=3600
    )
    # The mean; ten a second are twice as fast as reading.
    tpot_s: float = option(
        0.1, "Seconds per token after the first; people read five a second.", gt=0, le=60
    )

    def times(self, factor: float) -> LatencyTarget:
        """The same target on a clock that is so many times as fast."""
        return LatencyTarget(
            ttft_s=factor * self.ttft_s,
            ttft_s_per_1k_prompt_tokens=factor * self.ttft_s_per_1k_prompt_tokens,
            tpot_s=factor * self.tpot_s,
        )

    def first_token_s(self, prompt_tokens: float) -> float:
        """The latest that a first token may come, after the request."""
        return self.ttft_s + self.ttft_s_per_1k_prompt_tokens * prompt_tokens / 1000.0

    def met(self, prompt_tokens: float, *, ttft_s: float, tpot_s: float) -> bool:
        """Whether a finished request was within target."""
        return ttft_s <= self.first_token_s(prompt_tokens) and tpot_s <= self.tpot_s
