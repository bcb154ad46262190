"""`fairlead up` ends when it is told to, and says so when Ray has ended under it."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NoReturn

import pytest
from ray._private import utils
from rich.console import Console

from fairlead.commands import up
from fairlead.commands.restarts import may_restart, unless_stuck
from fairlead.commands.up import await_addresses, how_to_call, wait_for_the_end
from infra.cluster import cluster, head
from infra.errors import AddressTaken, RayEnded
from infra.pools.ports import free_ports
from infra.settings.settings import read_settings

WAITING = """
from fairlead.commands.restarts import stop_on_signals
import threading
import time
try:
    stop_on_signals(threading.Event())
    print("ready", flush=True)
    while True:
        time.sleep(0.05)  # signal.pause would wait for ever if the signal came just before
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_stop_a_background_job(number):
    """
    A shell starts background jobs with SIGINT ignored. (It is a shell that does so here: code of
    ours between fork and exec would run in a process whose gRPC is broken.)
    """
    started = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout.readline() == "ready\n"
        started.send_signal(number)
        assert started.communicate(timeout=120.0)[0] == "stopped\n"


@pytest.mark.parametrize(("signalled", "again"), [(True, []), (False, ["again"])])
def test_who_ends_ray_with_us_stops_us(monkeypatch, signalled, again):
    """
    A signal to the whole group of processes: to start again is no answer to it.
    """
    calls, said = [], io.StringIO()

    def run(path, console, stopping) -> None:
        if signalled:
            stopping.set()
        raise RayEnded("Ray's raylet")

    monkeypatch.setattr(up, "_run", run)
    monkeypatch.setattr(up, "_again", lambda *_: calls.append("again"))
    monkeypatch.setattr(head, "problem", lambda: "")

    up.run_until_stopped(None, Console(file=said))

    assert calls == again
    assert "Fairlead has stopped" in said.getvalue()


def test_end_of_ray_is_noticed_with_a_reason():
    looks = iter(["", "", "gcs_server"])
    with pytest.raises(RayEnded, match=r"gcs_server has ended.*start `fairlead up` again"):
        wait_for_the_end(lambda: next(looks), every_s=0.0)


@pytest.mark.parametrize(
    ("times_s", "again"),
    [
        ([], True),
        ([9_500, 9_900], True),
        ([9_500, 9_700, 9_900], False),
        ([1_000, 2_000, 9_300, 9_900], True),  # long ago
        ([20_000, 20_100, 20_200], True),  # the clock was set back
    ],
)
def test_starting_again_is_tried_a_few_times_in_a_while(times_s, again):
    assert may_restart(times_s, 10_000) is again


