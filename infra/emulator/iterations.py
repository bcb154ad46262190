"""A run of iterations with an unchanging batch, in closed form.

    begins_s                                   ends_s
       │ a │ a + s │ a + 2s │ …          │ a + (k−1)s │

Contexts grow by one token each per iteration, and so does the duration, by the same step s:

    T(k) = a k + s k (k − 1) / 2

The iterations that end before a moment are counted by the root of that quadratic.

A run is only ever shortened, and never below the iteration that is under way.
"""

from __future__ import annotations

import math


class Run:
    """Iterations of `first_s`, `first_s + step_s`, … seconds; `k` of them are planned."""

    __slots__ = ("begins_s", "first_s", "k", "prompt_tokens", "step_s")

    def __init__(
        self, begins_s: float, k: int, first_s: float, *, step_s: float, prompt_tokens: int = 0
    ) -> None:
        """`prompt_tokens` are prefilled in it; a run that prefills is one iteration."""
        self.begins_s, self.k, self.first_s, self.step_s = begins_s, k, first_s, step_s
        self.prompt_tokens = prompt_tokens

    def end_s(self, k: int) -> float:
        """When the k-th iteration ends."""
        return self.begins_s + (self.first_s * k + self.step_s * (k * (k - 1) / 2))

    def stop(self, time_s: float) -> None:
        """Plan no iteration that would begin at `time_s` or later; `time_s` > `begins_s`."""
        if self.k > 1 and self.end_s(self.k - 1) >= time_s:
            self.k = self._reach(time_s)

    def done(self, now_s: float) -> int:
        """How many iterations have ended by `now_s`, which is before the run's end."""
        if self.k == 1 or now_s <= self.begins_s:
            return 0
        k = self._reach(now_s)
        return k if self.end_s(k) == now_s else k - 1

    def _reach(self, time_s: float) -> int:
        """The fewest iterations after which it is `time_s` or later."""
        x, b = time_s - self.begins_s, self.first_s - self.step_s / 2
        k = max(1, math.ceil(2 * x / (b + math.sqrt(b * b + 2 * self.step_s * x))))
        while self.end_s(k) < time_s:  # the root's last bits
            k += 1
        while k > 1 and self.end_s(k - 1) >= time_s:
            k -= 1
        return k
