"""All misbehaviours that are played: taken from reports about real servers and their proxies.

Four kinds: odd but sound (the server's own answer must come out as it was meant), the caller's
fault (another model answers, the server keeps its good name), the pool's fault before the first
token (another answers), and after it (a stream ends with an error, a whole answer is got
elsewhere).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from load.bench.upstreams.misbehaviour import (
    CALLED,
    DONE,
    ROLE,
    STOP,
    TEXT,
    TOKENS,
    TOOLS,
    USAGE,
    WORDS,
    Cut,
    Json,
    Misbehaviour,
    Pause,
    Step,
    Steps,
    always,
    chunk,
    deltas,
    event,
    head,
    raw,
    refused,
    said,
    stream,
    whole,
)

Row = tuple[str, Steps]
PNG: Json = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        }
    ]
}
JSON_MODE: Json = {"response_format": {"type": "json_object"}}
LOGPROBS: Json = {"logprobs": True}


def odd_streams() -> Iterator[Misbehaviour]:
    """Streams that are sound in an unusual form."""
    whole_stream = ROLE + TOKENS + STOP + USAGE + DONE
    emoji = r"\ud83d", r"\ude00"
    rows: list[Row] = [
        ("plain", always(*stream(whole_stream))),
        ("no [DONE]", always(*stream(ROLE, TOKENS, STOP))),
        ("no finish reason", always(*stream(ROLE, TOKENS, DONE))),
        ("no usage", always(*stream(ROLE, TOKENS, STOP, DONE))),
        ("no role", always(*stream(TOKENS, STOP, DONE))),
        ("CR LF", always(*stream(whole_stream.replace(b"\n", b"\r\n")))),
        ("CR", always(*stream(whole_stream.replace(b"\n", b"\r")))),
        ("byte order mark", always(*stream(b"\xef\xbb\xbf" + whole_stream))),
        ("comments", always(*stream(b": ping\n\n", ROLE, TOKENS, b": ping\n\n", STOP, DONE))),
        ("empty data", always(*stream(ROLE, b"data:\n\n", TOKENS, raw(b" "), STOP, DONE))),
        ("event: ping", always(*stream(ROLE, b"event: ping\ndata: {}\n\n", TOKENS, STOP, DONE))),
        ("ping object", always(*stream(ROLE, event({"type": "ping"}), TOKENS, STOP, DONE))),
        ("null for a chunk", always(*stream(ROLE, raw(b"null"), TOKENS, STOP, DONE))),
        ("[] for a delta", always(*stream(ROLE, event(chunk([])), TOKENS, STOP, DONE))),
        ("[] for usage", always(*stream(ROLE, TOKENS, STOP, event(chunk({}, usage=[])), DONE))),
        ("byte by byte", always(*stream(*(bytes([b]) for b in whole_stream)))),
        ("half an emoji as escapes", always(*stream(ROLE, *_halves(emoji), STOP, DONE))),
        ("half an emoji as bytes", always(*stream(ROLE, *_half_bytes(), STOP, DONE))),
        ("content as parts", deltas({"content": [{"type": "text", "text": TEXT}]})),
        ("content as one part", deltas({"content": {"type": "text", "text": TEXT}})),
        ("content null first", deltas({"content": None}, {"content": TEXT})),
        ("index null", always(*stream(*_said(choice={"index": None}), STOP, DONE))),
        ("other choices between", always(*stream(ROLE, *_with_second_choice(), STOP, DONE))),
        ("filters first", always(*stream(event({"choices": [], "p": 1}), TOKENS, STOP, DONE))),
        ("usage in every chunk", always(*stream(*_said(usage={"x": 1}), STOP, DONE))),
        ("nonsense after [DONE]", always(*stream(whole_stream, b"data: nonsense\n\n"))),
        ("HTTP/1.0", always(head(200, "text/event-stream").replace(b"/1.1", b"/1.0"), whole_stream)),
        ("gzip", always(*_gzipped(whole_stream))),
        ("slow to begin", always(*stream(Pause(0.15), whole_stream))),
        ("a pause in the middle", always(*stream(ROLE, TOKENS, Pause(0.15), STOP, DONE))),
        ("whole instead of a stream", always(*whole(_completion({"content": TEXT})))),
        ("whole without a finish reason", always(*whole(_completion({"content": TEXT}, None)))),
        ("refuses stream_options", _refuses("stream_options", stream(whole_stream))),
    ]  # fmt: skip
    for name, steps in rows:
        yield Misbehaviour(name=name, steps=steps)
    yield Misbehaviour(name="refuses to stream", steps=_refuses_streams(), pool={"stream": False})
    seen = [b"-Infinity", b"null", b"NaN", b'"x"']
    for value in seen:
        yield Misbehaviour(
            name=f"logprob {value.decode()}",
            steps=always(*stream(_with_logprob(value), STOP, DONE)),
            body=LOGPROBS,
        )


def odd_messages() -> Iterator[Misbehaviour]:
    """Answers with more than text: they come out whole, whatever their form."""
    details = [{"type": "reasoning.text", "index": 0, "format": "v1", "text": "abc"}]
    cited = [{"type": "url_citation", "url_citation": {"url": u, "title": u}} for u in "ab"]
    one = [_call("x", "f", "{}")]
    two = [_call("x", "f", "{}"), _call("y", "g", "[]")]
    rows: list[tuple[str, Json, Steps]] = [
        ("function_call in parts", {"function_call": {"name": "f", "arguments": "{}"}},
         deltas({"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}})),
        ("tool call from index 1", {"tool_calls": one},
         deltas(_part(1, "x", "f", "{"), _part(1, None, "", "}"), end=CALLED)),
        ("two calls of index 0", {"tool_calls": two},
         deltas(_part(0, "x", "f", "{}"), _part(0, "y", "g", "[]"), end=CALLED)),
        ("calls without an index", {"tool_calls": two},
         deltas(_part(None, "x", "f", "{}"), _part(None, "y", "g", "[]"), end=CALLED)),
        ("name in every chunk", {"tool_calls": one},
         deltas(_part(0, "x", "f", "{"), _part(0, "x", "f", "}"), end=CALLED)),
        ("call without finish reason", {"tool_calls": one},
         always(*stream(event(chunk(_part(0, "x", "f", "{}"))), DONE))),
        ("arguments as an object", {"tool_calls": one},
         deltas({"tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": {}}}]}, end=CALLED)),
        ("custom tool", {"tool_calls": [{"id": "x", "type": "custom", "custom": {"name": "t", "input": "ab"}}]},
         deltas({"tool_calls": [{"index": 0, "id": "x", "type": "custom", "custom": {"name": "t", "input": "a"}}]},
                {"tool_calls": [{"index": 0, "custom": {"input": "b"}}]}, end=CALLED)),
        ("audio", {"audio": {"id": "a", "data": "QQQg", "transcript": "hey"}},
         deltas({"audio": {"id": "a", "data": "QQ", "transcript": "he"}}, {"audio": {"data": "Qg", "transcript": "y"}})),
        ("reasoning details", {"reasoning_details": details},
         deltas(*({"reasoning_details": [{**details[0], "text": c}]} for c in "abc"))),
        ("annotations", {"content": TEXT, "annotations": cited},
         deltas({"content": TEXT}, *({"annotations": [c]} for c in cited))),
        ("reasoning content", {"content": TEXT, "reasoning_content": "hm"},
         deltas({"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": TEXT})),
        ("a refusal of the model", {"refusal": "No."}, deltas({"refusal": "N"}, {"refusal": "o."})),
        ("whole with tool calls", {"tool_calls": one}, always(*whole(_completion({"content": None, "tool_calls": one}, "tool_calls")))),
    ]  # fmt: skip
    for name, message, steps in rows:
        yield Misbehaviour(name=name, steps=steps, message=message, body=TOOLS)


def callers_faults() -> Iterator[Misbehaviour]:
    """What this model can't do, or nobody may ask: another model is asked, nobody is ejected."""
    long = "This model's maximum context length is 8 tokens. However, you requested 9 tokens"
    code_400 = event({"error": {"code": 400, "message": "tools are not supported"}})
    rows: list[tuple[str, Json, Steps]] = [
        ("400 tools", TOOLS, refused(400, "tools are not supported by this model")),
        ("400 image", PNG, refused(400, "image_url is not supported")),
        ("400 too long", {}, refused(400, long, code="context_length_exceeded")),
        ("400 response_format", JSON_MODE, refused(400, "response_format is not supported")),
        ("400 logprobs", LOGPROBS, refused(400, "logprobs is not supported")),
        ("400 without a word", TOOLS, always(head(400, "text/plain"))),
        ("400 FastAPI", TOOLS, lambda _: whole({"detail": [{"loc": ["body"], "msg": "no tools"}]}, 400)),
        ("422", TOOLS, refused(422, "tools: extra fields not permitted")),
        ("413", PNG, refused(413, "the image is too large")),
        ("415", PNG, refused(415, "unsupported media type image")),
        ("451", {}, refused(451, "not available in your country")),
        ("403 moderation", {}, refused(403, "your input was flagged by moderation")),
        ("400 content filter", {}, refused(400, "filtered", code="content_filter")),
        ("404 image", PNG, refused(404, "the image could not be fetched")),
        ("error 400 in a stream", TOOLS, always(*stream(code_400))),
        ("error 400 in a stream, as text", TOOLS,
         always(*stream(event({"error": {"code": "400", "message": "tools"}})))),
        ("error 400 instead of a stream", TOOLS,
         always(*whole({"error": {"code": 400, "message": "tools are not supported"}}))),
        ("invalid request in a stream", TOOLS,
         always(*stream(event({"type": "error", "error": {"type": "invalid_request_error", "message": "tools"}})))),
    ]  # fmt: skip
    for name, body, steps in rows:
        yield Misbehaviour(name=name, steps=steps, body=body, fault="caller", answerer="other")


