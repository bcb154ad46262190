"""Both listeners speak TLS with the same files, and with client certificates where they are asked for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import grpc
import httpx2
import pytest
from certificates import self_signed
from click.testing import Result
from scripted_api import api
from typer.testing import CliRunner
from waiting import PATIENCE_S

from fairlead.command_line import app
from infra.control.control import Control
from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from serve.access.tokens import OPEN
from serve.admin.servicer import AdminServicer
from serve.grpc_api.listener import ADMIN, ROUTER, Listener, ListenerOptions
from serve.openai_api.http_listener import HttpListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc

SERVER, CLIENT, STRANGER = self_signed(), self_signed(), self_signed()  # key and certificate


def context_of(tmp_path: Path, shown: tuple[bytes, bytes] | None) -> ssl.SSLContext:
    """A client's, which trusts the server and may show a certificate."""
    context = ssl.create_default_context(cadata=SERVER[1].decode())
    if shown:
        path = tmp_path / "shown.pem"
        path.write_bytes(shown[0] + shown[1])
        context.load_cert_chain(path)
    return context


@pytest.fixture(scope="module", params=[b"", CLIENT[1]], ids=["tls", "mutual"])
def https(request):
    options = HttpListenerOptions(
        host="localhost", port=0, grace_s=5.0, tls_certificate=SERVER[1], tls_key=SERVER[0],
        tls_client_ca=request.param,
    )  # fmt: skip
    with api(listener=options) as up:
        up.mutual = bool(request.param)
        yield up


@pytest.mark.parametrize(
    ("shown", "let_in"),
    [(CLIENT, True), (STRANGER, False), (None, False)],
    ids=["ours", "other", "none"],
)
def test_https_asks_for_a_certificate_where_it_is_told_to(https, tmp_path, shown, let_in):
    url = f"https://localhost:{https.listener.port}/health"
    with httpx2.Client(verify=context_of(tmp_path, shown), timeout=PATIENCE_S) as client:
        if let_in or not https.mutual:
            assert client.get(url).json() == {"status": "ok"}
        else:
            with pytest.raises(httpx2.TransportError):
                client.get(url)


@pytest.mark.parametrize(
    ("shown", "exit_code"), [(CLIENT, 0), (STRANGER, 1), (None, 1)], ids=["ours", "other", "none"]
)
def test_control_commands_show_a_certificate_where_one_is_asked_for(tmp_path, shown, exit_code):
    """
    Certificate and key are in one file, as curl takes them.
    """
    path, pem = tmp_path / "fairlead.toml", tmp_path / "shown.pem"
    path.write_text(f'state_dir = "{tmp_path}"\n[[models]]\nname = "small"\n')
    (tmp_path / "ca.pem").write_bytes(SERVER[1])
    control = Control(path, tmp_path / "edits.jsonl", lambda: 0, lambda: None)

    async def body() -> Result:
        options = ListenerOptions(
            host="localhost", port=0, tls_certificate=SERVER[1], tls_key=SERVER[0],
            tls_client_ca=CLIENT[1],
        )  # fmt: skip
        listener = Listener({ADMIN: AdminServicer(control, OPEN, lambda: 0.0)}, options)
        await listener.start()
        command = ["models", "list", "--ca", str(tmp_path / "ca.pem"), "--json"]
        command += ["--target", f"localhost:{listener.port}"]
        if shown:
            pem.write_bytes(shown[0] + shown[1])
            command += ["--certificate", str(pem)]
        try:
            return await asyncio.to_thread(CliRunner().invoke, app, command)
        finally:
            await listener.stop()

    done = asyncio.run(body())
    assert done.exit_code == exit_code, done.output
    assert ("small" in done.stdout) == (exit_code == 0)


def test_https_answers_nobody_in_plain_text_or_old_versions(https):
    port = https.listener.port
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://localhost:{port}/health", timeout=PATIENCE_S)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("localhost", port)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)


@pytest.mark.parametrize(
    ("shown", "let_in"),
    [(CLIENT, True), (STRANGER, False), (None, False)],
    ids=["ours", "other", "none"],
)
def test_grpc_asks_for_a_certificate_where_it_is_told_to(shown, let_in):
    class Servicer:
        async def Route(self, request: object, context: grpc.aio.ServicerContext) -> pb.Decision:
            return pb.Decision(model="small")

        RouteBatch = RouteColumns = RouteArm = RouteArmBatch = RouteStream = SendFeedback = (
            TraceFeedback
        ) = Explain = Route

    async def body() -> str:
        options = ListenerOptions(
            port=0, tls_certificate=SERVER[1], tls_key=SERVER[0], tls_client_ca=CLIENT[1]
        )
        listener = Listener({ROUTER: Servicer()}, options)
        await listener.start()
        key, certificate = shown or (None, None)
        credentials = grpc.ssl_channel_credentials(SERVER[1], key, certificate)
        try:
            async with grpc.aio.secure_channel(
                f"localhost:{listener.port}", credentials
            ) as channel:
                stub = router_pb2_grpc.RouterStub(channel)
                return (await stub.Route(pb.RouteRequest(), timeout=PATIENCE_S)).model
        finally:
            await listener.stop()

    if let_in:
        assert asyncio.run(body()) == "small"
    else:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            asyncio.run(body())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_settings_give_both_listeners_the_same_files(tmp_path):
    for name, content in (("c.pem", b"C"), ("k.pem", b"K"), ("ca.pem", b"CA")):
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "fairlead.toml"
    pair = f'tls_certificate = "{tmp_path}/c.pem"\ntls_key = "{tmp_path}/k.pem"\n'
    authority = f'tls_client_ca = "{tmp_path}/ca.pem"\n'
    rest = '[dispatch]\nreplicas = 1\n[[models]]\nname = "small"\n'
    path.write_text(f"[listener]\n{pair}{authority}{rest}")
    settings = read_settings(path)

    over_grpc, http = (
        settings.deployment().replica.listener,
        settings.dispatchers().replica.http_listener,
    )
    for found in (over_grpc, http):
        assert (found.tls_certificate, found.tls_key, found.tls_client_ca) == (b"C", b"K", b"CA")

    path.write_text(f"[listener]\n{authority}{rest}")
    with pytest.raises(SettingsInvalid, match=r"listener\.tls_client_ca"):
        read_settings(path)
