"""The site that is attacked: TLS, tokens, two routers, two dispatchers, an emulated pool, metrics.

    with site(folder) as up:     as `fairlead up` runs it, in a cluster of this bench alone

Its secrets are made for the length of a run, and are among what must be found nowhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.cluster.cluster import Running, local_ray, running
from infra.pools.ports import free_ports
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from infra.status.metrics import serve_metrics
from infra.status.status import Status, look
from load.bench.operate.certificates import Authority
from load.bench.settings import head
from serve.access.tokens import digest_of, new_token
from streams.clock import now_ms

HOST = "localhost"  # what the certificate is for
ALL = ("route", "dispatch", "feedback", "read")
# Tenant and scopes by token; some were good until half a century ago.
TOKENS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "all": ("acme", ALL),
    "route": ("acme", ("route",)),
    "dispatch": ("acme", ("dispatch",)),
    "feedback": ("acme", ("feedback",)),
    "read": ("acme", ("read",)),
    "other": ("umbrella", ALL),
    "expired": ("acme", (*ALL, "admin")),
    "operator": ("", ("admin",)),
    "admin of a tenant": ("acme", (*ALL, "admin")),
    "operator of old": ("", ("admin",)),
}
EXPIRED = ("expired", "operator of old")
POOL = """
[[gpus]]
name = "l40s"
usd_per_hour = 1.0
[[models]]
name = "small"
shape = "Llama-3.1-8B-Instruct"
usd_per_1m_output_tokens = 0.1
output_tokens = 24
latency_ms = 500
[[pools]]
name = "small"
model = "small"
gpu = "l40s"
backend = "emulated"
speed = 4
[logs]
level = "debug"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """The site while it is up."""

    folder: Path
    settings: Settings
    up: Running
    tokens: Mapping[str, str]  # secrets by name in TOKENS
    trusted: bytes  # PEM of the authority
    metrics_port: int

    @property
    def site(self) -> LocalSite:
        """Where its log, snapshots and keys are."""
        return self.up.site

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of the router, of the dispatcher over gRPC, and over HTTP."""
        addresses = self.settings.addresses()
        router, dispatch, http = (
            addresses[name][1] for name in ("listener.port", "dispatch.port", "dispatch.http_port")
        )
        return router, dispatch, http

    def status(self) -> Status:
        """As `fairlead status` has it."""
        log = self.site.log()
        try:
            return look(self.site.store(), log, now_ms(), 600.0)
        finally:
            log.close()


@contextmanager
def site(folder: Path, port: int) -> Iterator[Attacked]:
    """Run it for the length of a `with` block. Raises AddressTaken and ClusterFailed."""
    tokens = {name: new_token() for name in TOKENS}
    authority = Authority("operate", dt.datetime.now(dt.UTC))
    path = write_settings(folder, port, tokens, authority)
    settings = read_settings(path)
    (metrics_port,) = free_ports(1, "127.0.0.1")
    with local_ray(settings.fleet().resources()), running(settings, path) as up:
        found = Attacked(
            folder=folder,
            settings=settings,
            up=up,
            tokens=tokens,
            trusted=authority.certificate,
            metrics_port=metrics_port,
        )
        stop = serve_metrics("127.0.0.1", metrics_port, found.status)
        try:
            yield found
        finally:
            stop()


def write_settings(
    folder: Path, port: int, tokens: Mapping[str, str], authority: Authority, *, more: str = POOL
) -> Path:
    """The settings file and the certificates beside it."""
    pair = authority.issue("router")
    (folder / "tls.key").write_bytes(pair.key)
    (folder / "tls.pem").write_bytes(pair.certificate)
    text = head(folder, port, routers=2, dispatchers=2).replace(
        "[router]",
        f'tls_certificate = "{folder}/tls.pem"\ntls_key = "{folder}/tls.key"\n[router]',
    )
    path = folder / "fairlead.toml"
    path.write_text(text + "".join(_token(name, tokens[name]) for name in TOKENS) + more)
    return path


def _token(name: str, secret: str) -> str:
    tenant, scopes = TOKENS[name]
    expires = "expires_at_unix_s = 1\n" if name in EXPIRED else ""
    quoted = ", ".join(f'"{scope}"' for scope in scopes)
    return (
        f'[[tokens]]\nname = "{name}"\nsha256 = "{digest_of(secret.encode())}"\n'
        f'tenant = "{tenant}"\nscopes = [{quoted}]\n{expires}'
    )
