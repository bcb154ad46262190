"""Ports: ones to listen at, and what is said of one that is taken."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.cluster import cluster
from infra.cluster.cluster import running
from infra.errors import AddressTaken, AddressUnusable
from infra.pools.ports import FIRST, LAST, free_ports, is_free, released, why_not
from infra.settings.settings import read_settings


def listening(address: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    listener = socket.create_server(address)
    listener.listen()
    return listener


def test_ports_are_free_different_and_nobody_elses():
    """
    Below those that Linux gives connections, above those that Ray gives its workers.
    """
    ports = free_ports(50)

    assert len(set(ports)) == 50
    assert all(19_999 < FIRST <= port <= LAST < 32_768 for port in ports)
    listeners = [listening(("127.0.0.1", port)) for port in ports]
    for listener in listeners:
        listener.close()


CHOOSE = """
import random
from infra.pools.ports import free_ports
random.seed(7)  # both begin with the same candidates
print(*free_ports(20), flush=True)
input()
"""


def test_two_who_choose_in_the_same_moment_choose_differently():
    """
    A port is held from choice to use: also before anybody listens at it.
    """
    choosers = [
        subprocess.Popen([sys.executable, "-c", CHOOSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    chosen = [chooser.stdout.readline().split() for chooser in choosers]
    for chooser in choosers:
        chooser.communicate("\n", timeout=120.0)

    assert len({*chosen[0], *chosen[1]}) == 40


def test_a_released_port_can_be_chosen_again(monkeypatch):
    [port] = free_ports(1)
    monkeypatch.setattr("random.randint", lambda first, last: port)

    released(port)

    assert free_ports(1) == [port]
    released(port)


def test_port_is_free_until_somebody_listens():
    with listening() as listener:
        port = listener.getsockname()[1]
        assert not is_free(port)
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            pass  # the one who closes first keeps the port in TIME_WAIT
    assert is_free(port)


def test_an_address_may_be_in_brackets():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert not is_free(listener.getsockname()[1], "[::1]")


@pytest.mark.parametrize("host", ["192.0.2.7", "no.such.host.invalid"])
def test_where_nobody_can_listen_nobody_does(host):
    assert is_free(7480, host)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", ""),
        ("192.0.2.7", "this machine does not have that address"),
        ("http://127.0.0.1", "no machine is known by that name"),
        ("x" * 300, "no machine is known by that name"),
    ],
)
def test_where_nobody_can_listen_is_said_before_anything_starts(tmp_path, host, why):
    """
    It was called free by `doctor`, and `up` waited for replicas that could not listen.
    """
    path, numbers = settings_of(tmp_path)
    port = numbers["listener"]["port"]
    path.write_text(path.read_text().replace("[listener]", f'[listener]\nhost = "{host}"'))

    assert why_not(port, host).startswith(why)
    refused = pytest.raises(AddressUnusable, match=why) if why else nullcontext()
    with refused:
        cluster.refuse_taken(read_settings(path))


def settings_of(folder: Path) -> tuple[Path, dict[str, dict[str, int]]]:
    """Settings that listen at four ports, and which those are."""
    ports = free_ports(4)
    numbers = {
        "listener": {"port": ports[0]},
        "dispatch": {"replicas": 1, "port": ports[1], "http_port": ports[2]},
        "metrics": {"port": ports[3]},
    }
    sections = [
        f"[{title}]\n" + "".join(f"{key} = {n}\n" for key, n in of.items())
        for title, of in numbers.items()
    ]
    path = folder / "fairlead.toml"
    models = '[[models]]\nname = "small"\n'
    path.write_text("\n".join([f'state_dir = "{folder}"', *sections, models]))
    return path, numbers


@pytest.mark.parametrize("setting", ["listener.port", "dispatch.http_port", "metrics.port"])
def test_router_does_not_share_a_port_with_a_stranger(tmp_path, setting):
    """
    Replicas bind with SO_REUSEPORT: without asking, two routers would take turns at the calls.
    """
    section, _, name = setting.partition(".")
    path, numbers = settings_of(tmp_path)
    taken = numbers[section][name]

    with (
        listening(("127.0.0.1", taken)),
        pytest.raises(AddressTaken, match=f"{setting}: .*127.0.0.1:{taken}"),
        running(read_settings(path), path),
    ):
        pass


def test_what_was_left_by_a_router_that_was_killed_is_no_stranger(tmp_path, monkeypatch):
    """
    In a cluster that goes on, its replicas do: they are deployed anew where they listen.
    """
    path, numbers = settings_of(tmp_path)
    left = SimpleNamespace(applications={"router": None})
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray_serve, "status", lambda: left)

    with listening(("127.0.0.1", numbers["listener"]["port"])):
        cluster.refuse_taken(read_settings(path))
        left.applications = {"others": None}
        with pytest.raises(AddressTaken):
            cluster.refuse_taken(read_settings(path))
