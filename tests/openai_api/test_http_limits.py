"""What one HTTP client can take of a dispatcher: bounded, and refused before it costs anything."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_api import PATIENCE_S, Api, api, ended, piece, routed
from waiting import until

from serve.errors import InvalidRequest
from serve.openai_api.app import HttpOptions
from serve.openai_api.body import BodyOptions, check_shape
from serve.openai_api.http_listener import HttpListenerOptions
from serve.openai_api.http_protocol import ConnectionOptions

KEY = "sesame"
# Time runs out only where a test is about that: a client of ours may be kept waiting, too.
LIMITS = ConnectionOptions(
    head_bytes_max=4096, head_s_max=PATIENCE_S, connections_max=20, stalled_s_max=PATIENCE_S
)
BODY = BodyOptions(
    bytes_max=200_000, bytes_max_together=300_000, s_max=PATIENCE_S, values_max=1000, depth_max=50
)
SHORT_S = 0.3
ASKED = b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'


@contextlib.contextmanager
def bounded_api(
    limits: ConnectionOptions = LIMITS, body: BodyOptions = BODY, keys: tuple[str, ...] = ()
) -> Iterator[Api]:
    listener = HttpListenerOptions(port=0, grace_s=5.0, connection=limits)
    with api(HttpOptions(body=body, api_keys=keys), listener) as up:
        yield up


def head(length: int, *more: str, path: str = "/v1/chat/completions") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: x", f"content-length: {length}", *more)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def spoken(up: Api, *parts: bytes, endless: bytes = b"") -> bytes:
    """All that comes back on one connection until the server closes it."""
    with socket.create_connection(("127.0.0.1", up.listener.port), timeout=PATIENCE_S) as raw:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                raw.sendall(part)
            raw.settimeout(0.001)
            while endless:
                with contextlib.suppress(TimeoutError):
                    raw.send(endless)
                with contextlib.suppress(TimeoutError):
                    return raw.recv(65_536)
            raw.settimeout(PATIENCE_S)
        raw.settimeout(PATIENCE_S)
        got = b""
        with contextlib.suppress(ConnectionError):
            while part := raw.recv(65_536):
                got += part
        return got


HEAD = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "begin, endless",
    [
        (HEAD + b"x-long: ", b"a" * 100),
        (HEAD, b"x-many: a\r\n"),
        (b"GET /", b"a" * 100),
        (HEAD + b"a", b"a" * 100),
        (HEAD + b"x-whole: " + b"a" * 5000 + b"\r\n\r\n", b""),
        (HEAD + b"x-many: a\r\n" * 1000 + b"\r\n", b""),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b""),
    ],
)
def test_head_without_end_is_refused_at_its_limit(begin, endless):
    """
    An address, a header's name or value, many headers; in pieces and whole.
    """
    with bounded_api(ConnectionOptions(head_bytes_max=4096)) as up:
        got = spoken(up, begin, endless=endless)

    if got or not endless:  # a client that goes on sending may find the connection reset
        assert got.startswith(b"HTTP/1.1 431 "), got
        assert b"connection: close" in got
        assert b"4096 bytes" in got


@pytest.mark.parametrize(
    "begin, endless",
    [
        (CHUNKED + b"1;", b"ext=aaaaaaaaaaaaa;"),
        (CHUNKED + b"0\r\n", b"x-trailer: a\r\n"),
        (CHUNKED + b"0\r\nx-trailer: ", b"a" * 100),
    ],
)
def test_what_surrounds_a_body_has_an_end_too(begin, endless):
    """
    Chunks' extensions and trailers are no part of the body that the app counts.
    """
    with bounded_api(body=BodyOptions(s_max=PATIENCE_S)) as up:
        got = spoken(up, begin, endless=endless)

    assert not got or got.split()[1] in (b"431", b"400"), got


@pytest.mark.parametrize("sent", [b"", HEAD, b"GET"])
def test_head_that_does_not_come_is_not_waited_for(sent):
    with bounded_api(replace(LIMITS, head_s_max=SHORT_S)) as up:
        assert spoken(up, sent).startswith(b"HTTP/1.1 408 ")


def test_body_that_does_not_come_is_not_waited_for():
    with bounded_api(body=replace(BODY, s_max=SHORT_S)) as up:
        got = spoken(up, head(len(ASKED)), ASKED[:10])

    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in got


def test_connection_that_is_used_again_is_not_cut():
    """
    The time for a head runs from the beginning of each.
    """
    with bounded_api() as up, httpx2.Client() as http:
        for _ in range(3):
            assert http.get(f"{up.root}/health").status_code == 200
            (connection,) = up.listener._server.server_state.connections
            assert connection._head_timer is None  # there is nothing that could cut it


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
@pytest.mark.parametrize(
    "body, more, status, named",
    [
        (b"{}", ["content-encoding: gzip"], 415, "gzip"),
        (gzip.compress(b"[" * 5_800_000), ["content-encoding: gzip"], 415, "gzip"),
        (b"{}", ["content-encoding: br, gzip"], 415, "br"),
        (b'{"a": [' + b"[]," * 1000 + b"[]]}", [], 400, "values"),
        (b'{"a": [' + b"1," * 1000 + b"1]}", [], 400, "values"),
        (b'{"a": {' + b'"":0,' * 1000 + b'"":0}}', [], 400, "values"),
        (b'{"outcomes": [' + b'{"ticket":""},' * 1000 + b"{}]}", [], 400, "values"),
        (b"[" * 60 + b"]" * 60, [], 400, "deep"),
        (b"[" * 60, [], 400, "deep"),
        (b'{"a":' * 60, [], 400, "deep"),
        (b'{"\\"":"[[[[' + b"[" * 60, [], 400, "JSON"),
    ],
)
def test_body_that_is_dear_to_read_is_refused_by_its_shape(path, body, more, status, named):
    """
    Each with the limit it broke; the next request is answered on the same dispatcher.
    """
    with bounded_api() as up:
        got = spoken(up, head(len(body), "connection: close", *more, path=path), body)
        assert httpx2.get(f"{up.root}/health").status_code == 200

    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got
    assert named.encode() in got


def test_too_long_a_body_is_refused_before_any_of_it_has_come():
    with bounded_api() as up:
        got = spoken(up, head(BODY.bytes_max + 1))

    assert got.startswith(b"HTTP/1.1 413 ")
    assert b"dispatch.body_bytes_max" in got


@pytest.mark.parametrize("more", [[], ["content-encoding: gzip"], ["expect: 100-continue"]])
def test_key_is_checked_before_a_body_is_received(more):
    """
    Not a byte of it needs to come.
    """
    with bounded_api(keys=(KEY,)) as up:
        got = spoken(up, head(BODY.bytes_max + 1, *more))

    assert got.startswith(b"HTTP/1.1 401 ")


def test_bodies_together_are_bounded():
    """
    What one caller holds back does not fill memory; when it is gone, there is room again.
    """
    with bounded_api() as up:
        with socket.create_connection(("127.0.0.1", up.listener.port)) as slow:
            slow.sendall(head(200_000) + b" " * 190_000)
            until(lambda: _refused_at(up, 150_000) == 429)
        until(lambda: _refused_at(up, 150_000) == 400)


def _refused_at(up: Api, n_bytes: int) -> int:
    return httpx2.post(f"{up.root}/v1/chat/completions", content=b" " * n_bytes).status_code


def test_connections_are_bounded():
    limits = ConnectionOptions(connections_max=3)
    with bounded_api(limits) as up, contextlib.ExitStack() as open_ones:
        for _ in range(3):
            raw = socket.create_connection(("127.0.0.1", up.listener.port))
            open_ones.enter_context(raw).sendall(b"GET")
        assert spoken(up).startswith(b"HTTP/1.1 503 ")
        open_ones.close()
        until(lambda: spoken(up, HEAD + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 "))


def test_reader_that_stalls_is_ended():
    """
    It holds a slot of a pool: the answer is closed, the connection dropped.
    """
    with bounded_api(replace(LIMITS, stalled_s_max=SHORT_S)) as up:
        up.dispatcher.play(routed(), *[piece("x" * 65_536)] * 2000, ended())
        with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
            raw.sendall(head(len(ASKED)) + ASKED)
            assert up.dispatcher.closed.wait(PATIENCE_S)
            until(lambda: not up.listener._server.server_state.connections)


def test_reader_that_is_slow_is_not_ended():
    """
    The limit is on a pause, not on an answer.
    """
    with bounded_api() as up:
        up.dispatcher.play(routed(), *[piece("x" * 65_536)] * 200, ended())
        with httpx2.stream("POST", f"{up.root}/v1/chat/completions", content=ASKED) as got:
            n_bytes = sum(len(part) for part in got.iter_bytes())
    assert n_bytes > 200 * 65_536


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
AWKWARD = st.text(alphabet='\\"{}[],:é')


def n_values(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + n_values(inner) for inner in value.values())
    return 1 + sum(map(n_values, value)) if isinstance(value, list) else 1


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, list | dict) else 0


def accepted(value: object, check: Callable[[bytes], None]) -> bool:
    try:
        check(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except InvalidRequest:
        return False
    return True


@settings(max_examples=60)
@given(st.lists(JSON | AWKWARD | st.lists(AWKWARD)) | st.dictionaries(AWKWARD, JSON | AWKWARD))
def test_shape_is_known_without_parsing(value):
    """
    The number of values is never said too small, nor twice too large; the depth is exact. What
    stands within texts is text.
    """
    n, deep = n_values(value), depth(value)

    assert accepted(value, lambda content: check_shape(content, 2 * n, deep))
    assert n == 1 or not accepted(value, lambda content: check_shape(content, n // 2 - 1, deep))
    assert not accepted(value, lambda content: check_shape(content, 2 * n, deep - 1))
