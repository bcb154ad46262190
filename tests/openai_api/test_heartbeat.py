"""Comments in streams that are silent, read as proxies and clients read them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest
from scripted_api import HELLO, PATIENCE_S, Pause, api, ended, piece, routed

from serve.errors import NoAnswer
from serve.openai_api.app import HttpOptions
from serve.openai_api.heartbeat import COMMENT

SILENT = HttpOptions(heartbeat_s=0.02)
ASKED = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
LINE = COMMENT.decode().strip()


def lines(response: httpx2.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line)


def test_a_late_first_token_is_announced_by_comments_and_the_stream_goes_on():
    """
    Its status is 200 then, and no header says who answers: the last chunk does.
    """
    with api(SILENT) as up:
        pause = Pause()
        up.dispatcher.play(pause, *HELLO)
        with httpx2.stream("POST", f"{up.root}/v1/chat/completions", json=ASKED) as got:
            coming = lines(got)
            assert [next(coming), next(coming)] == [LINE, LINE]
            assert got.status_code == 200
            assert "x-fairlead-model" not in got.headers
            pause.end()
            rest = [line for line in coming if line != LINE]

    assert rest[-1] == "data: [DONE]"
    assert '"model":"small"' in rest[0]


def test_comments_come_in_a_pause_and_nowhere_else():
    """Between events only: the official client reads the answer as if there were none."""
    with api(SILENT) as up:
        pause = Pause()
        up.dispatcher.play(
            routed(), piece("Hel"), pause, piece("lo", finish_reason="stop"), ended()
        )
        with httpx2.stream("POST", f"{up.root}/v1/chat/completions", json=ASKED) as got:
            coming = lines(got)
            assert "Hel" in next(coming)
            assert got.headers["x-fairlead-model"] == "small"
            assert next(coming) == LINE
            pause.end()
            assert LINE not in list(coming)[-3:]

        up.dispatcher.play(*HELLO)
        stream = up.client().chat.completions.create(**ASKED)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello"


def test_a_failure_after_a_comment_ends_the_stream_with_an_error():
    with api(SILENT) as up:
        pause = Pause()
        up.dispatcher.play(pause, NoAnswer("dispatch", "all pools are gone"))
        with httpx2.stream("POST", f"{up.root}/v1/chat/completions", json=ASKED) as got:
            coming = lines(got)
            assert next(coming) == LINE
            pause.end()
            (error,) = [line for line in coming if line != LINE]
        assert '"error"' in error and "all pools are gone" in error

        up.dispatcher.play(pause := Pause(), NoAnswer("dispatch", "all pools are gone"))
        stream = up.client(timeout=PATIENCE_S).chat.completions.create(**ASKED)
        pause.end()
        with pytest.raises(openai.APIError, match="all pools are gone"):
            list(stream)


@pytest.mark.parametrize(
    ("options", "asked"),
    [(HttpOptions(heartbeat_s=0.0), ASKED), (SILENT, ASKED | {"stream": False})],
    ids=["switched off", "not streamed"],
)
def test_no_comment_comes_where_none_is_wanted(options, asked):
    """The status waits for the first token, which an answer in one piece needs anyway."""
    with api(options) as up:
        up.dispatcher.play(NoAnswer("dispatch", "all pools are gone"))
        got = httpx2.post(f"{up.root}/v1/chat/completions", json=asked)
        assert got.status_code == 503

        up.dispatcher.play(*HELLO)
        assert LINE not in httpx2.post(f"{up.root}/v1/chat/completions", json=asked).text
