"""Every error class of a module, and an instance of each: what the tables of statuses are checked with."""

from __future__ import annotations

import inspect

SENTENCE = "what happened, with its numbers"


# Errors of the folder below that no call can meet: they stop a trainer, or a start.
NEVER_IN_A_CALL = {
    "StreamError", "LogTruncated", "LogReplaced", "RecordTooLarge", "TopicUnfit", "OptionRefused",
    "SnapshotError", "SnapshotDamaged", "SnapshotForeign", "SnapshotFenced", "BadTelemetry", "AnswersRefused",
}  # fmt: skip


def classes(module) -> list[type[Exception]]:
    """All error classes a module defines."""
    return [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Exception) and c.__module__ == module.__name__
    ]


def an(kind: type[Exception]) -> Exception:
    """An instance, with arguments of the kinds its constructor names."""
    if kind.__init__ is Exception.__init__:
        return kind(SENTENCE)
    hints = list(inspect.signature(kind).parameters.values())
    return kind(*(_argument(str(hint.annotation)) for hint in hints))


def _argument(annotation: str) -> object:
    if annotation.startswith("tuple"):
        return ("one", "two")
    return 7 if annotation in ("int", "float", "float | None") else "text"
