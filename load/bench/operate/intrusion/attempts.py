"""The written list of ways to get in without the right: each must be refused.

    no token, an unknown, mangled, expired one, of another scope    every method, every path
    paths, headers and framing that a check might read differently than the router does

Forged tickets and others' names are in `forgeries`, what is less than TLS in `weak_tls`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from load.bench.operate.intrusion.attack import CHAT, OPERATORS, Attack, Attempt
from load.bench.operate.intrusion.door import Reply, get
from serve.access.tokens import digest_of, new_token
from serve.openai_api.app import SCOPES


def attempts(on: Attack) -> Iterator[Attempt]:
    """All of them."""
    yield from _without_right(on)
    yield from _mangled_tokens(on)
    yield from _odd_paths(on)
    yield from _odd_http(on)


def _without_right(on: Attack) -> Iterator[Attempt]:
    """No token, one of another scope, an expired one."""
    scopes = {
        "SendFeedback": "feedback",
        "TraceFeedback": "feedback",
        "Explain": "read",
        "Dispatch": "dispatch",
    }
    for method in on.messages():
        yield Attempt(f"{method} without a token", partial(on.grpc, method, ()))
        yield Attempt(f"{method}, expired", partial(on.grpc, method, on.bearer("expired")))
        right = "admin" if method in OPERATORS else scopes.get(method, "route")
        for scope in ("route", "dispatch", "feedback", "read"):
            if scope != right:
                yield Attempt(
                    f"{method} with the scope {scope}",
                    partial(on.grpc, method, on.bearer(scope)),
                )
    yield from _operating(on)
    paths = {
        "/v1/models": b"",
        "/v1/chat/completions": CHAT,
        "/v1/feedback": on.outcome_json(),
        "/internal/route": b"{}",
        "/route": b"{}",
        "/outcome": b"{}",
        "/feedback": b"{}",
        "/dashboard/now.json": b"",
        "/dashboard/decisions.json": b"",
        "/dashboard/decision.json?ticket=00": b"",
    }
    rights = {path: SCOPES.get(path, "read") for path in paths}
    for path, body in paths.items():
        yield Attempt(f"{path} without a token", partial(on.http, path, (), body))
        for name in ("expired", "route", "dispatch", "feedback", "read"):
            if name != rights[path]:
                yield Attempt(
                    f"{path} with the token {name}",
                    partial(on.http, path, on.bearer(name), body),
                )


def _operating(on: Attack) -> Iterator[Attempt]:
    """Changing the site itself: at both listeners, with rights that look like the one it takes."""
    rights = ("all", "other", "admin of a tenant", "operator of old")
    for method in OPERATORS:
        for name in rights:
            shown = on.bearer(name)
            for place, port in zip(("router", "dispatcher"), on.at.ports, strict=False):
                yield Attempt(
                    f"{method} at the {place} with the token {name}",
                    partial(on.grpc, method, shown, port=port),
                )
        both = [*on.bearer("all"), ("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=[::1]")]
        yield Attempt(f"{method}, forwarded from loopback", partial(on.grpc, method, both))
        scoped = [*on.bearer("read"), ("scope", "admin"), ("x-scopes", "admin")]
        yield Attempt(f"{method}, its scope in a header", partial(on.grpc, method, scoped))
        twice = [*on.bearer("operator of old"), *on.bearer("all")]
        yield Attempt(f"{method} with two tokens", partial(on.grpc, method, twice))
    operator = on.bearer("operator")
    for method in ("Route", "SendFeedback", "Explain", "Dispatch"):
        yield Attempt(f"{method} with an operator's token", partial(on.grpc, method, operator))
    message = OPERATORS["Change"][1]
    for path in ("/fairlead.v1.Admin/change", "/fairlead.v1.Admin/Change/", "/Admin/Change"):
        tried = partial(on.door.grpc, on.at.ports[0], path, message, operator)
        yield Attempt(f"gRPC path {path}", tried)


def _mangled_tokens(on: Attack) -> Iterator[Attempt]:
    """What looks like a token, or stands in its place."""
    good = on.at.tokens["all"]
    values = {
        "empty": "",
        "a scheme alone": "Bearer",
        "a scheme and a blank": "Bearer ",
        "another scheme": f"Basic {good}",
        "no scheme": good,
        "an unknown token": f"Bearer {new_token()}",
        "its digest": f"Bearer {digest_of(good.encode())}",
        "one short": f"Bearer {good[:-1]}",
        "one too many": f"Bearer {good}A",
        "in capitals": f"Bearer {good.upper()}",
        "with a comma": f"Bearer ,{good}",
        "quoted": f'Bearer "{good}"',
        "twice": f"Bearer {good}, Bearer {good}",
        "very long": "Bearer " + "A" * 7000,
        "a pattern": "Bearer fl_*",
        "null": "Bearer null",
    }
    for name, value in values.items():
        shown = [("authorization", value)]
        yield Attempt(f"gRPC, token: {name}", partial(on.grpc, "Route", shown))
        yield Attempt(f"HTTP, token: {name}", partial(on.http, "/v1/models", shown))
    yield Attempt(
        "the whole site with a tenant's token",
        partial(on.http, "/dashboard/now.json", on.bearer("read")),
    )
    for header in ("x-api-key", "api-key", "cookie", "proxy-authorization", "x-authorization"):
        shown = [(header, f"Bearer {good}")]
        yield Attempt(f"gRPC, token in {header}", partial(on.grpc, "Route", shown))
        yield Attempt(f"HTTP, token in {header}", partial(on.http, "/v1/models", shown))
    yield Attempt("token in the address", partial(on.http, f"/v1/models?access_token={good}"))


def _odd_paths(on: Attack) -> Iterator[Attempt]:
    """Paths that a check might take for another one than the router does."""
    message = on.messages()["Route"][1]
    for path in (
        "/fairlead.v1.Router/Route/",
        "//fairlead.v1.Router/Route",
        "/fairlead.v1.router/Route",
        "/fairlead.v1.Router/route",
        "/fairlead.v1.Router/Route?",
        "/fairlead.v1.Router/Route;",
        "/fairlead.v1.Router/%52oute",
        "/fairlead.v1.Router/../fairlead.v1.Router/Route",
        "/grpc.health.v1.Health/../../fairlead.v1.Router/Route",
        "/Router/Route",
        "/fairlead.v1.Admin/Restart",
    ):
        yield Attempt(f"gRPC path {path}", partial(on.door.grpc, on.at.ports[0], path, message))
    for path in (
        "/v1/models/",
        "//v1/models",
        "/V1/models",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health;/v1/models",
        "/health%2f..%2fv1/models",
        "/v1/./models",
        "/v1/models%00",
        "/v1/models#/health",
        "http://localhost/v1/models",
        "/v1/models?path=/health",
        "*",
    ):
        yield Attempt(f"HTTP path {path}", partial(on.http, path))


def _odd_http(on: Attack) -> Iterator[Attempt]:
    """Headers and framing that proxies and servers disagree about."""
    for header, value in (
        ("x-original-url", "/health"),
        ("x-rewrite-url", "/health"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-prefix", "/health"),
        ("forwarded", "for=127.0.0.1"),
        ("x-http-method-override", "OPTIONS"),
        ("upgrade", "h2c"),
        ("host", "127.0.0.1"),
        ("fairlead.tenant", "acme"),
    ):
        shown = [(header, value)]
        yield Attempt(f"HTTP, {header}: {value}", partial(on.http, "/v1/models", shown))
    for method in ("HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "get"):
        yield Attempt(
            f"HTTP method {method}",
            partial(on.door.http, on.at.ports[2], get("/v1/models", method=method)),
        )
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    framings = {
        "lengths that differ": b"content-length: 4\r\ncontent-length: %d" % len(smuggled),
        "length and chunks": b"content-length: 4\r\ntransfer-encoding: chunked",
        "chunks, misspelt": b"transfer-encoding: xchunked",
    }
    for name, framing in framings.items():
        request = b"POST /health HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n" + smuggled
        yield Attempt(
            f"a request within another one: {name}",
            partial(_smuggled, on, request),
        )


async def _smuggled(on: Attack, request: bytes) -> Reply:
    """Got in where the inner request was answered, whatever the outer one got."""
    found = await on.door.http(on.at.ports[2], request)
    return Reply("OK", found.body) if b'"list"' in found.body else Reply(f"refused {found.code}")
