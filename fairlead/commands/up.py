"""`fairlead up`: the router and its trainer on this machine, until told to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from rich.console import Console

from infra.cluster.cluster import local_ray, running
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from infra.status.metrics import serve_metrics
from infra.status.status import look
from serve.deploy.deployment import now_ms

DEFAULT = Path("fairlead.toml")


def run_until_stopped(path: Path | None, console: Console) -> None:
    """Start, say where, wait for Ctrl-C or SIGTERM, stop everything. Raises InfraError."""
    settings, path = settings_of(path, console)
    settings.catalogue()  # say what is wrong before starting anything
    try:
        gpus = settings.fleet().resources()
        with console.status("starting Ray …") as status, local_ray(gpus, settings.ray_address):
            # The same way out as Ctrl-C. Not before: Ray takes the signal for itself at its start.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            status.update("starting the router …")
            with running(settings, path) as router, _metrics(settings, router.site):
                status.stop()
                console.print(f"[bold green]Fairlead is up[/] at [bold]{router.address}[/]")
                if router.dispatch:
                    console.print(f"It answers, too: {router.dispatch} (gRPC), {router.openai}")
                console.print(_how_to_call(router.address), highlight=False, markup=False)
                threading.Event().wait()
    except KeyboardInterrupt:
        pass
    console.print("Fairlead has stopped. What it learned is kept for the next start.")


@contextlib.contextmanager
def _metrics(settings: Settings, site: LocalSite) -> Iterator[None]:
    """Serve metrics meanwhile, if a port is set."""
    if not settings.metrics.port:
        yield
        return
    log, store = site.log(), site.store()
    silence_s, pools = settings.feedback.silence_s, settings.pool_names()
    stop = serve_metrics(
        settings.metrics.port, lambda: look(store, log, now_ms(), silence_s, pools)
    )
    try:
        yield
    finally:
        stop()
        log.close()


def settings_of(path: Path | None, console: Console) -> tuple[Settings, Path]:
    """The settings of a file, of fairlead.toml, or of the example; and where they are."""
    path = path or (DEFAULT if DEFAULT.exists() else _example(console))
    return read_settings(path), path


def _example(console: Console) -> Path:
    path = Path(str(resources.files("infra") / "example.toml"))
    console.print(f"No {DEFAULT} here: using the example, {path}. Copy it here to make it yours.")
    return path


def _how_to_call(address: str) -> str:
    return f"""\

  from fairlead import Client
  with Client("{address}") as client:
      decision = client.route(text="What is the capital of France?")
      print(decision.model, decision.pool, decision.propensity)
      client.send_feedback(decision.ticket, quality=1.0, cost_usd=0.0004, latency_ms=850)

Ctrl-C stops it."""
