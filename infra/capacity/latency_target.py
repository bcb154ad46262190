"""What is promised to a caller: how soon an answer begins, and how fast it goes on.

Longer prompts take longer to read on any machine, so the time to a first token has a part per
prompt token. A request is *within target* if both its times are.

The one rule: what is not finished, refused or lost is not within target.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTarget:
    """Seconds."""

    ttft_s: float = 2.0  # to the first token
    ttft_s_per_1k_prompt_tokens: float = 0.5  # and so much more for the prompt
    tpot_s: float = 0.1  # mean per token after the first: ten a second, twice as fast as reading

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

    def met(self, prompt_tokens: float, ttft_s: float, tpot_s: float) -> bool:
        """Whether a finished request was within target."""
        return ttft_s <= self.first_token_s(prompt_tokens) and tpot_s <= self.tpot_s
