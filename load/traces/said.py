"""What a trace's rows say of their requests: tenant, task, tags, modality, criticality, session.

    columns ──distinct values, each checked once──▶ kinds, and which one each row is of

A value has to be what a request may say: what a router would refuse is refused here, with its row.
Nothing there is nothing said. Sessions are many: a row has its session's hash, and no kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.criticality import Criticality
from load.data.kinds import KINDS_MAX, Kind
from load.errors import TraceRefused
from load.traces.fields import LISTED, Fields
from serve.errors import InvalidRequest
from serve.routing.request import (
    NAME_BYTES_MAX,
    TENANT_BYTES_MAX,
    modality_of,
    text_of,
    word,
    words,
)
from serve.shared_memory import hash_of

SESSION = "session"
BETWEEN_TAGS = ";"  # where they are one text, as in CSV


def kinds_of(fields: Fields) -> tuple[NDArray[np.intp] | None, tuple[Kind, ...]]:
    """The kind of each row (n,), and the kinds, in the order in which they come; None where no
    column says anything. Raises TraceRefused.
    """
    there = [name for name in COLUMNS if name in fields]
    if not there:
        return None, ()
    number, said = np.zeros(fields.n, np.intp), {}
    for name in there:
        codes, texts = fields.coded(name)
        said[name] = codes, _checked(fields, name, codes, texts, COLUMNS[name])
        # Renumbered at once: products of many columns' counts would overflow.
        number = np.unique(number * len(texts) + codes, return_inverse=True)[1]
    _, first, number = np.unique(number, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they come
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    kinds = tuple(
        Kind(**{name: values[codes[row]] for name, (codes, values) in said.items()})
        for row in first[order[: KINDS_MAX + 1]].tolist()
    )
    return rank[number], kinds


def sessions_of(fields: Fields) -> NDArray[np.uint64] | None:
    """Hashes (n,) of the conversations that rows belong to, 0 of none. Raises TraceRefused."""
    if SESSION not in fields:
        return None
    codes, texts = fields.coded(SESSION)
    _checked(fields, SESSION, codes, texts, partial(text_of, NAME_BYTES_MAX, SESSION))
    hashes = [int.from_bytes(hash_of(text)[:8], "little") if text else 0 for text in texts]
    return np.array(hashes, np.uint64)[codes]


def numbered(file: str, known: dict[Kind, int], kinds: tuple[Kind, ...]) -> NDArray[np.intp]:
    """The numbers of a part's kinds among all that are `known`, which are added to them.

    Raises TraceRefused where there are too many to tell apart.
    """
    found = np.array([known.setdefault(kind, len(known)) for kind in kinds], np.intp)
    if len(known) > KINDS_MAX:
        raise TraceRefused(
            file,
            "",
            f"has more than {KINDS_MAX:,} combinations of {', '.join(COLUMNS)}: leave out the "
            "column that tells nearly every row from the others, or make groups of its values",
        )
    return found


def _checked(
    fields: Fields,
    name: str,
    codes: NDArray[np.intp],
    texts: list[str],
    check: Callable[[str], Any],
) -> list[Any]:
    """Distinct texts as what they mean; each is refused with the first row that has it."""
    found = []
    for code, text in enumerate(texts):
        try:
            found.append(check(text))
        except InvalidRequest as error:
            row = int((codes == code).argmax())
            fields.refuse(name, row, f"is {text[:40]!r}: {error.limit} is due")
    return found


def _tags(text: str) -> tuple[str, ...]:
    parts = text.split(LISTED if LISTED in text else BETWEEN_TAGS)
    return words("tags", [part.strip() for part in parts if part.strip()])


def _criticality(text: str) -> Criticality:
    if not text:
        return Criticality.CRITICAL
    name = text.lower().replace("-", "_").replace(" ", "_")
    if name not in Criticality.words():
        raise InvalidRequest("criticality", text, f"one of {', '.join(Criticality.words())}")
    return Criticality[name.upper()]


COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "tenant": partial(text_of, TENANT_BYTES_MAX, "tenant"),
    "task": partial(word, "task"),
    "tags": _tags,
    "modality": lambda text: text and modality_of("modality", text),
    "criticality": _criticality,
}
