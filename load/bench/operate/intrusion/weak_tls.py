"""Less than the TLS that is asked for: plain text, old versions, no or strange certificates.

one way    the site's three ports, with `tls_certificate` alone
mutual     a dispatcher of its own that asks callers for certificates
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from load.bench.operate.certificates import Authority, Pair
from load.bench.operate.intrusion.attack import ROUTER, Attack, Attempt
from load.bench.operate.intrusion.door import Door, Reply, get
from load.bench.upstreams.dispatchers import dispatchers
from serve.proto.fairlead.v1 import router_pb2 as pb

HANDSHAKE_S = 5.0


def weak_tls(on: Attack) -> Iterator[Attempt]:
    """Less than TLS 1.2, or nothing."""
    router, dispatcher, http = on.at.ports
    message = on.messages()["Route"][1]
    for name, port in (("router", router), ("dispatcher", dispatcher)):
        yield Attempt(
            f"plain gRPC to the {name}",
            partial(on.door.grpc, port, ROUTER + "Route", message, on.bearer("all"), plain=True),
        )
    yield Attempt(
        "plain HTTP",
        partial(on.door.http, http, get("/v1/models", on.bearer("all")), False),
    )
    for name, port in (("router", router), ("dispatcher", dispatcher), ("HTTP", http)):
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            yield Attempt(
                f"{version.name} to {name}",
                partial(_handshaken, on, port, version),
            )
        yield Attempt(
            f"ciphers without a certificate to {name}",
            partial(_handshaken, on, port, ssl.TLSVersion.TLSv1_2, "aNULL:eNULL:@SECLEVEL=0"),
        )


async def _handshaken(
    on: Attack, port: int, most: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0"
) -> Reply:
    """Whether a server agrees to no more than that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = most
    context.set_ciphers(ciphers)
    if port != on.at.ports[2]:
        context.set_alpn_protocols(["h2"])
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", port, ssl=context), HANDSHAKE_S
        )
    except (OSError, TimeoutError) as error:
        return Reply(f"closed ({type(error).__name__})")
    version = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return Reply("OK", str(version).encode())


@dataclass(frozen=True, slots=True)
class Mutual:
    """A dispatcher that asks for certificates, and what callers may show."""

    ports: tuple[int, int]  # gRPC, HTTP
    trusted: bytes
    ours: Pair
    strange: dict[str, Pair]


@asynccontextmanager
async def mutual(folder: Path) -> AsyncIterator[Mutual]:
    """Run it, in this process."""
    now = dt.datetime.now(dt.UTC)
    servers, callers = Authority("servers", now), Authority("callers", now)
    pair = servers.issue("router")
    files = {"tls.pem": pair.certificate, "tls.key": pair.key, "ca.pem": callers.certificate}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / "fairlead.toml"
    path.write_text(
        f'state_dir = "{folder}/state"\n[listener]\ntls_certificate = "{folder}/tls.pem"\n'
        f'tls_key = "{folder}/tls.key"\ntls_client_ca = "{folder}/ca.pem"\n'
        '[encoder]\nkind = "hashing"\n[telemetry]\nperiod_s = 0\n[dispatch]\nreplicas = 1\n'
        '[[models]]\nname = "small"\n'
    )
    async with dispatchers(path, 1) as (one,):
        yield Mutual(
            ports=(one.replica.port, one.http_port),
            trusted=servers.certificate,
            ours=callers.issue("caller"),
            strange={
                "expired": callers.issue("caller", valid_days=0),
                "by a stranger": Authority("strangers", now).issue("caller"),
                "by a stranger of the same name": Authority.like(callers, now).issue("caller"),
                "by the server's authority": servers.issue("caller"),
            },
        )


def without_certificate(to: Mutual) -> Iterator[tuple[Attempt, bool]]:
    """Attempts at it, and whether each must get in."""
    for name, pair in {"ours": to.ours, "none": None, **to.strange}.items():
        yield Attempt(f"gRPC, certificate {name}", partial(_grpc, to, pair)), pair is to.ours
        yield Attempt(f"HTTP, certificate {name}", partial(_http, to, pair)), pair is to.ours


async def _grpc(to: Mutual, pair: Pair | None) -> Reply:
    door = Door("localhost", to.trusted)
    if pair:
        door.key, door.shown = pair.key, pair.certificate
    try:
        message = pb.RouteRequest(text="hello").SerializeToString()
        return await door.grpc(to.ports[0], ROUTER + "Route", message)
    finally:
        await door.close()


async def _http(to: Mutual, pair: Pair | None) -> Reply:
    door = Door("localhost", to.trusted)
    context = door.context()
    if pair:
        with NamedTemporaryFile() as file:
            file.write(pair.key + pair.certificate)
            file.flush()
            context.load_cert_chain(file.name)
    return await door.http(to.ports[1], get("/v1/models"), context)
