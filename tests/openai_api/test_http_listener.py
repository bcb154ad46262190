"""The HTTP listener: shares an address, runs where it is put, and stops without losing answers."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading

import httpx2
import openai
import pytest
from scripted_api import (
    ANYONE,
    HELLO,
    PATIENCE_S,
    Api,
    Pause,
    api,
    delta,
    ended,
    piece,
    routed,
)
from starlette.applications import Starlette
from waiting import until

from serve.openai_api.http_listener import HttpListener, HttpListenerOptions

ASKED = [{"role": "user", "content": "Say hello."}]


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


async def tasks_left() -> int:
    """Tasks of this loop but the one that asks."""
    return len(asyncio.all_tasks()) - 1


def test_stopping_finishes_the_answer_under_way():
    """
    No new connection is taken meanwhile, and the stream comes to its end.
    """
    pause, patient = Pause(), HttpListenerOptions(port=0, grace_s=PATIENCE_S)
    with api(listener=patient) as up, up.client() as client:
        up.dispatcher.play(
            routed(), piece("Hel"), pause, piece("lo"), delta(finish_reason="stop"), ended()
        )
        stream = client.chat.completions.create(model="auto", messages=ASKED, stream=True)
        assert next(stream).choices[0].delta.content == "Hel"

        stopping = up.begin(up.listener.stop())
        until(lambda: refused(up.listener.port))
        assert not stopping.done()
        pause.end()

        assert [c.choices[0].delta.content for c in stream] == ["lo", None]
        stopping.result(PATIENCE_S)


@pytest.mark.parametrize("begun", [False, True])
def test_answer_that_takes_longer_than_the_grace_is_cut_off_with_a_reason(begun):
    """
    The pool is told, the client learns why: in a status, or in the stream.
    """
    hurried = HttpListenerOptions(port=0, grace_s=0.05)
    with api(listener=hurried) as up, up.client() as client:
        pause = Pause()
        up.dispatcher.play(*((routed(), piece("Hel"), pause) if begun else (pause,)))
        failures: list[openai.APIError] = []

        def call() -> None:
            try:
                list(client.chat.completions.create(model="auto", messages=ASKED, stream=True))
            except openai.APIError as error:
                failures.append(error)

        calling = threading.Thread(target=call)
        calling.start()
        assert pause.reached.wait(PATIENCE_S)
        up.run(up.listener.stop())
        calling.join(PATIENCE_S)

    assert up.dispatcher.closed.is_set()
    (failure,) = failures
    assert failure.code == "not_serving"
    if not begun:
        assert failure.status_code == 503
        assert failure.response.headers["connection"] == "close"


def test_client_that_does_not_read_does_not_hold_up_a_stop():
    """
    Its socket is full, so no farewell gets through: the connection is dropped.
    """
    hurried = HttpListenerOptions(port=0, grace_s=0.05)
    with api(listener=hurried) as up:
        up.dispatcher.play(routed(), *[piece("x" * 65_536)] * 2000, ended())
        body = b'{"stream": true, "messages": [{"role": "user", "content": "x"}]}'
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", up.listener.port)) as raw:
            raw.sendall(head.encode() + body)
            assert raw.recv(100)
            up.run(up.listener.stop())
            assert up.dispatcher.closed.is_set()
            until(lambda: up.run(tasks_left()) == 0)  # while the client is still there


def test_replicas_share_a_port():
    """
    Each has connections of its own; one goes, the other stays.
    """
    with api() as one:
        with api(listener=HttpListenerOptions(port=one.listener.port)) as other:
            assert other.listener.port == one.listener.port
            asked = (one.dispatcher.asks, other.dispatcher.asks)
            for up in (one, other):
                up.dispatcher.play(*HELLO)

            def call() -> bool:
                with one.client() as client:
                    client.chat.completions.create(model="auto", messages=ASKED)
                return all(asked)

            until(call)
        assert httpx2.get(f"{one.root}/health").status_code == 200


def test_address_that_is_taken_is_an_error_at_the_start():
    """
    By someone who does not share it.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = Api(ANYONE, HttpListenerOptions(port=taken.getsockname()[1]))
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRINUSE):
            up.start()
        up.stop()


def test_signals_are_left_to_the_process():
    """
    uvicorn would take SIGTERM and SIGINT for its own, where it runs in the main thread.
    """

    async def up_and_down():
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        listener = HttpListener(Starlette(), HttpListenerOptions(port=0))
        await listener.start()
        assert listener.port > 0
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
        await listener.stop()
        await listener.stop()  # once more does no harm

    assert threading.current_thread() is threading.main_thread()
    asyncio.run(up_and_down())
