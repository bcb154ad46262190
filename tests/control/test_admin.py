"""Operators change a running site over gRPC: with the right to, by the commands, and seen at once."""

from __future__ import annotations

import json
import shlex

import grpc
import pytest
from documented_commands import commands_of
from router_bench import PATIENCE_S, router
from source_files import ROOT
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.control.control import Control
from infra.settings.settings import FileCatalogue
from serve.access.tokens import SCOPES, Access, Token, digest_of
from serve.admin.servicer import AdminServicer
from serve.grpc_api.listener import ADMIN
from serve.proto.fairlead.v1 import admin_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2
from serve.proto.fairlead.v1.admin_pb2_grpc import AdminStub
from streams.errors import SnapshotFenced
from streams.training.folder import Folder
from streams.training.snapshots import Store

OPERATOR, CALLER, ACME = "fl_operator", "fl_caller", "fl_acme"
TOKENS = [
    Token(name="ann", sha256=digest_of(OPERATOR.encode()), scopes=("admin",)),
    Token(name="shop", sha256=digest_of(CALLER.encode()), scopes=tuple(set(SCOPES) - {"admin"})),
    Token(name="acme", sha256=digest_of(ACME.encode()), scopes=SCOPES, tenant="acme"),
]


class Site:
    """A router that reads a settings file, and the file."""

    def __init__(self, folder, tokens=()):
        self.path, self.edits = folder / "fairlead.toml", folder / "edits.jsonl"
        said = f"state_dir = {json.dumps(str(folder))}\n"
        models = [f'[[models]]\nname = "{name}"\n' for name in ("small", "medium", "large")]
        self.path.write_text(said + "".join(models))
        store = Store(Folder(str(folder / "snapshots")))
        control = Control(self.path, self.edits, lambda: 1_760_000_000_000, lambda: store)

        def within(replica):
            servicer = AdminServicer(control, Access(tokens), lambda: 1_760_000_000.0)
            replica.servicers[ADMIN] = servicer
            return replica

        self._made = router(folder, tokens=tokens, within=within)
        self.router = self._made.__enter__()
        self.router.source.read = FileCatalogue(self.path, self.edits).read
        self.stub = AdminStub(self.router.channel)

    def close(self):
        self._made.__exit__(None, None, None)

    def run(self, *words: str):
        """A command with this site's settings, as an operator types it."""
        target = f"127.0.0.1:{self.router.replica.port}"
        options = ["--target", target, "--settings", str(self.path)]
        return CliRunner().invoke(app, [*words, *options], catch_exceptions=False)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("guarded"), TOKENS)
    yield made
    made.close()


