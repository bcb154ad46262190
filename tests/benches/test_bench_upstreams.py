"""The bench of misbehaving servers: a few of them, and that it notices what it is there for."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
import uvloop

from fairlead.channels import connect
from fairlead.commands.upstreams import show
from load.bench.upstreams import bench
from load.bench.upstreams.answers import put_together, same_message
from load.bench.upstreams.cases import all_misbehaviours
from load.bench.upstreams.dispatchers import dispatchers, write_settings
from load.bench.upstreams.server import SOUND, MisbehavingServer
from serve.dispatch.backend import Piece
from serve.openai_api.reply import StreamWriter

CASES = {one.name: one for one in all_misbehaviours()}
SOME = [
    "plain",
    "two calls of index 0",
    "name in every chunk",
    "half an emoji as bytes",
    "422",
    "refuses to stream",
    "a pause that is too long",
    "500",
]


def measured(*names: str, questions: int = 1) -> dict:
    chosen = tuple(CASES[name] for name in names)
    options = bench.UpstreamsBench(misbehaviours=chosen, questions=questions)
    return bench.measure(options, connect, lambda text: None)


def test_no_answer_is_wrong_and_no_pool_is_ejected_for_its_callers_faults(capsys):
    """
    Odd streams come out as they were meant, pools' faults are answered by the other model.
    """
    found = measured(*SOME, questions=6)

    assert (found["wrong"], found["ejected_by_callers"]) == (0, 0)
    assert found["n"] == 6 * 3 * len(SOME)
    assert json.loads(json.dumps(found)) == found
    plain, failing = (found["misbehaviours"][name]["grpc"] for name in ("plain", "500"))
    assert plain == {
        "answered": 6, "itself": 6, "right": 6, "attempts": 6,
        "ejected": False, "expected": True, "problem": "",
    }  # fmt: skip
    assert (failing["answered"], failing["itself"], failing["right"]) == (6, 0, 6)
    assert failing["ejected"] and failing["expected"]

    show(found)
    assert "0 answers wrong" in capsys.readouterr().out


def test_a_chunk_that_is_not_passed_on_is_noticed(monkeypatch):
    """The dispatcher loses every second piece: all answers of streams are wrong."""
    passed_on = StreamWriter._piece

    def lossy(self, answer: int, piece: Piece) -> bytes:
        return passed_on(self, answer, replace(piece, delta={}) if piece.text == ", " else piece)

    monkeypatch.setattr(StreamWriter, "_piece", lossy)

    found = measured("plain")

    rows = found["misbehaviours"]["plain"]
    assert found["wrong"] == 1
    assert not rows["http_streamed"]["expected"]
    assert "plain" in rows["http_streamed"]["problem"]
    assert rows["http_whole"]["expected"]


def test_what_misbehaviours_must_come_to_is_not_what_comes_of_others(capsys):
    """A misbehaviour stated to be sound is reported; so is an ejection for a caller's fault."""
    wrongly_stated = replace(CASES["500"], name="[500]", fault="caller")
    options = bench.UpstreamsBench(misbehaviours=(wrongly_stated,))

    found = bench.measure(options, connect, lambda text: None)

    assert found["ejected_by_callers"] == len(bench.WAYS)
    assert found["unexpected"] == len(bench.WAYS)
    show(found)
    printed = capsys.readouterr().out
    assert printed.count("[500]") == len(bench.WAYS)
    assert "3 pools ejected" in printed


@pytest.mark.parametrize(
    "name", ["two calls of index 0", "calls without an index", "name in every chunk"]
)
def test_the_official_client_puts_a_stream_together_as_it_was_meant(name, tmp_path):
    """Its `stream` helper joins by position and refuses parts without one."""
    it = CASES[name]

    async def asked() -> dict:
        async with MisbehavingServer([it]) as server:
            path = write_settings(tmp_path, [it], server.url)
            async with dispatchers(path, 1) as (up,):
                url = f"http://127.0.0.1:{up.http_port}/v1"
                async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
                    ours = {"fairlead": {"allowed_models": [it.name, SOUND]}}
                    messages = [{"role": "user", "content": "Hello"}]
                    stream = client.chat.completions.stream(
                        model="auto", messages=messages, extra_body=ours
                    )
                    async with stream as events:
                        async for _ in events:
                            pass
                        (choice,) = (await events.get_final_completion()).choices
                        return choice.message.to_dict()

    message = uvloop.run(asked())

    for call in message["tool_calls"]:
        call["function"].pop("parsed_arguments", None)  # the client's own
    assert same_message(message, it.message)


def test_messages_are_the_same_if_all_that_carries_something_is():
    parts = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}]

    assert same_message(put_together(parts), {"content": "ab"})
    assert not same_message(put_together(parts), {"content": "abc"})
    assert not same_message({"content": "ab", "refusal": "no"}, {"content": "ab"})