def pools_faults() -> Iterator[Misbehaviour]:
    """Before the first token: another pool answers, and callers see nothing of it."""
    later = "Retry-After: 37\r\n"
    rows: list[Row] = [
        ("429", refused(429, "slow down", extra=later)),
        ("429 as a date", refused(429, "x", extra="Date: Wed, 21 Oct 2026 07:27:00 GMT\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n")),
        ("429 as a date long past", refused(429, "x", extra="Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n")),
        ("429 without a word", always(head(429, "text/plain"))),
        ("503", refused(503, "loading the model", extra=later)),
        ("529", refused(529, "Overloaded", type="overloaded_error")),
        ("429 in a stream", always(*stream(event({"error": {"code": 429, "message": "x"}})))),
        ("401", refused(401, "no such key")),
        ("402", refused(402, "no credits")),
        ("403", refused(403, "forbidden")),
        ("404", refused(404, "no such path")),
        ("404 model", refused(404, "the model does not exist", code="model_not_found")),
        ("400 key", refused(400, "API key not valid")),
        ("400 no credit", refused(400, "Your credit balance is too low", type="invalid_request_error")),
        ("410", refused(410, "gone")),
        ("302", always(head(302, "text/html", "Location: /elsewhere\r\n"))),
        ("408", refused(408, "timeout")),
        ("500", refused(500, "boom")),
        ("500 HTML", always(head(500, "text/html"), b"<html>boom</html>")),
        ("502", refused(502, "bad gateway")),
        ("504", refused(504, "timeout")),
        ("status 999", always(head(999, "text/plain"))),
        ("not HTTP", always(b"SSH-2.0-OpenSSH_9.2\r\n")),
        ("closed at once", always()),
        ("reset at once", always(Cut())),
        ("half a head", always(b"HTTP/1.1 200 OK\r\nContent-")),
        ("empty body", always(*stream())),
        ("204", always(head(204, "text/plain"))),
        ("an encoding nobody asked for", always(head(200, "text/event-stream", "Content-Encoding: br\r\n"), b"xx")),
        ("an HTML page", always(head(200, "text/html"), b"<html>hello</html>")),
        ("only pings", always(*stream(b": ping\n\n" * 3))),
        ("[DONE] alone", always(*stream(DONE))),
        ("a role and no more", always(*stream(ROLE))),
        ("nonsense", always(*stream(raw(b"nonsense")))),
        ("half an object", always(head(200, "application/json"), b'{"choices": [{"mess')),
        ("an object of something else", always(*whole({"hello": "world"}))),
        ("error in a stream", always(*stream(ROLE, event({"error": {"message": "CUDA"}})))),
        ("a line without end", always(*stream(b"data: " + b"x" * (2 << 20)))),
    ]  # fmt: skip
    for name, steps in rows:
        yield Misbehaviour(name=name, steps=steps, fault="pool", answerer="other")


