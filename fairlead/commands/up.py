"""`fairlead up`: the router and its trainer on this machine, until told to stop."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.status import Status as ConsoleStatus

from fairlead.commands.renewal import Renewal
from fairlead.commands.restarts import (
    may_restart,
    restart,
    restarted_at_s,
    stop_on_signals,
    unless_stuck,
)
from fairlead.commands.started import keep_settings, settings_of
from fairlead.commands.terminal import late
from infra.cluster import head
from infra.cluster.checkup import LOCK
from infra.cluster.cluster import is_ours, local_ray, refuse_taken, running
from infra.cluster.replica_watch import watching
from infra.dashboard.history import History
from infra.dashboard.judged import Judged, names_of
from infra.dashboard.recorder import Recorder
from infra.errors import AddressTaken, RayEnded, StateInUse
from infra.pools import state_folder
from infra.pools.site import LocalSite
from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from infra.status.metrics import serve_metrics
from infra.status.status import Status, look
from serve.encoders import identity, make_encoder
from streams.alarms import AlarmLog
from streams.clock import now_ms
from streams.errors import StreamError
from streams.feedback.feedback import Ingest
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import Log

logger = logging.getLogger(__name__)

STOPPED = "Fairlead has stopped. What it learned is kept for the next start."
LATE_S = 15.0  # that a start takes, from which it may seem to hang
FIRST = "The first start compiles code, and takes up to a minute longer than those after it …"
LEFT_S = 5.0  # that what is left of a killed router may listen
LISTENED = "Somebody listens where the router is to. Waiting some seconds for that to end …"
LOOK_S = 20.0  # between looks for alarms: said within a minute


def run_until_stopped(path: Path | None, console: Console) -> None:
    """Start, say where, wait for Ctrl-C or SIGTERM, stop everything. Raises InfraError.

    When Ray's head has died, all is started again; RayEnded is raised when that did not help.
    Who signals the whole group of processes ends Ray, too: that is a stop all the same.
    """
    stopping = threading.Event()

    def stuck(what: str) -> None:
        ended = RayEnded(what)
        head.end()
        if stopping.is_set():
            console.print(STOPPED)
            os._exit(0)
        try:
            _again(ended, console)
        except RayEnded:
            logger.exception("%s It was started again, which did not help.", ended.reason)
            os._exit(1)  # the thread that could say so is within a call that nobody answers

    try:
        with unless_stuck(head.problem, stuck):
            _run(path, console, stopping)
    except RayEnded as ended:
        if not stopping.is_set():
            _again(ended, console)
        console.print(STOPPED)


def _again(ended: RayEnded, console: Console) -> NoReturn:
    """Start all anew in this process. Raises what ended it, where that did not help."""
    now_s = now_ms() // 1000
    if not may_restart(restarted_at_s(os.environ), now_s):
        raise ended
    logger.error("%s Starting again.", ended.reason)
    console.print(f"[bold yellow]{escape(ended.reason)}[/] Starting again …")
    restart(now_s)


def _run(path: Path | None, console: Console, stopping: threading.Event) -> None:
    """Once: until a signal, or until Ray has ended. Raises InfraError."""
    settings, path = settings_of(path, console)
    settings.catalogue()  # say what is wrong before starting anything
    state_folder.prepare(settings.options(SiteOptions).state_dir.absolute())
    stop_on_signals(stopping)
    asked = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: asked.set())  # from now on: unheard, it ends a process
    address = settings.options(SiteOptions).ray_address
    try:
        with _alone(settings):
            if not address:  # else what listens may be ours, as only that cluster can say
                await_addresses(settings)
            with (
                console.status("starting Ray …") as status,
                local_ray(settings.fleet().resources(), address),
            ):
                keep_settings(settings, path)
                status.update("starting the router …")
                _serve(settings, path, console, status, asked)
    except KeyboardInterrupt:
        pass
    console.print(STOPPED)


def await_addresses(settings: Settings) -> None:
    """Return once nobody listens where we are to. Raises AddressTaken and AddressUnusable."""
    until_s = time.monotonic() + LEFT_S
    with late(LISTENED, 0.5):
        while True:
            try:
                return refuse_taken(settings)
            except AddressTaken:
                if time.monotonic() >= until_s:
                    raise
            time.sleep(0.1)


def _serve(
    settings: Settings, path: Path, console: Console, status: ConsoleStatus, asked: threading.Event
) -> NoReturn:
    """Start all in the connected cluster, and serve until Ray has ended. Raises InfraError."""
    with (
        late(FIRST, LATE_S) as started,
        running(settings, path) as router,
        _looking(settings, router.site),
        watching(router.site.store().folder, is_ours, now_ms),
    ):
        status.stop()
        started()
        console.print(f"[bold green]Fairlead is up[/] at [bold]{router.address}[/]")
        if router.dispatch:
            console.print(f"It answers, too: {router.dispatch} (gRPC), {router.openai}")
            console.print(f"What it does: {router.openai.removesuffix('/v1')}/dashboard")
        said = how_to_call(router.address, settings)
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        _until_the_end(Renewal(path, settings, router, console, now_ms, asked))


def _until_the_end(renewal: Renewal) -> NoReturn:
    """Serve until Ray has ended, taking new settings. Raises RayEnded."""

    def look() -> str:
        renewal.look()
        return head.problem()

    try:
        wait_for_the_end(look)
    finally:
        renewal.close()


def wait_for_the_end(ended: Callable[[], str], every_s: float = 1.0) -> NoReturn:
    """Wait until a process of Ray has ended: `ended` names it. Raises RayEnded."""
    while not (what := ended()):
        time.sleep(every_s)
    raise RayEnded(what)


@contextlib.contextmanager
def _looking(settings: Settings, site: LocalSite) -> Iterator[None]:
    """Meanwhile, say alarms in the log, and serve metrics if a port is set."""
    site.open_logs("up")
    log, store = site.log(), site.store()
    options, pools = settings.options(SiteOptions), settings.pool_names()
    budgets = settings.budgeted()

    def status() -> Status:
        return look(store, log, now_ms(), options.silence_s, pools, budgets)

    stopping = threading.Event()
    saying = threading.Thread(target=_say_alarms, args=(status, stopping), daemon=True)
    saying.start()
    host, port = options.metrics_host, options.metrics_port
    stop_metrics = serve_metrics(host, port, status) if port else lambda: None
    recorder = _recorder(settings, site, log, status)
    recorder.start()
    try:
        yield
    finally:
        stopping.set()
        recorder.stop()
        stop_metrics()
        saying.join(LOOK_S)
        log.close()


def _recorder(
    settings: Settings, site: LocalSite, log: Log, status: Callable[[], Status]
) -> Recorder:
    """What keeps a day of history for the dashboard."""
    options, catalogue = settings.deployment(), settings.catalogue()
    encoder = key_of(identity(make_encoder(options.encoder)))
    ingest = Ingest(Sealer(site.ticket_keys()), encoder, options.replica.feedback)
    names = names_of(catalogue.names, catalogue.keys)
    policy = key_of(repr(options.replica.policy))
    judged = Judged(log, ingest, policy, names)
    return Recorder(status, judged, History(site.store().folder), now_ms)


def _say_alarms(status: Callable[[], Status], stopping: threading.Event) -> None:
    """Log what alarms go on and off, looking every `LOOK_S`."""
    said = AlarmLog()
    while not stopping.wait(LOOK_S):
        try:
            said.say(status().alarms)
        except (OSError, StreamError) as error:
            logger.error("alarms can't be looked for: %s", error)


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the state folder, so that no second `fairlead up` uses it. Raises StateInUse."""
    folder = settings.options(SiteOptions).state_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise StateInUse(str(folder), lock.read().strip() or "unknown") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def how_to_call(address: str, settings: Settings) -> str:
    """Lines to copy: a client that shows a token and trusts a certificate where that is needed."""
    arguments = [f'"{address}"']
    if settings.tokens:
        arguments.append('token="fl_…"')
    if settings.stated("listener.tls_certificate") is not None:
        arguments.append('root_certificates=open("ca.pem", "rb").read()')
    return f"""\

  from fairlead import Client
  with Client({", ".join(arguments)}) as client:
      decision = client.route(text="What is the capital of France?")
      print(decision.model, decision.pool, decision.propensity)
      client.send_feedback(decision.ticket, quality=1.0, cost_usd=0.0004, latency_ms=850)

`fairlead status --watch` shows what it does. Ctrl-C or SIGTERM stops it."""
