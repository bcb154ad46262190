"""From judged answers in a file to records of the feedback log.

    answers ─encoder─▶ contexts ─┐
    catalogue: what is stated ───┴─▶ tickets ─▶ feedback records ─▶ the trainer, like any other

A ticket's id is made of the answer's content. So an answer counts once, however often its file is
imported, in whichever file it stands and whatever crashes in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.encoders import Encoder, identity
from serve.errors import InvalidRequest
from serve.routing.catalogue import Catalogue
from serve.routing.request import BYTES_PER_TOKEN
from streams.feedback.answers_file import Answer
from streams.feedback.report import IMPORT, encode_report
from streams.feedback.ticket import HEAD, Sealer, content_ids, key_of

AT_ONCE = 512  # answers encoded together: bounds the memory


def feedback_records(
    answers: Sequence[Answer], catalogue: Catalogue, encoder: Encoder, sealer: Sealer, now_ms: int
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Keys and values for the feedback topic, in batches. Raises ServeError."""
    for start in range(0, len(answers), AT_ONCE):
        part = answers[start : start + AT_ONCE]
        ids = content_ids([answer.content for answer in part])
        heads = _heads(part, catalogue, encoder, now_ms)
        tickets = sealer.seal_imported(ids, heads, [b""] * len(part))
        yield [
            (one.hex().encode(), encode_report(ticket, **_reported(answer)))
            for one, ticket, answer in zip(ids, tickets, part, strict=True)
        ]


def _reported(answer: Answer) -> dict[str, Any]:
    names = ("quality", "cost_usd", "latency_ms")
    return {name: value for name in names if (value := getattr(answer, name)) is not None}


def _heads(
    answers: Sequence[Answer], catalogue: Catalogue, encoder: Encoder, now_ms: int
) -> NDArray[np.void]:
    tokens = np.array([_tokens(answer) for answer in answers], np.float64)
    heads = np.zeros(len(answers), HEAD)
    heads["decided_at_ms"] = now_ms
    heads["encoder"] = key_of(identity(encoder))
    heads["model"] = [key_of(answer.model) for answer in answers]
    heads["pool"] = [_pool_key(answer.model, catalogue) for answer in answers]
    heads["propensity"] = 1.0
    heads["policy"] = key_of(IMPORT)
    heads["estimated_quality"] = heads["estimated_cost_usd"] = np.nan
    heads["context"] = encoder.projection.contexts(
        _embeddings(answers, encoder), tokens.astype(np.float32)
    )
    # Of a model that is not in the catalogue yet nothing is stated; its cost in dollars is learned.
    columns = [catalogue.column_of.get(answer.model, -1) for answer in answers]
    known = np.flatnonzero(np.array(columns) >= 0)
    column = np.array(columns)[known]
    heads["expected_cost_usd"][known] = catalogue.expected_cost_usd(tokens)[known, column]
    heads["expected_latency_ms"][known] = catalogue.latency_ms[column]
    return heads


def _pool_key(model: str, catalogue: Catalogue) -> int:
    column = catalogue.column_of.get(model)
    return key_of(model if column is None else catalogue.pools_of[column][0].name)


def _tokens(answer: Answer) -> float:
    if answer.prompt_tokens is not None or answer.text is None:
        return float(answer.prompt_tokens or 0)
    return max(1.0, len(answer.text.encode()) / BYTES_PER_TOKEN)


def _embeddings(answers: Sequence[Answer], encoder: Encoder) -> NDArray[np.float32]:
    """Vectors (n, dim): as given, or of the texts. Raises ServeError."""
    found = np.zeros((len(answers), encoder.dim), np.float32)
    texts = [row for row, answer in enumerate(answers) if answer.text is not None]
    for row, answer in enumerate(answers):
        if answer.embedding is not None:
            if len(answer.embedding) != encoder.dim:
                n = len(answer.embedding)
                raise InvalidRequest("embedding", f"{n} numbers long", f"{encoder.dim} long")
            found[row] = answer.embedding
    if texts:
        found[texts] = encoder.encode([answers[row].text or "" for row in texts])
    if not np.isfinite(found).all():
        raise InvalidRequest("embedding", "not finite", "finite numbers")
    return found