def breaks() -> Iterator[Misbehaviour]:
    """After the first token."""
    begun = (ROLE, said(WORDS[0]))
    rows: list[Row] = [
        ("cut in the middle", always(*stream(*begun))),
        ("reset in the middle", always(*stream(*begun, Pause(0.02), Cut()))),
        ("an error in the middle", always(*stream(*begun, event({"error": {"message": "OOM"}})))),
        ("nonsense in the middle", always(*stream(*begun, raw(b"nonsense")))),
    ]
    for name, steps in rows:
        yield Misbehaviour(name=name, steps=steps, fault="pool", answerer="other", breaks_off=True)
    yield Misbehaviour(
        name="a pause that is too long",
        steps=always(*stream(*begun, Pause(1.0), said(WORDS[1]), STOP, DONE)),
        fault="pool",
        answerer="other",
        breaks_off=True,
        pool={"idle_timeout_s": 0.2},
    )


def all_misbehaviours() -> tuple[Misbehaviour, ...]:
    """Every one, in a fixed order, each with a name of its own."""
    found = (*odd_streams(), *odd_messages(), *callers_faults(), *pools_faults(), *breaks())
    assert len({one.name for one in found}) == len(found)
    return found


# --- parts


def _said(**more: object) -> list[bytes]:
    return [said(word, **more) for word in WORDS]


