"""Two language models on the CPU, a router before them, and questions to learn from.

    model_server.py smollm2-135m ─┐                            1. every question to both models
                                  ├◀── fairlead up ◀── ask.py  2. the same ones to the router
    model_server.py gemma3-270m  ─┘                            3. tables

`make llm-pools` runs this. With --direct only both models are asked, without a router.

Whatever was started here is ended here, by its process id, however this ends.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import openai
from answered import Answered
from ask import ask_model, ask_router
from questions import Question, draw, per_kind_max
from report import Matrix, matrix_table, others_than_before, routed_table, worth_table

from fairlead import Client

HERE = Path(__file__).parent
MODELS = ("smollm2-135m", "gemma3-270m")
ROUTER, OPENAI = "127.0.0.1:7490", "http://127.0.0.1:7491/v1"
POINTS_PER_S = 0.5  # 0.1 s is worth 0.05 of quality: it decides where both are about as good
READY_S_MAX = 120.0  # Ray's first start on a busy machine
END_S_MAX = 20.0
TELL_EVERY = 60  # questions

SETTINGS = """\
# Written by examples/llm_pools/run.py.
state_dir = "{folder}/state"

[router]
replicas = 1  # the models need the cores
# SquareCB's γ, √(models · questions), so that some hundred questions are enough to learn from. By
# that measure the default, 1000, is for half a million: here it would keep to the first impression.
policy_strength = {gamma:.0f}

[dispatch]
replicas = 1
hedge_share_max = 0  # a second call beside a late one would only make both later

[preference]
latency = {points_per_s}

[learning]
# Some hundred outcomes, not thousands: less doubt, and fewer neighbours.
own_penalty = 10
neighbours = 16
"""
MODEL = """
[[models]]
name = "{name}"
latency_ms = 300  # a guess, the same for all
output_tokens = 10

[[pools]]
name = "{name}-cpu"
model = "{name}"
backend = "openai"
urls = ["{url}"]
upstream_model = "{name}"
"""


class ChildFailed(Exception):
    """A process ended, or was not ready in time. Its log says why."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} ended, or was not up within {READY_S_MAX:.0f} s: see {log}")


def main() -> None:
    """Ask, route, show."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same way out as Ctrl-C
    questions = draw(options.per_kind, random.Random(options.seed))
    options.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as children:
        urls = {name: children.enter_context(_model(name, options.folder)) for name in MODELS}
        matrix = {name: _ask_all(name, url, questions) for name, url in urls.items()}
        print(f"\n{matrix_table(matrix)}\n", flush=True)
        if options.direct:
            return
        children.enter_context(_fairlead(options.fairlead, options.folder, urls, len(questions)))
        with Client(ROUTER) as router:
            asked = ask_router(OPENAI, router, questions)
            routed = list(_telling("the router", asked, len(questions)))
    _show(matrix, routed)


def _show(matrix: Matrix, routed: Sequence[Answered]) -> None:
    print(f"\n{routed_table(matrix, routed, POINTS_PER_S)}")
    print(f"\n{worth_table(matrix, routed, POINTS_PER_S)}")
    differ = others_than_before(matrix, routed)
    print(
        f"\nUtility is quality less {POINTS_PER_S} points a second. The second time, a model said"
    )
    print(f"something else to {differ} of {len(routed)} questions.")


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--per-kind", type=int, default=per_kind_max(), help="questions a kind")
    arguments.add_argument("--seed", type=int, default=0, help="which questions, in which order")
    arguments.add_argument("--folder", type=Path, default=Path(".fairlead/llm-pools"))
    arguments.add_argument("--fairlead", default="fairlead", help="the command with that name")
    arguments.add_argument("--direct", action="store_true", help="only ask both models")
    return arguments.parse_args()


def _ask_all(name: str, url: str, questions: Sequence[Question]) -> dict[Question, Answered]:
    asked = ask_model(url, name, questions)
    return {one.question: one for one in _telling(name, asked, len(questions))}


def _telling(name: str, answered: Iterable[Answered], n: int) -> Iterator[Answered]:
    right = 0.0
    for i, one in enumerate(answered, start=1):
        right += one.quality
        if i % TELL_EVERY == 0 or i == n:
            print(f"{name}: {i} of {n} questions, {right / i:.0%} right", flush=True)
        yield one


@contextlib.contextmanager
def _model(name: str, folder: Path) -> Iterator[str]:
    """One model's server on a free port; gives its URL."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/v1"
    command = [sys.executable, str(HERE / "model_server.py"), name, "--port", str(port)]
    with _child(name, [*command, "--folder", str(folder)], folder, url):
        yield url


@contextlib.contextmanager
def _fairlead(command: str, folder: Path, urls: dict[str, str], n_questions: int) -> Iterator[None]:
    """A router that knows nothing yet, before these models."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    settings = folder / "fairlead.toml"
    settings.write_text(settings_of(folder, urls, n_questions))
    with _child("fairlead", [command, "up", "-s", str(settings)], folder, OPENAI):
        yield


def settings_of(folder: Path, urls: dict[str, str], n_questions: int) -> str:
    """The settings file of a router before these models, for so many questions."""
    gamma = math.sqrt(len(urls) * n_questions)
    general = SETTINGS.format(folder=folder, points_per_s=POINTS_PER_S, gamma=gamma)
    return general + "".join(MODEL.format(name=name, url=url) for name, url in urls.items())


@contextlib.contextmanager
def _child(name: str, command: list[str], folder: Path, url: str) -> Iterator[None]:
    """A process that serves OpenAI's API at `url`, until the block is left."""
    path = folder / f"{name}.log"
    with path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
        try:
            _wait_until_ready(child, name, path, url)
            yield
        finally:
            child.terminate()
            try:
                child.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                child.kill()


def _wait_until_ready(child: subprocess.Popen[bytes], name: str, log: Path, url: str) -> None:
    """Raises ChildFailed."""
    deadline_s = time.monotonic() + READY_S_MAX
    while not _answers(url):
        if child.poll() is not None or time.monotonic() > deadline_s:
            raise ChildFailed(name, log)
        time.sleep(0.2)


def _answers(url: str) -> bool:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=2.0) as server:
        try:
            return bool(server.models.list().data)
        except openai.OpenAIError:
            return False


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


if __name__ == "__main__":
    try:
        main()
    except ChildFailed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit("Stopped, and everything that was started.")
