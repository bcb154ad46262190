"""What a pool can do for the dispatcher: take a chat completion, stream the answer in pieces.

    Call ──Endpoint.stream──▶ Piece, Piece, …, Usage          or AttemptFailed

The language is OpenAI's chat completions, because every server of models speaks it: a call's body
and a piece's delta are passed through as they are, so tools and options this project does not
know work all the same. `infra` implements these protocols; nothing here knows a network.

An endpoint that has yielded a piece has begun to answer. What failed before may be
tried elsewhere, what fails after may not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from learners.servers.held import Stated
from serve.dispatch.merge import finished, merge_into


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One chat completion to be answered."""

    # An OpenAI chat completion request without `model`, `stream`, `stream_options` and `priority`.
    body: Mapping[str, object]
    prompt_tokens: int  # estimated, where nobody counted
    confidence: bool = False  # ask for the tokens' log-probabilities
    priority: int = 0  # for servers with priorities: lower is served earlier
    headers: Mapping[str, str] = field(default_factory=dict)  # further ones, for the server
    # From a look at the answer to the next: but for the first, pieces are given on together.
    pace_s: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer, as it came."""

    delta: Mapping[str, object]  # OpenAI's `choices[0].delta`: role, content, tool_calls, …
    finish_reason: str | None = None
    logprobs: Mapping[str, Any] | None = None
    beside: Mapping[str, object] | None = None  # in the choice: `stop_reason`, …
    around: Mapping[str, object] | None = None  # in the chunk: `system_fingerprint`, `citations`, …
    full_s: float = 0.0  # of the first: its server takes no more for so long, by its own account
    # Another came with it, and is the next: who writes them may write both at once.
    followed: bool = field(default=False, compare=False)

    @property
    def text(self) -> str:
        """The words in it; "" where it carries something else."""
        content = self.delta.get("content")
        return content if isinstance(content, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer took; comes once, after the last piece."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0  # of the prompt, found in the server's cache
    counted: bool = True  # False: the server did not say, pieces were counted
    details: Mapping[str, object] | None = field(
        default=None, compare=False
    )  # as the server said it, for whoever wants more


class Endpoint(Protocol):
    """One server of one pool."""

    address: str  # unique within the pool

    def stream(self, call: Call) -> AsyncGenerator[Piece | Usage, None]:
        """The answer, piece by piece, then its usage. Closing the generator ends the call.

        Raises AttemptFailed: EndpointUnreachable, EndpointOverloaded, EndpointFailed,
        AnswerGarbled, CallRefused.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A pool that does not report of itself: its callers do."""

    pool: str
    model: str
    gpu: str = ""
    region: str = ""
    stated: Stated = Stated()  # of one server


class Pools(Protocol):
    """Which endpoints every pool has right now. Reading is a look into memory."""

    async def start(self) -> None:
        """Begin to follow where endpoints are."""

    async def stop(self) -> None:
        """Let go of connections."""

    def endpoints(self, pool: str) -> Mapping[str, Endpoint]:
        """Endpoints by address; empty where the pool has none now."""

    def replica(self, address: str) -> str:
        """What whoever runs the server at an address calls it; else the address."""

    def watched(self) -> Sequence[Watched]:
        """The pools whose callers report on them."""

    def start_s(self, pool: str) -> float | None:
        """What the start of a server is stated to take; None: nobody starts one."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole answer, put together from its pieces."""

    finish_reason: str | None = None
    logprobs: dict[str, object] = field(default_factory=dict)
    beside: dict[str, object] = field(default_factory=dict)
    around: dict[str, object] = field(default_factory=dict)
    _parts: dict[str, object] = field(default_factory=lambda: {"role": "assistant"})

    def add(self, piece: Piece) -> None:
        """Take what a piece carries (see `merge`)."""
        merge_into(self._parts, piece.delta)
        self.finish_reason = piece.finish_reason or self.finish_reason
        merge_into(self.logprobs, piece.logprobs or {})
        self.beside.update(piece.beside or {})
        self.around.update(piece.around or {})

    @property
    def message(self) -> dict[str, object]:
        """The message so far, as OpenAI's API would give it whole."""
        return finished(self._parts)