DRAIN = pb.ChangeRequest(kind=pb.KIND_MODELS, name="small", action=pb.ACTION_DRAIN)
CALLS = {
    "List": lambda stub, **how: stub.List(pb.ListRequest(kind=pb.KIND_MODELS), **how),
    "Change": lambda stub, **how: stub.Change(DRAIN, **how),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("secret", "code"),
    [
        ("", grpc.StatusCode.UNAUTHENTICATED),
        ("fl_nobody", grpc.StatusCode.UNAUTHENTICATED),
        (CALLER, grpc.StatusCode.PERMISSION_DENIED),
        (ACME, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_without_the_right_nothing_is_shown_or_changed(guarded, method, secret, code):
    """
    Neither without a token, nor with one of all other scopes, nor with one tenant's.
    """
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    with pytest.raises(grpc.RpcError) as refused:
        CALLS[method](guarded.stub, metadata=metadata, timeout=PATIENCE_S)
    assert refused.value.code() is code
    assert not guarded.edits.exists()


def test_token_with_the_right_is_named_in_the_list_of_edits(guarded):
    metadata = [("authorization", f"Bearer {OPERATOR}")]
    request = pb.ChangeRequest(kind=pb.KIND_MODELS, name="new", action=pb.ACTION_ADD)
    reply = guarded.stub.Change(request, metadata=metadata, timeout=PATIENCE_S)

    assert (reply.number, reply.by, reply.counts_from) == (1, "ann", pb.COUNTS_FROM_NOW)
    assert json.loads(guarded.edits.read_text())["by"] == "ann"


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("unix:/run/fairlead", True),
        ("ipv4:10.0.0.7:4711", False),
        ("ipv4:1.127.0.0:1", False),
        ("ipv6:%5B2001:db8::1%5D:4711", False),
        ("", False),
    ],
)
def test_without_tokens_only_this_host_may_call(site, peer, here):
    class Context:
        def peer(self):
            return peer

        async def abort(self, code, message, trailing):
            raise RuntimeError(code.name, message)

    servicer = site.router.replica.servicers[ADMIN]
    asked = servicer.List(pb.ListRequest(kind=pb.KIND_EDITS), Context())
    if here:
        assert site.router.run(asked).edits == 0
    else:
        with pytest.raises(RuntimeError, match=r"PERMISSION_DENIED.*no tokens"):
            site.router.run(asked)


def test_drained_model_gets_no_more_requests_until_it_is_resumed(site):
    """
    Also where a request allows no other: then it is refused, and told why.
    """
    assert site.run("models", "drain", "small", "--reason", "it is replaced").exit_code == 0
    site.router.look()
    chosen = {site.router.route().model for _ in range(60)}
    with pytest.raises(grpc.RpcError) as refused:
        site.router.route(allowed_models=["small"])

    assert chosen == {"medium", "large"}
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "small: it is being drained" in refused.value.details()

    assert site.run("models", "resume", "small").exit_code == 0
    site.router.look()
    assert site.router.route(allowed_models=["small"]).model == "small"


def test_drained_pool_leaves_its_model_to_the_others(site):
    site.run("pools", "add", "here", "model=small")
    site.run("pools", "add", "there", "model=small")
    site.run("pools", "drain", "here")
    site.router.look()

    assert {site.router.route(allowed_models=["small"]).pool for _ in range(20)} == {"there"}
    assert site.router.replica.view.current.pools_of["small"] == ("there",)


def test_commands_add_change_and_remove_and_say_from_when_it_counts(site):
    added = site.run("models", "add", "new", "quality=0.9", "tier=large", "--json")
    assert json.loads(added.stdout)["counts_from"] == "now"
    site.router.look()
    assert site.router.route(allowed_models=["new"]).model == "new"

    shown = json.loads(site.run("models", "show", "new", "--json").stdout)
    assert shown == {
        "name": "new",
        "settings": {"name": "new", "quality": 0.9, "tier": "large"},
        "draining": False,
        "edited": True,
    }
    changed = site.run("policy", "set", "router.policy=greedy", "--json")
    assert json.loads(changed.stdout)["counts_from"] == "rolling update"
    text = site.run("policy", "list").stdout
    assert "router  (edited)" in text
    assert "policy = greedy" in text
    assert "replaces its replicas now" in site.run("policy", "reset", "router.policy").stdout

    site.run("models", "remove", "new")
    listed = json.loads(site.run("models", "list", "--json").stdout)
    assert [one["name"] for one in listed["entries"]] == ["small", "medium", "large"]
    assert listed["edits"] == 4


def test_budget_is_added_and_listed(site):
    site.run("budgets", "add", "day", "per=day", "amount=100", "scope=tenant", "value=acme")

    (one,) = json.loads(site.run("budgets", "list", "--json").stdout)["entries"]

    assert one["settings"] == {
        "name": "day", "per": "day", "amount": 100.0, "scope": "tenant", "value": "acme",
    }  # fmt: skip


def test_refused_change_names_the_setting_its_value_and_the_limit(site):
    request = pb.ChangeRequest(
        kind=pb.KIND_MODELS,
        name="small",
        action=pb.ACTION_SET,
        settings=[pb.Setting(key="quality", value_json="2")],
    )
    with pytest.raises(grpc.RpcError) as refused:
        site.stub.Change(request, timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "models.0.quality is 2: input should be less than or equal to 1" in (
        refused.value.details()
    )
    assert not site.edits.read_text()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "kind is 0"),
        ({"kind": pb.KIND_EDITS}, "kind is edits"),
        ({"kind": 99}, "kind is 99"),
        ({"kind": pb.KIND_MODELS, "name": "m"}, "action is 0"),
        ({"kind": pb.KIND_BUDGETS, "name": "m", "action": pb.ACTION_DRAIN}, "action is drain"),
        ({"kind": pb.KIND_MODELS, "action": pb.ACTION_ADD}, "name is ''"),
        ({"kind": pb.KIND_POLICY, "name": "x", "action": pb.ACTION_SET}, "name is 'x'"),
        ({"kind": pb.KIND_MODELS, "name": "m" * 201, "action": pb.ACTION_ADD}, "201 bytes"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_SET}, "settings is empty"),
        ({"kind": pb.KIND_POLICY, "action": pb.ACTION_RESET}, "settings is empty"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_REMOVE,
          "settings": [pb.Setting(key="a", value_json="1")]}, "settings is given to remove"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD,
          "settings": [pb.Setting(key="a", value_json="{")]}, "settings.a is '{'"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD,
          "settings": [pb.Setting(key="a", value_json="NaN")]}, "NaN is no number"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD,
          "settings": [pb.Setting(key="a", value_json="[" * 9_000)]}, "settings.a is"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD,
          "settings": [pb.Setting(key="a", value_json="1")] * 2}, "each key once"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD,
          "settings": [pb.Setting(key="a", value_json=" " * 10_001)]}, "10001 bytes"),
        ({"kind": pb.KIND_MODELS, "name": "m", "action": pb.ACTION_ADD, "reason": "x" * 501},
         "reason is 501 bytes"),
    ],
)  # fmt: skip
def test_change_of_another_form_is_refused(site, change, problem):
    with pytest.raises(grpc.RpcError) as refused:
        site.stub.Change(pb.ChangeRequest(**change), timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in refused.value.details()


def test_bytes_that_are_no_message_are_refused(site):
    call = site.router.channel.unary_unary("/fairlead.v1.Admin/Change")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"\xff\xff", timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_command_ends_with_what_was_refused(site):
    from fairlead.errors import FairleadError

    with pytest.raises(FairleadError, match="models has no 'nobody'"):
        site.run("models", "drain", "nobody")


def test_broken_file_refuses_changes_and_decisions_go_on(site):
    site.path.write_text("[[models]]\nnome = 1\n")

    with pytest.raises(grpc.RpcError) as refused:
        site.stub.Change(DRAIN, timeout=PATIENCE_S)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert site.router.stub.Route(
        router_pb2.RouteRequest(embedding_f32=bytes(28) + b"\x00\x00\x80\x3f"), timeout=PATIENCE_S
    ).model


def test_going_back_to_a_snapshot_forgets_what_was_learned_since(site):
    """
    The trainer that runs is fenced; the next one recovers, reads on, and learns nothing again.
    """
    up = site.router
    early = up.route(allowed_models=["small"])
    up.report(early, quality=1.0)
    good = up.learn()
    version = up.store.newest()
    late = up.route(allowed_models=["small"])
    up.report(late, quality=0.0)
    assert up.learn() != good

    listed = json.loads(site.run("snapshots", "list", "--json").stdout)["entries"]
    assert str(version) in [one["name"] for one in listed]
    done = site.run("snapshots", "rollback", str(version), "--reason", "bad labels", "--json")
    assert json.loads(done.stdout)["number"] == 1
    edit = json.loads(site.edits.read_text())
    assert (edit["kind"], edit["action"], edit["name"]) == ("snapshots", "roll back", str(version))

    up.report(up.route(allowed_models=["small"]), quality=1.0)
    with pytest.raises(SnapshotFenced):
        up.learn()
    again = up.trainer_anew()
    again.publish_if_due(at_once=True)
    assert again.state.learned.digest() == good
    up.report(late, quality=0.0)  # known already: it does not count after all
    while again.step():
        pass
    assert again.state.counts["duplicate"] == 1
    assert again.state.counts["learned"] == 3
    again.close()


def test_snapshot_that_is_not_there_or_is_the_newest_is_refused(site):
    up = site.router
    up.report(up.route(), quality=1.0)
    up.learn()
    newest = str(up.store.newest())
    for name, problem in (("7", "snapshots has no '7'"), (newest, "it is the newest")):
        request = pb.ChangeRequest(kind=pb.KIND_SNAPSHOTS, name=name, action=pb.ACTION_ROLL_BACK)
        with pytest.raises(grpc.RpcError) as refused:
            site.stub.Change(request, timeout=PATIENCE_S)
        assert problem in refused.value.details()
    assert not site.edits.read_text()


DOC = ROOT / "docs" / "control.md"


def test_commands_of_the_document_do_what_they_say(site):
    """
    From top to bottom, by whoever reads it.
    """
    lines = commands_of(DOC.read_text())
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] in ("status", "tokens"):
            where = ["--settings", str(site.path)] if words[0] == "status" else []
            done = CliRunner().invoke(app, [*words, *where])
        else:
            done = site.run(*words)
        assert done.exit_code == 0, (line, done.output)
        assert done.stdout
    assert "edit 11" in CliRunner().invoke(app, ["status", "--settings", str(site.path)]).stdout
