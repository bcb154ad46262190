"""One event of a chat completion's stream as a `Chunk`: strict where it counts, lenient elsewhere.

    data ──read_chunk──▶ Chunk(choice's delta, finish reason, log-probabilities, usage, error, …)

Only what can't be passed on without loss is refused. An event that carries nothing (empty, `null`,
a ping) is no chunk. Values of an odd form are replaced: `-Infinity` as a log-probability is
OpenAI's -9999, a text in parts is joined, arguments given as an object are written as JSON, half an
emoji waits for its other half, calls of tools are numbered (`tool_calls`). Fields beside the known
ones are kept and passed on.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from infra.endpoints.tool_calls import ToolCalls
from serve.errors import AnswerGarbled

# More calls of tools than any model makes at once; an index beyond it is no call's.
TOOL_CALLS_MAX = 1024
LOGPROB_MIN = -9999.0  # what OpenAI gives for a token that was all but impossible
KNOWN = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})
KNOWN_OF_CHOICE = frozenset({"index", "delta", "message", "finish_reason", "logprobs"})


@dataclass(slots=True, kw_only=True)
class Chunk:
    """What one event carries of the first choice, and beside it."""

    has_choice: bool = False
    delta: dict[str, object] = field(default_factory=dict)
    is_whole: bool = False  # it came as `message`: the answer is not streamed
    finish_reason: str | None = None
    logprobs: dict[str, object] | None = None
    choice_extra: dict[str, object] = field(default_factory=dict)  # e.g. `stop_reason`
    usage: Mapping[str, object] | None = None
    error: object = None
    extra: dict[str, object] = field(default_factory=dict)  # e.g. `system_fingerprint`


class ChunkReader:
    """Reads the events of one answer; remembers halves of characters between them."""

    def __init__(self, where: str) -> None:
        """`where` names the sender in errors."""
        self._where = where
        self._halves: dict[str, str] = {}  # by field: a high surrogate without its low one
        self._bytes: dict[str, codecs.IncrementalDecoder] = {}  # by field: bytes of a character
        self._calls = ToolCalls()

    def read(self, data: bytes) -> Chunk | None:
        """The chunk; None where the event carries nothing. Raises AnswerGarbled."""
        found = self._decoded(data)
        if not isinstance(found, dict) or not found:
            return None
        chunk = Chunk(error=_error_of(found), usage=_object(found.get("usage")))
        chunk.extra = {k: v for k, v in found.items() if k not in KNOWN and v is not None}
        choices = found.get("choices")
        first = next(filter(_is_first, choices if isinstance(choices, list) else ()), None)
        if first is not None:
            self._read_choice(chunk, first)
        elif chunk.extra.get("type") == "ping":
            return None
        return chunk

    def _decoded(self, data: bytes) -> object:
        if not data.strip():
            return None
        try:
            return msgspec.json.decode(data)
        except (ValueError, RecursionError):
            pass
        try:  # what Python reads beside: NaN, halves of characters, bytes that are no UTF-8
            return json.loads(data.decode(errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise self._garbled(f"not a chunk of a chat completion: {error}") from None

    def _read_choice(self, chunk: Chunk, choice: Mapping[str, object]) -> None:
        chunk.has_choice = True
        message, delta = choice.get("message"), choice.get("delta")
        chunk.is_whole = bool(message) and not delta
        chunk.delta = self._delta(message if chunk.is_whole else delta)
        reason = choice.get("finish_reason")
        chunk.finish_reason = (reason if isinstance(reason, str) else "stop") if reason else None
        chunk.logprobs = _logprobs(choice.get("logprobs"))
        extra = {k: v for k, v in choice.items() if k not in KNOWN_OF_CHOICE and v is not None}
        chunk.choice_extra = _clean(extra)

    def _delta(self, delta: object) -> dict[str, object]:
        if not delta:
            return {}
        if not isinstance(delta, dict):
            raise self._garbled("`delta` is not an object")
        return {name: self._value(name, value) for name, value in delta.items() if name}

    def _value(self, name: str, value: object) -> object:
        if name == "content" and not isinstance(value, str | None):
            value = self._text(value)
        elif name == "role" and not isinstance(value, str | None):
            return None
        elif name == "tool_calls":
            return self._tool_calls(value)
        return self._mended(name, value) if isinstance(value, str) else _clean(value)

    def _text(self, content: object) -> object:
        """A text that came as a number, or in parts; parts that are no texts stay parts."""
        if isinstance(content, list):
            texts = [_text_of(part) for part in content]
            return "".join(map(str, texts)) if None not in texts else content
        if isinstance(content, dict):
            text = _text_of(content)  # of a part that is in no list
            if text is None:
                raise self._garbled("`content` is an object")
            return text
        return str(content)

    def _tool_calls(self, calls: object) -> list[dict[str, object]] | None:
        if not calls:
            return None
        if not isinstance(calls, list):
            raise self._garbled("`tool_calls` is not a list of parts of calls")
        return [self._tool_call(call) for call in calls]

    def _tool_call(self, call: object) -> dict[str, object]:
        if not isinstance(call, dict):
            raise self._garbled("a part of a tool call is not an object")
        read = {name: _clean(value) for name, value in call.items()}
        if "index" in read:
            read["index"] = self._index(read["index"])
        if (function := read.get("function")) is not None:
            if not isinstance(function, dict):
                raise self._garbled("`function` of a tool call is not an object")
            read["function"] = {name: _as_text(value) for name, value in function.items()}
        if len(self._calls) > TOOL_CALLS_MAX:
            raise self._garbled(f"there are more than {TOOL_CALLS_MAX} tool calls")
        return self._calls.numbered(read)

    def _index(self, index: object) -> int | None:
        found = index if isinstance(index, int) else None
        if found is None and str(index).isdecimal():
            found = int(str(index))
        if found is not None and found >= TOOL_CALLS_MAX:
            raise self._garbled(f"a tool call's index is {found}, beyond {TOOL_CALLS_MAX - 1}")
        return None if found is None or found < 0 else found

    def _mended(self, name: str, text: str) -> str:
        """The text with the half of a character before it, without the half at its end."""
        if text.isascii() and name not in self._halves and name not in self._bytes:
            return text
        if name in self._bytes or _has_raw_bytes(text):
            decoder = self._bytes.setdefault(name, _utf8("replace"))
            return decoder.decode(text.encode(errors="surrogateescape"))
        text = self._halves.pop(name, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._halves[name] = text[:-1], text[-1]
        return _whole(text)

    def _garbled(self, problem: str) -> AnswerGarbled:
        return AnswerGarbled(self._where, problem)


_utf8 = codecs.getincrementaldecoder("utf-8")


def _is_first(choice: object) -> bool:
    return isinstance(choice, dict) and not choice.get("index")


def _error_of(found: Mapping[str, object]) -> object:
    """What an error object says, in whichever of its forms; None where there is none."""
    if found.get("error"):
        return found["error"]
    return found if found.get("object") == "error" or found.get("type") == "error" else None


def _object(value: object) -> dict[str, object] | None:
    return value if isinstance(value, dict) and value else None


def _text_of(part: object) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else None


def _as_text(value: object) -> str | None:
    """A function's name or arguments: texts, or what some servers give as an object."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _logprobs(logprobs: object) -> dict[str, object] | None:
    if not isinstance(logprobs, dict) or not logprobs:
        return None
    return {name: _tokens(value) for name, value in logprobs.items()}


def _tokens(tokens: object) -> list[dict[str, object]] | None:
    if not isinstance(tokens, list):
        return None
    return [_token(one) for one in tokens if isinstance(one, dict)]


def _token(token: dict[str, object]) -> dict[str, object]:
    """A token, the log-probabilities in it numbers that JSON can say, or null."""
    read = {name: _clean(value) for name, value in token.items()}
    value = token.get("logprob")
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        read["logprob"] = None
    else:
        read["logprob"] = max(value, LOGPROB_MIN) if value < math.inf else 0.0
    others = token.get("top_logprobs")
    if others is not None:
        read["top_logprobs"] = _tokens(others)
    return read


def _clean(value: Any) -> Any:
    """The value, its strings without halves of characters."""
    if isinstance(value, str):
        return value if value.isascii() else _whole(value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(one) for name, one in value.items()}
    return value


def _whole(text: str) -> str:
    """Halves of characters joined where they meet, else replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _has_raw_bytes(text: str) -> bool:
    """Whether bytes that are no UTF-8 were kept in it, as `surrogateescape` does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return False  # halves of characters instead
        return True
    return False
