"""Who shows no valid token gets nothing, and a token's tenant is what counts, whatever is said."""

from __future__ import annotations

import json

import grpc
import httpx2
import pytest
from router_bench import NOON_MS, PATIENCE_S, router
from scripted_api import HELLO, NOW_S, api
from typer.testing import CliRunner

from fairlead import Client, Request
from fairlead.command_line import app
from fairlead.errors import NotAllowed
from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from serve.access.tokens import SCOPES, Access, Token, digest_of, new_token
from serve.errors import AccessDenied, Unauthenticated
from serve.grpc_api.guard import SCOPES as METHODS
from serve.grpc_api.guard import impose
from serve.grpc_api.listener import SERVICES
from serve.proto.fairlead.v1 import dispatch_pb2
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.errors import OptionRefused

ACME, READER, OLD, ANY = "fl_acme", "fl_reader", "fl_old", "fl_any"


def token(secret: str, **fields: object) -> Token:
    return Token(name=secret, sha256=digest_of(secret.encode()), **fields)


TOKENS = [
    token(ACME, tenant="acme", scopes=("route", "feedback", "dispatch")),
    token(READER, scopes=("read",)),
    token(OLD, scopes=SCOPES, expires_at_unix_s=min(NOON_MS / 1000, NOW_S)),
    token(ANY, scopes=("route", "read")),
]
REFUSED = {  # what is shown, none of which is a valid token
    "nothing": None,
    "empty": "",
    "scheme alone": "Bearer",
    "scheme and space": "Bearer ",
    "no scheme": ACME,
    "another scheme": f"Basic {ACME}",
    "unknown": "Bearer fl_nobody",
    "one letter short": f"Bearer {ACME[:-1]}",
    "one letter more": f"Bearer {ACME}x",
    "upper case": f"Bearer {ACME.upper()}",
    "its digest": f"Bearer {digest_of(ACME.encode())}",
    "twice": f"Bearer {ACME} {ACME}",
    "in quotes": f'Bearer "{ACME}"',
    "expired": f"Bearer {OLD}",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with router(tmp_path_factory.mktemp("guarded"), tokens=TOKENS) as up:
        yield up


CALLS = {
    "Route": lambda stub, **how: stub.Route(pb.RouteRequest(text="x"), **how),
    "RouteBatch": lambda stub, **how: stub.RouteBatch(pb.RouteBatchRequest(), **how),
    "RouteStream": lambda stub, **how: next(stub.RouteStream(iter([pb.RouteRequest()]), **how)),
    "SendFeedback": lambda stub, **how: stub.SendFeedback(pb.FeedbackRequest(), **how),
    "TraceFeedback": lambda stub, **how: stub.TraceFeedback(pb.TraceFeedbackRequest(), **how),
    "Explain": lambda stub, **how: stub.Explain(pb.ExplainRequest(), **how),
}


def status(up, method: str, shown: str | None) -> grpc.StatusCode:
    metadata = [] if shown is None else [("authorization", shown)]
    try:
        CALLS[method](up.stub, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("shown", REFUSED)
def test_without_a_valid_token_no_method_answers(guarded, method, shown):
    assert status(guarded, method, REFUSED[shown]) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", CALLS)
def test_a_token_is_good_for_its_scopes_alone(guarded, method):
    """
    What passes the guard may still be a bad request; only the guard says PERMISSION_DENIED.
    """
    for secret, scopes in ((ACME, {"route", "feedback"}), (READER, {"read"})):
        denied = status(guarded, method, f"bearer {secret}") is grpc.StatusCode.PERMISSION_DENIED
        assert denied == (METHODS[method] not in scopes)


def test_other_paths_and_headers_do_not_get_around_it(guarded):
    """
    Paths in other spellings are no methods; a token in another header is none.
    """
    paths = ["/fairlead.v1.Router/route", "//fairlead.v1.Router/Route", "/fairlead.v1.Router/Route/",
             "/fairlead.v1.Router/Route?x", "/fairlead.v1.router/Route", "/Router/Route"]  # fmt: skip
    for path in paths:
        with pytest.raises(grpc.RpcError) as refused:
            guarded.channel.unary_unary(path)(b"", timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    for header in ("x-authorization", "proxy-authorization", "cookie", "authorization-bin"):
        value = f"Bearer {ACME}".encode() if header.endswith("-bin") else f"Bearer {ACME}"
        with pytest.raises(grpc.RpcError) as refused:
            guarded.stub.Route(pb.RouteRequest(text="x"), metadata=[(header, value)], timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("said", ["", "other"])
def test_a_token_speaks_for_its_tenant_whatever_a_request_says(guarded, said):
    from router_bench import embedding

    request = pb.RouteRequest(tenant=said, embedding_f32=embedding())
    as_acme = {"metadata": [("authorization", f"Bearer {ACME}")], "timeout": 20}
    one = guarded.stub.Route(request, **as_acme)
    [reply] = guarded.stub.RouteBatch(pb.RouteBatchRequest(requests=[request]), **as_acme).replies
    for_itself = {"metadata": [("authorization", f"Bearer {ANY}")], "timeout": 20}
    any_one = guarded.stub.Route(request, **for_itself)

    tenants = [
        guarded.stub.Explain(pb.ExplainRequest(ticket=decision.ticket), **for_itself).tenant
        for decision in (one, reply.decision, any_one)
    ]
    assert tenants == ["acme", "acme", said]


def test_the_client_shows_its_token(guarded):
    target = f"127.0.0.1:{guarded.replica.port}"
    with Client(target, token=ANY, timeout_s=PATIENCE_S) as client:
        decision = client.route(embedding=[0.1] * 8)
        assert client.explain(decision.ticket).decision_id == decision.decision_id
        assert len(list(client.route_stream([Request(embedding=[0.1] * 8, request_id="a")]))) == 1
        with pytest.raises(NotAllowed, match="has not the scope 'feedback'"):
            client.send_feedback(decision.ticket, quality=1.0)
    with (
        Client(target, timeout_s=PATIENCE_S) as client,
        pytest.raises(NotAllowed, match="no token was shown"),
    ):
        client.route(embedding=[0.1] * 8)


def test_explain_on_the_command_line_shows_a_token(guarded, tmp_path):
    """
    Of a file, because what is on a command line is for everybody on the machine to see.
    """
    target = f"127.0.0.1:{guarded.replica.port}"
    with Client(target, token=ANY, timeout_s=PATIENCE_S) as client:
        decision = client.route(embedding=[0.1] * 8)
    (tmp_path / "token").write_text(f"{ANY}\n")
    command = ["explain", decision.ticket.hex(), "--target", target, "--json"]

    shown = CliRunner().invoke(app, [*command, "--token-file", str(tmp_path / "token")])

    assert json.loads(shown.stdout)["decision_id"] == decision.decision_id
    assert isinstance(CliRunner().invoke(app, command).exception, NotAllowed)


def test_every_method_of_the_services_has_a_scope():
    """
    One that is added to the proto is to be thought about: without a scope it can't be called.
    """
    methods = {m.name for service in SERVICES.values() for m in service.methods}
    assert methods == set(METHODS)
    assert set(METHODS.values()) <= set(SCOPES)


def test_every_tenant_in_a_message_is_imposed():
    dispatch = dispatch_pb2.DispatchRequest()
    impose(dispatch, "acme")
    assert dispatch.route.tenant == "acme"
    batch = pb.RouteBatchRequest(requests=[{"tenant": "other"}, {}])
    impose(batch, "acme")
    assert [request.tenant for request in batch.requests] == ["acme", "acme"]
    impose(batch, "")
    assert [request.tenant for request in batch.requests] == ["acme", "acme"]


# --- HTTP


@pytest.fixture(scope="module")
def guarded_http():
    with api(tokens=TOKENS) as up:
        yield up


@pytest.mark.parametrize("shown", REFUSED)
@pytest.mark.parametrize("path", ["chat/completions", "feedback", "models", "models/small", "no"])
def test_without_a_valid_token_no_path_answers(guarded_http, path, shown):
    value = (REFUSED[shown] or "").rstrip()  # the client sends no header that ends in a space
    headers = {} if REFUSED[shown] is None else {"authorization": value}
    for method in ("GET", "POST"):
        reply = httpx2.request(method, f"{guarded_http.root}/v1/{path}", headers=headers)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("secret", "path", "status"),
    [
        (ACME, "models", 403),
        (READER, "models", 200),
        (READER, "feedback", 403),
        (ANY, "feedback", 403),
    ],
)
def test_a_path_takes_its_scope(guarded_http, secret, path, status):
    method = "GET" if path == "models" else "POST"
    headers = {"authorization": f"Bearer {secret}"}
    url = f"{guarded_http.root}/v1/{path}"
    assert httpx2.request(method, url, headers=headers).status_code == status


def test_over_http_a_token_speaks_for_its_tenant(guarded_http):
    guarded_http.dispatcher.play(*HELLO)
    with guarded_http.client(api_key=ACME) as client:
        client.chat.completions.create(
            model="auto", user="other", messages=[{"role": "user", "content": "hi"}],
            extra_body={"fairlead": {"tenant": "another"}},
        )  # fmt: skip
    assert guarded_http.dispatcher.asks[0].route.tenant == "acme"


# --- settings and the command line


def test_a_token_that_is_made_is_let_in_by_the_settings_it_came_with(tmp_path):
    command = ["tokens", "new", "shop", "--tenant", "acme", "--scopes", "route,read", "--json"]
    made = json.loads(CliRunner().invoke(app, command).stdout)
    path = tmp_path / "fairlead.toml"
    path.write_text(made["settings"] + '\n[[models]]\nname = "small"\n')

    tokens = read_settings(path).deployment().replica.tokens

    grant = Access(tokens).grant(f"Bearer {made['token']}", 0.0)
    assert (grant.name, grant.tenant, grant.scopes) == ("shop", "acme", {"route", "read"})
    with pytest.raises(AccessDenied, match="'shop' has not the scope 'admin'"):
        grant.require("admin")
    assert made["token"] not in path.read_text()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('sha256 = "abc"', "hexadecimal digits"),
        (f'sha256 = "{"0" * 64}"\nscopes = ["all"]', "some of route, dispatch"),
        (f'sha256 = "{"0" * 64}"\nscopes = []', "some of route, dispatch"),
    ],
)
def test_tokens_that_cannot_work_are_refused_with_their_name(tmp_path, entry, problem):
    path = tmp_path / "fairlead.toml"
    path.write_text(f'[[tokens]]\nname = "shop"\n{entry}\n[[models]]\nname = "small"\n')
    with pytest.raises((SettingsInvalid, OptionRefused), match=f"tokens.shop.*{problem}"):
        read_settings(path)


def test_a_token_whose_requests_would_all_be_refused_is_refused_itself():
    """
    A tenant is as long as a request's may be, in bytes; the settings say so, not each call.
    """
    Access([token("a", tenant="é" * 32)])
    with pytest.raises(OptionRefused, match=r"tenant.*at most 64 bytes"):
        Access([token("a", tenant="é" * 33)])


def test_one_secret_cannot_be_two_tokens():
    """
    Whose it is would depend on their order.
    """
    same = token("a", tenant="acme"), token("a", tenant="other")
    with pytest.raises(OptionRefused, match=r"sha256.*its own"):
        Access(same)


def test_two_tokens_of_one_tenant_can_be_valid_at_once():
    """
    So one is replaced without a moment in which none is.
    """
    secrets = [new_token(), new_token()]
    access = Access([token(secret, tenant="acme") for secret in secrets])
    assert {access.grant(f"Bearer {secret}", 0.0).tenant for secret in secrets} == {"acme"}
    with pytest.raises(Unauthenticated):
        access.grant(f"Bearer {new_token()}", 0.0)
