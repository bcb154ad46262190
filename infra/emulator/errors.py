"""What can go wrong with emulated engines.

InfraError
└── EmulatorError
    ├── NeverFits     a request is longer than the engine's whole KV cache
    └── NotDescribed  a model, GPU or measurement that is asked for is not in the tables
"""

from __future__ import annotations

from infra.errors import InfraError


class EmulatorError(InfraError):
    """Base of all errors of this folder."""


class NeverFits(EmulatorError):
    """A request is longer than the engine's whole KV cache."""

    def __init__(self, tokens: int, kv_tokens_max: int) -> None:
        super().__init__(tokens, kv_tokens_max)
        self.tokens, self.kv_tokens_max = tokens, kv_tokens_max

    def __str__(self) -> str:
        return (
            f"prompt and answer need {self.tokens:,} tokens of KV cache and the engine has "
            f"{self.kv_tokens_max:,}; send it to a pool with more memory"
        )


class NotDescribed(EmulatorError):
    """A model, GPU or measurement that is asked for is not in the tables."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        return f"no {self.kind} {self.name!r} is described; there are: {', '.join(self.known)}"
