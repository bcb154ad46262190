"""docs/arms.md as it is written: its file of arms, its commands and its Python, against a dispatcher."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from documented_commands import blocks, commands_of
from made_up_endpoint import FakePools
from router_bench import PATIENCE_S, Router, router
from source_files import ROOT

from fairlead.connections import Connections
from infra.settings.settings import read_settings
from serve.access.tokens import Token, digest_of
from serve.arms.listed import read_arms
from serve.deploy.dispatch_replica import DispatchReplica, DispatchReplicaOptions
from serve.encoders import EncoderOptions
from serve.openai_api.http_listener import HttpListenerOptions
from serve.openai_api.request import read_ticket
from streams.feedback.ticket import Sealer

PAGE = (ROOT / "docs" / "arms.md").read_text()
ARMS, SETTINGS, PYTHON = (
    next(content for kind, content in blocks(PAGE) if kind == language)
    for language in ("json", "toml", "python")
)


def dispatcher(folder: Path, **options: Any) -> AbstractContextManager[Router]:
    http = DispatchReplicaOptions(http_listener=HttpListenerOptions(port=0, grace_s=1.0))
    return router(
        folder,
        encoder=EncoderOptions(kind="hashing"),
        arms=ARMS.encode(),
        within=lambda replica: DispatchReplica(replica, FakePools({}), http),
        **options,
    )


@pytest.fixture
def up(tmp_path) -> Iterator[Router]:
    with dispatcher(tmp_path) as made:
        yield made


def token(secret: str, scopes: tuple[str, ...] = ("route",)) -> Token:
    sha256 = digest_of(secret.encode())
    return Token(name=secret, sha256=sha256, tenant="acme", scopes=scopes)


def ask(up: Router, body: dict | None = None, **more: Any) -> httpx2.Response:
    url = f"http://127.0.0.1:{up.whole.http_port}/v1/arms"
    said = {"text": "will it rain", "tenant": "else"} if body is None else body
    return httpx2.post(url, json=said, timeout=PATIENCE_S, **more)


def known(up: Router) -> int:
    """Outcomes of arms that the trainer has learned."""
    up.learn()
    arms = up.trainer.state.arms
    return int(arms.outcomes([arm.key for arm in read_arms(ARMS.encode())]).sum())


def test_the_commands_of_the_page_choose_an_arm_and_report_what_it_was_worth(up, tmp_path):
    """
    In their order, in one folder, with the port in place of the documented one.
    """
    for command in commands_of(PAGE):
        here = command.replace("127.0.0.1:7491", f"127.0.0.1:{up.whole.http_port}")
        ran = subprocess.run(
            here, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert ran.returncode == 0, f"{here}\n{ran.stdout}{ran.stderr}"
    decision = json.loads((tmp_path / "decision.json").read_text())
    assert decision["pool"] == "tools"
    assert known(up) == 1


def test_the_python_of_the_page_does(up, monkeypatch):
    """
    Also word for word; but the client is patient.
    """
    monkeypatch.setitem(Connections.__init__.__kwdefaults__, "timeout_s", PATIENCE_S)
    exec(PYTHON.replace("127.0.0.1:7480", f"127.0.0.1:{up.replica.port}"))
    assert known(up) == 1


def test_the_file_and_the_setting_of_the_page_are_read(tmp_path):
    """
    By the settings, which know the file by its path; a bad line is named.
    """
    (tmp_path / "arms.jsonl").write_text(ARMS)
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.replace("arms.jsonl", str(tmp_path / "arms.jsonl")))
    arms = read_settings(path).listed_arms()
    assert [arm.id for arm in arms] == ["weather", "sums", "papers"]
    assert arms[0].price_usd == 0.0005
    (tmp_path / "arms.jsonl").write_text(ARMS + "{}\n")
    with pytest.raises(Exception, match=r"line 4: Object missing required field `id`"):
        read_settings(path)


def test_over_http_a_bad_field_is_named_and_numbers_are_numbers(up):
    """
    As for all of this API.
    """
    said = ask(up, {"text": "rain", "group": "tools"})
    assert said.status_code == 400
    assert "group" in said.json()["error"]["message"]
    asked = {"embedding": [0.5] * 1024, "fallbacks_max": 1, "request_id": "r"}
    found = ask(up, asked).json()
    assert found["request_id"] == "r"
    assert found["snapshot_version"] == 0 and 0 < found["propensity"] <= 1
    assert len(found["fallbacks"]) == 1


def test_over_http_a_token_needs_the_scope_route_and_says_whose_the_decision_is(tmp_path):
    """
    Whatever tenant the body names.
    """
    with dispatcher(tmp_path, tokens=[token("good"), token("other", scopes=("read",))]) as up:
        shown = {
            name: ask(up, headers={"authorization": f"Bearer {name}"}) for name in ("good", "other")
        }
        assert ask(up).status_code == 401
        assert shown["other"].status_code == 403
        ticket = read_ticket(shown["good"].json()["ticket"])
        assert Sealer(up.keys).open(ticket).tenant == "acme"


def test_several_requests_are_decided_together_and_a_bad_one_fails_alone(up):
    bodies = [{"text": "will it rain"}, {"text": "x", "groups": ["nobody's"]}, {"text": "sum"}]

    got = ask(up, {"requests": bodies})

    assert got.status_code == 200
    first, second, third = got.json()["decisions"]
    assert first["model"] and third["ticket"]
    assert (second["error"]["code"], second["error"]["param"]) == ("bad_field", "groups")


@pytest.mark.parametrize("requests", [[], [{"text": "x"}] * 1025, "x", [{"txet": "x"}]])
def test_several_that_are_none_are_refused(up, requests):
    got = ask(up, {"requests": requests})
    assert (got.status_code, got.json()["error"]["code"]) == (400, "bad_field")
