"""Fairlead as the router behind others: what their programs send and read, over HTTP for real."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from made_up_endpoint import FakeEndpoint, FakePools
from ray import serve as ray_serve
from router_bench import MODELS, Router, router

from learners.policies.greedy import Greedy
from serve.deploy.dispatch_replica import DispatchReplica, DispatchReplicaOptions
from serve.encoders import EncoderOptions
from serve.openai_api.app import HttpOptions
from serve.openai_api.http_listener import HttpListenerOptions

TEXT = EncoderOptions(kind="hashing")
SERVERS = {"small": "10.0.0.1:8000", "medium": "10.0.0.2:8000", "large": "[2001:db8::3]:8000"}
PATIENCE_S = 120.0


class Site:
    """A dispatcher with pools that nobody calls here."""

    def __init__(self, folder: Path, **http: object) -> None:
        self.pools = FakePools({pool: [FakeEndpoint(at)] for pool, at in SERVERS.items()})
        options = DispatchReplicaOptions(
            http=HttpOptions(**http), http_listener=HttpListenerOptions(port=0, grace_s=1.0)
        )
        self._router = router(
            folder,
            encoder=TEXT,
            policy=Greedy(),
            within=lambda replica: DispatchReplica(replica, self.pools, options),
        )
        self.router: Router = self._router.__enter__()
        self.port = self.router.whole.http_port
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def close(self) -> None:
        self.client.close()
        self._router.__exit__(None, None, None)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


# --- Ray Serve's ingress request router ------------------------------------------------------------


def test_ray_asks_and_reads_as_these_tests_do():
    """
    The contract is in no document: it is what this file of the installed Ray does.
    """
    template = Path(ray_serve.__file__).with_name("_private") / "ingress_request_router.lua.tmpl"
    lua = template.read_text()

    assert '"POST /internal/route HTTP/1.0\\r\\n"' in lua
    assert """json_body:match('"replica_id"%s*:%s*"([^"]+)"')""" in lua
    assert """json_body:match('"request_headers"%s*:%s*{(.-)}')""" in lua
    assert """headers:gmatch('"%s*([^"]-)%s*"%s*:%s*"([^"]*)"')""" in lua


def as_haproxy(site: Site, body: bytes, *headers: str) -> tuple[int, str]:
    """As `ingress_request_router.lua.tmpl` of Ray 2.60 asks, byte by byte; status and body."""
    head = "".join(f"{header}\r\n" for header in headers)
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as sock:
        sock.sendall(
            b"POST /internal/route HTTP/1.0\r\nHost: router\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n{head}\r\n".encode()
            + body
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    top, _, rest = answer.partition("\r\n\r\n")
    assert "transfer-encoding" not in top.lower()  # Lua reads to the end and takes all of it
    return int(top.split(" ")[1]), rest


def read_by_lua(body: str) -> tuple[str, dict[str, str]]:
    """What its patterns find: the replica's name, and headers for the request to it."""
    (replica,) = re.findall(r'"replica_id"\s*:\s*"([^"]+)"', body)
    (block,) = re.findall(r'"request_headers"\s*:\s*{(.*?)}', body)
    return replica, dict(re.findall(r'"\s*([^"]*?)\s*"\s*:\s*"([^"]*)"', block))


def chat(**fields: object) -> bytes:
    said = {"model": "auto", "messages": [{"role": "user", "content": "Who wrote Moby-Dick?"}]}
    return json.dumps({**said, **fields}).encode()


def test_haproxy_is_told_the_replica_and_headers_for_it(site):
    status, body = as_haproxy(site, chat())

    found = json.loads(body)
    replica, headers = read_by_lua(body)
    assert status == 200
    assert replica == found["replica_id"] == f"replica of {SERVERS[found['model']]}"
    assert found["deployment"] == found["model"]
    assert headers["x-serve-router-model"] == found["model"]
    assert f"{found['host']}:{found['port']}" == SERVERS[found["model"]].replace("[", "").replace(
        "]", ""
    )


def test_its_ticket_reports_what_became_of_the_request(site):
    """
    It is on the request to the replica; whoever answers there can hand it back.
    """
    _, body = as_haproxy(site, chat())
    ticket = json.loads(body)["request_headers"]["x-serve-router-ticket"]

    reply = site.client.post("/v1/feedback", json={"ticket": ticket, "quality": 0.5})

    assert reply.json() == {"accepted": 1}


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_model_that_is_named_is_the_one_that_is_routed_to(site, model):
    for body in (chat(model=model), chat(model=model)[:-40]):  # whole, and cut off by a buffer
        status, answer = as_haproxy(site, body, f"X-Body-Truncated: {len(body)}/{len(body) + 40}")

        assert (status, json.loads(answer)["model"]) == (200, model)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", chat(n=3), chat(model="unknown"), chat(messages=[])]
)
def test_what_can_not_be_read_is_routed_without_it(site, body):
    """
    HAProxy takes anything but 200 for a failure, and what is wrong with it is the server's to say.
    """
    status, answer = as_haproxy(site, body)

    assert (status, bool(read_by_lua(answer)[0])) == (200, True)


@pytest.mark.parametrize(
    "header", ["x-session-id: s1", "X_Session_Id: s1", "x-session-id: " + "s" * 500]
)
def test_a_session_is_taken_from_its_header(site, header):
    assert as_haproxy(site, chat(), header)[0] == 200


