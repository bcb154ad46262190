"""Ports: ones to listen at, and what is said of one that is taken."""

from __future__ import annotations

import socket

import pytest

from infra.cluster import running
from infra.errors import AddressTaken
from infra.ports import FIRST, LAST, free_ports, is_free
from infra.settings import read_settings


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


@pytest.mark.parametrize("setting", ["listener.port", "dispatch.http_port", "metrics.port"])
def test_router_does_not_share_a_port_with_a_stranger(tmp_path, setting):
    """
    Replicas bind with SO_REUSEPORT: without asking, two routers would take turns at the calls.
    """
    section, _, name = setting.partition(".")
    ports = dict(zip(("a", "b", "c", "d"), free_ports(4), strict=True))
    numbers = {
        "listener": {"port": ports["a"]},
        "dispatch": {"replicas": 1, "port": ports["b"], "http_port": ports["c"]},
        "metrics": {"port": ports["d"]},
    }
    path = tmp_path / "fairlead.toml"
    path.write_text(
        f'state_dir = "{tmp_path}"\n'
        + "".join(
            f"[{title}]\n" + "".join(f"{key} = {n}\n" for key, n in of.items())
            for title, of in numbers.items()
        )
        + '[[models]]\nname = "small"\n'
    )
    taken = numbers[section][name]

    with (
        listening(("127.0.0.1", taken)),
        pytest.raises(AddressTaken, match=f"{setting}: .*127.0.0.1:{taken}"),
        running(read_settings(path), path),
    ):
        pass
