"""The clients of examples/: made from the protos in other languages, run against a real listener."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from certificates import self_signed
from router_bench import Router, router

from serve.access.tokens import Access, Token, digest_of
from serve.encoders import EncoderOptions
from serve.grpc_api.listener import Listener, ListenerOptions

pytestmark = pytest.mark.slow  # compiling takes a minute where nothing is cached

EXAMPLES = Path(__file__).parents[2] / "examples"
PROTOS = EXAMPLES.parent / "serve" / "proto"
BUILD_S = 900.0  # only what hangs takes so long: a busy machine compiles for minutes
PATIENCE_S = 240.0  # a JVM starts within seconds where it has a core
TOKEN = "fl_example"
TOKENS = [Token(name="example", sha256=digest_of(TOKEN.encode()), scopes=("route", "feedback"))]
KEY, CERTIFICATE = self_signed()
TEXT = EncoderOptions(kind="hashing")


Command = list[str]


@dataclass(frozen=True, slots=True)
class Example:
    """How one is built, by a program that must be there, and what runs it then.

    `offline` is what its last command is told where all that it needs has been fetched before.
    """

    program: str
    build: list[Command]
    run: Command
    offline: Command = field(default_factory=list)


LANGUAGES = {
    "go": Example(
        "go",
        [["./generate.sh"], ["go", "vet", "."], ["go", "build", "-o", "client", "."]],
        ["{folder}/client"],
    ),
    "java": Example(
        "mvn",
        [["mvn", "--quiet", "--batch-mode", "package", f"-Dprotos={PROTOS}"]],
        ["java", "-jar", "{folder}/target/client.jar"],
        ["--offline"],
    ),
}


@pytest.fixture(scope="session", params=LANGUAGES)
def client(request, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The example, generated and compiled as its first lines say: the command that runs it."""
    language, example = request.param, LANGUAGES[request.param]
    if shutil.which(example.program) is None:
        _skip_loudly(language, f"there is no `{example.program}` on the PATH")
    folder = tmp_path_factory.mktemp(language) / "example"
    made = shutil.ignore_patterns("bin", "fairlead", "target")
    shutil.copytree(EXAMPLES / language, folder, ignore=made)
    env = os.environ | {
        "PROTOC": f"{sys.executable} -m grpc_tools.protoc",
        "PROTOS": str(PROTOS),
    }

    def build(command: Command) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=BUILD_S,
            check=False,
        )  # fmt: skip

    for command in example.build:
        done = build([*command, *example.offline])
        if done.returncode and example.offline:  # the first time it has to be fetched
            done = build(command)
        said = done.stdout + done.stderr
        if done.returncode and re.search(r"dial tcp|lookup|i/o timeout|Could not transfer", said):
            _skip_loudly(language, f"what it needs can't be fetched: {said[-300:]}")
        assert done.returncode == 0, said
    return [part.format(folder=folder) for part in example.run]


def _skip_loudly(language: str, why: str) -> None:
    warnings.warn(f"The client in {language} is NOT tested: {why}", stacklevel=2)
    pytest.skip(why)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with router(tmp_path_factory.mktemp("router"), encoder=TEXT, tokens=TOKENS) as found:
        yield found


def run(client: Command, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD")}
    return subprocess.run(
        [*client, address], env=kept | environment, capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip


def check_said(done: subprocess.CompletedProcess[str]) -> None:
    """A decision, its feedback, and a stream in which one request fails alone."""
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert re.fullmatch("model (small|medium|large)", said[0])
    assert said[1] == "accepted 1"
    assert "s1 decided" in said[2:]
    (failed,) = [line for line in said[2:] if line != "s1 decided"]
    assert failed.startswith("s2 failed: ")
    assert "no-such-model" in failed


def test_decides_reports_and_streams_with_a_token(client, up):
    check_said(run(client, f"127.0.0.1:{up.replica.port}", FAIRLEAD_TOKEN=TOKEN))


def test_the_same_over_tls(client, up, tmp_path):
    """
    With the authority's certificate; without it the router is not trusted, and never asked.
    """
    authority = tmp_path / "ca.pem"
    authority.write_bytes(CERTIFICATE)
    options = ListenerOptions(port=0, tls_certificate=CERTIFICATE, tls_key=KEY)

    async def start() -> Listener:
        listener = Listener(up.replica.servicers, options, Access(TOKENS))
        await listener.start()
        return listener

    listener = up.run(start())
    try:
        address = f"localhost:{listener.port}"
        check_said(run(client, address, FAIRLEAD_TOKEN=TOKEN, FAIRLEAD_CA=str(authority)))
        plain = run(client, address, FAIRLEAD_TOKEN=TOKEN)
        assert "without a decision" in plain.stderr
    finally:
        up.run(listener.stop())


def test_a_wrong_token_is_an_error_and_no_reason_to_fall_back(client, up):
    done = run(client, f"127.0.0.1:{up.replica.port}", FAIRLEAD_TOKEN="fl_wrong")
    assert done.returncode == 1
    assert "unauthenticated" in done.stderr.lower()


def test_falls_back_where_no_router_is(client):
    """
    Port 9 of this host: nothing listens there.
    """
    done = run(client, "127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, "model small\n")
    assert "without a decision" in done.stderr
