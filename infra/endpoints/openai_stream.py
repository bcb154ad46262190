"""Makes pieces of the bytes of a chat completion, streamed or whole.

    bytes ──ChatAnswer.feed──▶ Piece, Piece, …        then `usage`

Servers differ, and what differs without harm is allowed: a first chunk with the role alone, sent
before there is any token, is held back and joined to the next; chunks without choices, usage in
any chunk or none, `[DONE]` without a finish reason, no `[DONE]` after one; one whole JSON object
from a server that does not stream. What a single event may look like is in `openai_chunk`.

A stream that ends without a finish reason and without `[DONE]` was cut: that is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec

from infra.endpoints.blame import at_fault
from infra.endpoints.openai_chunk import Chunk, ChunkReader
from infra.endpoints.server_sent_events import EventReader
from serve.dispatch.backend import Piece, Usage
from serve.errors import AnswerGarbled

# Where nobody counted: OpenAI's rule of thumb for English text, help.openai.com article 4936856.
CHARACTERS_PER_TOKEN = 4

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _CachedTokens(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _CachedTokens | None = None
    prompt_cache_hit_tokens: _Count | None = None  # DeepSeek's name for the same

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        found = details.cached_tokens if details else self.prompt_cache_hit_tokens
        return min(found or 0, self.prompt_tokens)


class ChatAnswer:
    """One answer as it comes in."""

    def __init__(
        self, where: str, *, line_bytes_max: int, answer_bytes_max: int, secret: str = ""
    ) -> None:
        """`where` names the sender in errors; `secret` is hidden in what it says."""
        self.finished = False  # a finish reason has come: nothing more is needed
        self.over = False  # nothing more will come
        self._where, self._secret = where, secret
        self._events = EventReader(where, line_bytes_max)
        self._whole: list[bytes] | None = None  # a JSON object's bytes, if it is one
        self._bytes_left = answer_bytes_max
        self._begun = False  # the first byte that is no space has come
        self._chunks = ChunkReader(where)
        self._role: object = None  # sent before there was a token
        self._around: dict[str, object] = {}  # sent beside no choice: goes with the next piece
        self._n_tokens = 0
        self._called = False  # a tool was
        self._usage: Mapping[str, object] | None = None  # the newest

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that end in `data`. Exhaust it before feeding more.

        Raises AnswerGarbled, EndpointFailed.
        """
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise AnswerGarbled(self._where, "the answer has more bytes than are allowed")
        if not self._begun and (start := data.lstrip()[:1]):
            self._begun = True
            self._whole = [] if start == b"{" else None
        if self._whole is not None:
            self._whole.append(data)
        else:
            yield from self._pieces(self._events.feed(data))

    def end(self) -> Iterator[Piece]:
        """The pieces that only the end of the bytes made whole.

        Raises AnswerGarbled, also if the answer is not whole now; EndpointFailed.
        """
        if self._whole is not None:
            yield from self._of_whole(b"".join(self._whole))
        else:
            yield from self._pieces(self._events.end())
        self.over = True
        if not self.finished:
            raise AnswerGarbled(self._where, "the stream ended before the answer did")

    def usage(self, prompt_tokens: int) -> Usage:
        """What the server said it took; else the tokens seen here, and `prompt_tokens`."""
        try:
            found = msgspec.convert(self._usage, _Usage)
        except (ValueError, RecursionError):  # none, or not OpenAI's: the answer is whole anyway
            return Usage(prompt_tokens=prompt_tokens, output_tokens=self._n_tokens, counted=False)
        return Usage(
            prompt_tokens=found.prompt_tokens,
            output_tokens=found.completion_tokens,
            cached_tokens=found.cached_tokens,
            details=self._usage,
        )

    def _pieces(self, events: Iterator[bytes]) -> Iterator[Piece]:
        for data in events:
            if data.strip() == b"[DONE]":
                yield from self._last()
                self.over = True
            elif not self.over and (chunk := self._chunk(data)) is not None:
                piece = self._piece(chunk)
                if piece is not None:
                    yield piece

    def _last(self) -> Iterator[Piece]:
        """The end of an answer whose server gave no finish reason but said that it is done."""
        if self.finished:
            return
        if not self._n_tokens:
            raise AnswerGarbled(self._where, "[DONE] came before an answer")
        self.finished = True
        yield Piece(delta={}, finish_reason="tool_calls" if self._called else "stop")

    def _of_whole(self, data: bytes) -> Iterator[Piece]:
        chunk = self._chunk(data)
        if chunk is None or not chunk.is_whole:
            raise AnswerGarbled(self._where, "its JSON has no message")
        called = bool(chunk.delta.get("tool_calls"))
        chunk.finish_reason = chunk.finish_reason or ("tool_calls" if called else "stop")
        piece = self._piece(chunk)
        assert piece is not None, "a finish reason makes a piece"
        yield piece
        if not _tokens(chunk.logprobs):
            self._n_tokens = max(1, len(piece.text) // CHARACTERS_PER_TOKEN)

    def _chunk(self, data: bytes) -> Chunk | None:
        """What an event carries, its usage and what is beside the choices noted."""
        chunk = self._chunks.read(data)
        if chunk is None:
            return None
        if chunk.error is not None:
            raise at_fault(self._where, chunk.error, self._secret)
        self._usage = chunk.usage or self._usage
        self._around |= chunk.extra
        return chunk if chunk.has_choice else None

    def _piece(self, chunk: Chunk) -> Piece | None:
        """A piece, unless the chunk carries neither a token nor the end."""
        delta, tokens = chunk.delta, _tokens(chunk.logprobs)
        carries = any(value for name, value in delta.items() if name != "role")
        if carries or tokens:
            self._n_tokens += len(tokens) or 1
            self._called = self._called or bool(delta.get("tool_calls"))
        elif not chunk.finish_reason:
            self._role = delta.get("role") or self._role
            return None
        self.finished = self.finished or bool(chunk.finish_reason)
        if self._role:
            delta, self._role = {**delta, "role": self._role}, None
        around, self._around = self._around, {}
        return Piece(
            delta=delta,
            finish_reason=chunk.finish_reason,
            logprobs=chunk.logprobs,
            beside=chunk.choice_extra or None,
            around=around or None,
        )


def _tokens(logprobs: Mapping[str, object] | None) -> list[object]:
    found = logprobs.get("content") if logprobs else None
    return found if isinstance(found, list) else []