@pytest.mark.parametrize(
    ("problem", "done"), [("", ["shutdown"]), ("gcs_server", ["end"]), ("raylet", ["end"])]
)
def test_the_end_of_ray_does_not_end_this_process_too(monkeypatch, problem, done):
    """
    `ray.shutdown` takes leave of the raylet, and where that is dead it exits at once: nothing is
    started again, and nobody says why. So what is left of a dead Ray is ended without it.
    """
    calls = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(cluster.ray_serve, "start", lambda **_: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(head, "problem", lambda: problem)
    monkeypatch.setattr(head, "end", lambda: calls.append("end"))

    with cluster.local_ray(address="127.0.0.1:1"):
        pass

    assert calls == done


@pytest.fixture
def handlers():
    """Who handles signals is put back afterwards."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def starting(monkeypatch, handlers):
    """What happened in a start of Ray; `during` is done in the middle of it."""
    seen = SimpleNamespace(during=lambda: None, calls=[])

    def stop(*_: object) -> NoReturn:
        seen.calls.append("stopped")
        raise KeyboardInterrupt

    def init(**_: object) -> None:
        utils.set_sigterm_handler(lambda number, _: sys.exit(number))  # as Ray does
        seen.during()
        seen.calls.append("started")

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray_serve, "start", lambda **_: seen.calls.append("serving"))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: seen.calls.append("shutdown"))
    monkeypatch.setattr(head, "problem", lambda: "")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_ray_starts_waits_for_the_start(starting, number):
    """
    Two agents of a Ray that was half started lived on for a minute; SIGTERM, which Ray takes, ended
    without a word and with exit code 15.
    """
    starting.during = lambda: signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt), cluster.local_ray():
        pass
    assert starting.calls == ["started", "stopped", "shutdown"]


def test_a_second_stop_waits_for_nothing(starting):
    starting.during = lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt), cluster.local_ray():
        pass
    assert starting.calls == ["stopped", "shutdown"]


def test_a_stop_while_a_cluster_is_joined_waits_for_nobody(starting):
    """
    Nothing is started then, and a cluster that is away may take long to say so.
    """
    starting.during = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), cluster.local_ray(address="127.0.0.1:1"):
        pass
    assert starting.calls == ["stopped", "shutdown"]


@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])
def test_sigterm_stays_with_who_handles_it(starting, address):
    """
    Ray takes it in native code, too, which Python does not see: that aborted.
    """
    ours = signal.getsignal(signal.SIGTERM)
    starting.during = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with cluster.local_ray(address=address):
        assert signal.getsignal(signal.SIGTERM) is ours
    assert starting.calls == ["started", "serving", "shutdown"]


def test_who_is_within_a_call_to_a_dead_ray_is_not_waited_for():
    """
    Ray ends a process whose calls its head does not answer for a minute: it is started again
    before that, with the reason.
    """
    mended, named = threading.Event(), []

    def mend(what):
        named.append(what)
        mended.set()

    with unless_stuck(lambda: "gcs_server", mend, patience_s=0.0, every_s=0.0):
        assert mended.wait(60.0)  # as if it were a call to Ray

    assert named == ["gcs_server"]


@pytest.mark.parametrize("looks", [[""], ["gcs_server", ""]], ids=["none ended", "it was the end"])
def test_nobody_is_taken_for_stuck_who_is_not(looks):
    """
    Also an ordinary stop ends Ray's processes, and then there is none.
    """
    left, looked, said = list(looks), threading.Event(), []

    def ended():
        if len(left) > 1:
            return left.pop(0)
        looked.set()
        return left[0]

    with unless_stuck(ended, said.append, patience_s=0.0, every_s=0.0):
        assert looked.wait(60.0)

    assert not said


def test_whoever_notices_the_end_itself_is_left_alone():
    looked, said = threading.Event(), []

    def ended():
        looked.set()
        return "raylet"

    with unless_stuck(ended, said.append, patience_s=3600.0, every_s=0.0):
        assert looked.wait(60.0)

    assert not said


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ("", 'Client("127.0.0.1:7480")'),
        (
            f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["route"]\n',
            'Client("127.0.0.1:7480", token="fl_…")',
        ),
        (
            '[listener]\ntls_certificate = "tls.pem"\ntls_key = "tls.key"\n',
            'Client("127.0.0.1:7480", root_certificates=open("ca.pem", "rb").read())',
        ),
    ],
)
def test_the_lines_to_copy_get_in_where_tokens_or_tls_are_asked_for(
    tmp_path, monkeypatch, guard, said
):
    monkeypatch.chdir(tmp_path)
    for name in ("tls.pem", "tls.key"):
        (tmp_path / name).write_text("made up")
    (tmp_path / "fairlead.toml").write_text(guard)

    lines = how_to_call("127.0.0.1:7480", read_settings(tmp_path / "fairlead.toml"))

    assert said in lines
    assert "status --watch" in lines


def test_a_taken_address_is_told_before_ray_starts(tmp_path, monkeypatch, handlers):
    """
    It was told after Ray had started, ten seconds later.
    """
    monkeypatch.setattr(up, "LEFT_S", 0.0)
    monkeypatch.setattr(up, "local_ray", lambda *_: pytest.fail("Ray is started"))
    (port,) = free_ports(1)
    path = tmp_path / "fairlead.toml"
    path.write_text(
        f'state_dir = "{tmp_path}"\n[listener]\nport = {port}\n[[models]]\nname = "a"\n'
    )
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AddressTaken, match=str(port)):
        up.run_until_stopped(path, Console(file=io.StringIO()))


def test_a_reload_while_it_starts_is_done_once_it_is_up(tmp_path, monkeypatch, handlers):
    """
    SIGHUP ended it, in order as a supervisor sees it, so that nobody started it again.
    """
    heard = []

    def serve(_settings, _path, _console, _status, asked) -> None:
        signal.raise_signal(signal.SIGHUP)
        heard.append(asked.is_set())
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "_serve", serve)
    monkeypatch.setattr(up, "local_ray", lambda *_: nullcontext())
    path = tmp_path / "fairlead.toml"
    path.write_text(f'state_dir = "{tmp_path}"\n[[models]]\nname = "a"\n')

    up.run_until_stopped(path, Console(file=io.StringIO()))

    assert heard == [True]


def test_what_a_killed_router_has_left_is_waited_for(monkeypatch):
    looks = iter([AddressTaken("listener.port", "127.0.0.1", 1)] * 2)

    def refuse(_settings) -> None:
        for taken in looks:
            raise taken

    monkeypatch.setattr(up, "refuse_taken", refuse)
    await_addresses(read_settings(None))