def _halves(escapes: tuple[str, str]) -> list[bytes]:
    """The text with its emoji in two chunks, a surrogate each."""
    before = [said(word) for word in WORDS[:3]] + [said(" ")]
    form = '{{"choices":[{{"index":0,"delta":{{"content":"{}"}}}}]}}'
    return before + [raw(form.format(half).encode()) for half in escapes]


def _half_bytes() -> list[bytes]:
    """The text with its emoji's bytes in two chunks."""
    before = [said(word) for word in WORDS[:3]] + [said(" ")]
    emoji = "😀".encode()
    form = b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}'
    return before + [raw(form % half) for half in (emoji[:2], emoji[2:])]


def _with_second_choice() -> list[bytes]:
    second = {"index": 1, "delta": {"content": "no"}, "finish_reason": None}
    between = event({"choices": [second]})
    return [part for word in WORDS for part in (said(word), between)]


def _gzipped(body: bytes) -> tuple[Step, ...]:
    return head(200, "text/event-stream", "Content-Encoding: gzip\r\n"), gzip.compress(body)


def _completion(message: Json, finish: str | None = "stop") -> dict[str, object]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "choices": [choice]}


def _refuses(field: str, otherwise: tuple[Step, ...]) -> Steps:
    """Answers 400 where the field is asked for."""
    wrong = whole({"error": {"message": f"unknown field {field}"}}, 400)
    return lambda body: wrong if field in body else otherwise


def _refuses_streams() -> Steps:
    answer = whole(_completion({"content": TEXT}))
    wrong = whole({"error": {"message": "stream must be false"}}, 400)
    return lambda body: wrong if body.get("stream") else answer


def _with_logprob(value: bytes) -> bytes:
    form = '{"choices":[{"index":0,"delta":{"content":%s},"logprobs":{"content":[{"token":"a","logprob":%s}]}}]}'
    return raw((form % (json.dumps(TEXT), value.decode())).encode())


def _call(call_id: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _part(index: int | None, call_id: str | None, name: str, arguments: str) -> dict[str, object]:
    """A delta with a part of one tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    call: dict[str, object] = {"function": function}
    call |= {"index": index} if index is not None else {}
    call |= {"id": call_id, "type": "function"} if call_id else {}
    return {"tool_calls": [call]}
