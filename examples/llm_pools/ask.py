"""Asks questions, of one model or of the router, and tells the router how good each answer was.

    question ──▶ model "auto" ──▶ answer, x-fairlead-model, x-fairlead-ticket
                                    │ check                      │
                                    └── quality 0 or 1 ──────────┴──▶ feedback

The router sees how long answers take; what they are worth only the asker knows.

The same request goes to a model and to the router, so that the two compare.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator

import openai
from answered import Answered
from questions import Question

from fairlead import Client

TIMEOUT_S = 60.0
AUTO = "auto"  # the router chooses


def ask_model(
    url: str,
    model: str,
    questions: Iterable[Question],
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[Answered]:
    """Ask one model's own server, one question at a time."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as server:
        for question in questions:
            _, answered = _ask(server, model, question, clock_s)
            yield answered


def ask_router(
    url: str,
    router: Client,
    questions: Iterable[Question],
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[Answered]:
    """Let the router choose, one question at a time, and report every answer's quality."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as server:
        for question in questions:
            ticket, answered = _ask(server, AUTO, question, clock_s)
            router.send_feedback(ticket, quality=answered.quality)
            yield answered


def _ask(
    server: openai.OpenAI, model: str, question: Question, clock_s: Callable[[], float]
) -> tuple[bytes, Answered]:
    began_s = clock_s()
    response = server.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        max_tokens=24,  # a sentence; who needs more to say one word has missed the point
        temperature=0,  # the likeliest answer, the same every time
        stop=["\n"],  # only the first line is checked
    )
    answer = response.parse().choices[0].message.content or ""
    return _ticket(response.headers.get("x-fairlead-ticket", "")), Answered(
        question=question,
        model=response.headers.get("x-fairlead-model", model),
        answer=answer,
        quality=question.quality(answer),
        took_s=clock_s() - began_s,
    )


def _ticket(text: str) -> bytes:
    """Base64url, written without its padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
