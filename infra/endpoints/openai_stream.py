"""Makes pieces of the bytes of a chat completion, streamed or whole.

    bytes ──ChatAnswer.feed──▶ Piece, Piece, …        then `usage`

Servers differ, and what differs without harm is allowed: a first chunk with the role alone, sent
before there is any token, is held back and joined to the next; chunks without choices, usage in
any chunk or none, `finish_reason: ""`, no `[DONE]` after the finish reason; one whole JSON
object from a server that does not stream.

The one rule: a delta that leaves here can be added to a `serve.dispatch.backend.Answer` without a
check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec

from infra.endpoints.openai_refusals import said
from infra.endpoints.server_sent_events import EventReader
from serve.dispatch.backend import Piece, Usage
from serve.errors import AnswerGarbled, EndpointFailed

# More calls of tools than any model makes at once; an index beyond it would make a list as long.
TOOL_CALLS_MAX = 1024
# Where nobody counted: OpenAI's rule of thumb for English text, help.openai.com article 4936856.
CHARACTERS_PER_TOKEN = 4

_NULL = msgspec.Raw(b"null")
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: dict[str, object] | None = None
    message: dict[str, object] | None = None  # instead of a delta, where the answer is whole
    finish_reason: str | None = None
    logprobs: dict[str, object] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NULL  # read at the end: some servers send it with every chunk
    error: msgspec.Raw = _NULL
    object: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _CachedTokens | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_usage = msgspec.json.Decoder(_Usage)


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
        self._role: object = None  # sent before there was a token
        self._n_tokens = 0
        self._told: bytes = b""  # the newest usage

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
            told = _usage.decode(self._told)
        except (ValueError, RecursionError):  # none, or not OpenAI's: the answer is whole anyway
            return Usage(prompt_tokens=prompt_tokens, output_tokens=self._n_tokens, counted=False)
        cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details else None
        return Usage(
            prompt_tokens=told.prompt_tokens,
            output_tokens=told.completion_tokens,
            cached_tokens=min(cached or 0, told.prompt_tokens),
        )

    def _pieces(self, events: Iterator[bytes]) -> Iterator[Piece]:
        for data in events:
            if data.strip() == b"[DONE]":
                if not self.finished:
                    raise AnswerGarbled(self._where, "[DONE] came before a finish reason")
                self.over = True
            elif not self.over and (choice := self._choice(data)) is not None:
                piece = self._piece(choice, choice.delta or {})
                if piece is not None:
                    yield piece

    def _of_whole(self, data: bytes) -> Iterator[Piece]:
        choice = self._choice(data)
        if choice is None or choice.message is None:
            raise AnswerGarbled(self._where, "its JSON has no message")
        choice.finish_reason = choice.finish_reason or "stop"
        yield self._piece(choice, choice.message)
        if not _tokens(choice.logprobs):
            text = choice.message.get("content")
            self._n_tokens = max(1, len(text or "") // CHARACTERS_PER_TOKEN)

    def _choice(self, data: bytes) -> _Choice | None:
        """The first choice of a chunk; None where it has none, as with the last one's usage."""
        try:
            chunk = _chunk.decode(data)
        except (ValueError, RecursionError) as error:
            raise AnswerGarbled(self._where, f"not a chunk of a chat completion: {error}") from None
        if bytes(chunk.error) != b"null" or chunk.object == "error":
            raise EndpointFailed(
                self._where, f"it failed while answering: {said(data, self._secret)}"
            )
        if bytes(chunk.usage) != b"null":
            self._told = bytes(chunk.usage)
        elif chunk.choices is None:
            raise AnswerGarbled(self._where, "a chunk has no `choices`")
        return next((choice for choice in chunk.choices or () if not choice.index), None)

    def _piece(self, choice: _Choice, delta: dict[str, object]) -> Piece | None:
        """A piece, unless the chunk carries neither a token nor the end."""
        problem = _wrong(delta) or _wrong_logprobs(choice.logprobs)
        if problem:
            raise AnswerGarbled(self._where, problem)
        tokens = _tokens(choice.logprobs)
        carries = any(value for name, value in delta.items() if name != "role")
        if carries or tokens:
            self._n_tokens += len(tokens) or 1
        elif not choice.finish_reason:
            self._role = delta.get("role") or self._role
            return None
        self.finished = self.finished or bool(choice.finish_reason)
        if self._role:
            delta, self._role = {**delta, "role": self._role}, None
        return Piece(
            delta=delta, finish_reason=choice.finish_reason or None, logprobs=choice.logprobs
        )


def _tokens(logprobs: Mapping[str, object] | None) -> list:
    return (logprobs.get("content") or []) if logprobs else []


def _wrong(delta: dict[str, object]) -> str:
    """What keeps a delta from being added to an answer; "" where nothing does."""
    if not isinstance(delta.get("content"), str | None):
        return "`content` is not a string"
    if not isinstance(delta.get("role"), str | None):
        return "`role` is not a string"
    tools = delta.get("tool_calls")
    if tools is not None and not (isinstance(tools, list) and all(map(_is_tool_call, tools))):
        return "`tool_calls` is not a list of parts of calls"
    return ""


def _is_tool_call(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    index, function = part.get("index", 0), part.get("function") or {}
    return (
        type(index) is int
        and 0 <= index < TOOL_CALLS_MAX
        and isinstance(function, dict)
        and all(isinstance(value, str | None) for value in function.values())
    )


def _wrong_logprobs(logprobs: Mapping[str, object] | None) -> str:
    if logprobs is None:
        return ""
    content = logprobs.get("content") or []
    if isinstance(content, list) and all(
        isinstance(token, dict) and type(token.get("logprob")) in (int, float) for token in content
    ):
        return ""
    return "`logprobs.content` is not a list of tokens with a `logprob` each"