def test_a_pool_without_servers_is_a_failure_that_may_be_tried_again(site):
    """
    Ray answers its client 503 then.
    """
    held, site.pools.pools["small"] = site.pools.pools["small"], []
    try:
        status, answer = as_haproxy(site, chat(model="small"))
        site.pools.starts_s["small"] = 90.0
        starting, words = as_haproxy(site, chat(model="small"))
    finally:
        site.pools.pools["small"] = held
        site.pools.starts_s.clear()

    assert (status, starting) == (503, 503)
    assert "small" in json.loads(answer)["detail"]
    assert "ask again in 90 s" in json.loads(words)["detail"]


# --- Weave's policy router ---------------------------------------------------------------------------


def weave(*models: str, **fields: object) -> dict[str, object]:
    """A route's request as Weave Router sends it."""
    return {
        "schema_version": "policy_router_v1",
        "strategy": "quality-v2",
        "execution_mode": "serving",
        "route_id": "2f93b729-8ae2-4d23-889a-d7b59c729790",
        "organization_id": "org-1",
        "prompt_text": "Implement the requested change.",
        "conversation_messages": [{"role": "user", "text": "Implement the requested change."}],
        "turn_index": 0,
        "estimated_input_tokens": 1200,
        "has_tools": False,
        "training_allowed": True,
        "debug_enabled": False,
        "candidates": [
            {
                "roster_id": model,
                "catalog_id": model,
                "provider": f"provider of {model}",
                "preference_rank": 0,
                "capabilities": {"context_window": 400_000},
            }
            for model in models
        ],
        **fields,
    }


ALL = tuple(model.name for model in MODELS)


def test_a_probe_of_weave_finds_it_ready_and_what_it_can(site):
    said = site.client.get("/capabilities").json()

    assert site.client.get("/livez").status_code == site.client.get("/readyz").status_code == 200
    assert said["schema_version"] == "policy_router_v1"
    assert said["reports_outcomes"] is said["reports_feedback"] is said["supports_shadow"] is True
    assert all(isinstance(value, bool) for name, value in said.items() if name != "schema_version")


def test_one_of_the_candidates_is_chosen_with_its_propensity(site):
    reply = site.client.post("/route", json=weave("small", "large", "not-a-model-here"))

    said = reply.json()
    assert reply.status_code == 200
    assert said["schema_version"] == "policy_router_v1"
    assert said["selected_roster_id"] in {"small", "large"}
    assert said["selected_provider"] == f"provider of {said['selected_roster_id']}"
    assert 0.0 < said["propensity"] <= 1.0
    assert set(said["candidate_scores"]) == {"small", "large"}
    assert said["candidate_scores"][said["selected_roster_id"]] == said["score"]
    assert said["route_id"].startswith("2f93b729-8ae2-4d23-889a-d7b59c729790")


def records(site: Site) -> int:
    site.router.learn()
    return site.router.trainer.state.counts.get("learned", 0)


@pytest.mark.parametrize(
    ("path", "reported"),
    [
        (
            "/outcome",
            {"cost_usd": 0.01, "output_tokens": 10, "status_code": 200, "served_model": "x"},
        ),
        ("/outcome", {"status_code": 502}),
        ("/feedback", {"rating": "up"}),
        ("/feedback", {"rating": 0.25}),
    ],
)
def test_what_is_reported_with_the_routes_id_is_learned(site, path, reported):
    before = records(site)
    route_id = site.client.post("/route", json=weave(*ALL)).json()["route_id"]

    reply = site.client.post(path, json={"route_id": route_id, "training_allowed": True} | reported)

    assert (reply.status_code, reply.json()) == (200, {"accepted": 1})
    assert records(site) == before + 1


@pytest.mark.parametrize(
    ("asked", "reported"),
    [
        ({"training_allowed": False}, {}),
        ({"execution_mode": "shadow"}, {}),
        ({}, {"training_allowed": False}),
        ({}, {"selected_served_model_match": False}),
    ],
)
def test_what_may_not_be_learned_from_is_not(site, asked, reported):
    """
    Organisations that opted out, shadow decisions, and calls that another model answered in the end.
    """
    route = site.client.post("/route", json=weave(*ALL, **asked)).json()

    reply = site.client.post(
        "/outcome", json={"route_id": route["route_id"], "cost_usd": 0.01} | reported
    )

    assert (reply.status_code, reply.json()) == (200, {"accepted": 0})
    if asked:
        assert route["route_id"] == "2f93b729-8ae2-4d23-889a-d7b59c729790"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/route", weave("small", schema_version="policy_router_v9"), 400),
        ("/route", weave("elsewhere"), 422),
        ("/route", weave(), 422),
        ("/route", {"schema_version": "policy_router_v1"}, 400),
        ("/outcome", {"cost_usd": 1.0}, 400),
        ("/outcome", {"route_id": "x.no-ticket", "cost_usd": 1.0}, 400),
        ("/feedback", {"route_id": "x.AAAA", "rating": "up"}, 400),
    ],
)
def test_what_is_wrong_is_said_as_this_contract_has_it(site, path, body, status):
    reply = site.client.post(path, json=body)

    assert reply.status_code == status
    assert isinstance(reply.json()["error"], str)


# --- both ----------------------------------------------------------------------------------------------


def test_a_caller_without_a_token_gets_no_further_than_whether_it_lives(tmp_path):
    site = Site(tmp_path, api_keys=("secret",))
    try:
        anyone = [site.client.get(path).status_code for path in ("/livez", "/readyz", "/health")]
        refused = [site.client.post(path, json={}).status_code for path in ("/route", "/outcome")]
        shown = {"authorization": "Bearer secret"}
        asked = site.client.post("/route", json=weave(*ALL), headers=shown)

        assert anyone == [200, 200, 200]
        assert [*refused, as_haproxy(site, chat())[0]] == [401, 401, 401]
        assert asked.status_code == 200
    finally:
        site.close()
