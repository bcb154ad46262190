"""What two models can do, and what a router made of it, as plain tables.

    every question, asked of both models ──▶ quality and time per kind and model
    the same questions, asked of the router ──▶ who got what at first and at last, and its worth

Both models' answers to every question are known, so "random" and "the better model of each kind"
are no guesses: they are what would have happened.

A comparison is over the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from answered import Answered
from questions import KINDS, Question

# Model → question → its answer.
Matrix = Mapping[str, Mapping[Question, Answered]]
# What the router did with a question → what was done instead; several are equally likely.
Choice = Callable[[Answered], list[Answered]]


def matrix_table(matrix: Matrix) -> str:
    """Quality and milliseconds per kind and model; a * marks a kind's better quality."""
    lines = [_row("kind: quality, time", *matrix)]
    for kind in KINDS:
        cells = {model: _of(kind, answers.values()) for model, answers in matrix.items()}
        best = max(_quality(cell) for cell in cells.values())
        lines.append(_row(kind, *(_cell(cell, best) for cell in cells.values())))
    return "\n".join([*lines, _row("all", *(_cell(list(a.values()), 2) for a in matrix.values()))])


def routed_table(matrix: Matrix, routed: Sequence[Answered], points_per_s: float) -> str:
    """Per kind: the model that is worth more, and its share in the first and last quarter."""
    better = better_models(matrix, points_per_s)
    first, last = quarters(routed)
    lines = [_row("kind", "worth more", "its share at first", "in the last quarter")]
    for kind, model in better.items():
        lines.append(_row(kind, model, *(_share(model, _of(kind, part)) for part in (first, last))))
    shares = (fmean(a.model == better[a.question.kind] for a in part) for part in (first, last))
    return "\n".join([*lines, _row("all", "", *(f"{share:.0%}" for share in shares))])


def worth_table(matrix: Matrix, routed: Sequence[Answered], points_per_s: float) -> str:
    """What the router was worth per question, and what else one could have done.

    Its first line is as measured, with the router's own time and the machine's mood of the moment.
    All others are taken from what both models did when asked directly, so they compare exactly.
    """
    better = better_models(matrix, points_per_s)
    ways: dict[str, Choice] = {
        "the router, as measured": lambda answered: [answered],
        "the router's choices": lambda one: [matrix[one.model][one.question]],
        "either, by chance": lambda one: [answers[one.question] for answers in matrix.values()],
        **{f"always {model}": _always(model, matrix) for model in matrix},
        "each kind's better one": lambda one: [matrix[better[one.question.kind]][one.question]],
        "each question's better one": lambda one: [
            max(
                (answers[one.question] for answers in matrix.values()),
                key=lambda answered: answered.utility(points_per_s),
            )
        ],
    }
    lines = [_row("per question", "quality", "ms", "utility", "in the last quarter")]
    for name, choose in ways.items():
        everything = [one for answered in routed for one in choose(answered)]
        at_last = [one for answered in quarters(routed)[1] for one in choose(answered)]
        worth = (fmean(a.utility(points_per_s) for a in part) for part in (everything, at_last))
        figures = (f"{_quality(everything):.2f}", f"{_ms(everything):.0f}")
        lines.append(_row(name, *figures, *(f"{one:.3f}" for one in worth)))
    return "\n".join(lines)


def others_than_before(matrix: Matrix, routed: Sequence[Answered]) -> int:
    """How many answers differ from what the same model said when it was asked directly."""
    return sum(matrix[one.model][one.question].answer != one.answer for one in routed)


def better_models(matrix: Matrix, points_per_s: float) -> dict[str, str]:
    """Per kind, the model of the higher mean utility."""

    def worth(kind: str, model: str) -> float:
        return fmean(a.utility(points_per_s) for a in _of(kind, matrix[model].values()))

    return {kind: max(matrix, key=lambda model: worth(kind, model)) for kind in KINDS}


def quarters(routed: Sequence[Answered]) -> tuple[Sequence[Answered], Sequence[Answered]]:
    """The first quarter and the last one."""
    n = len(routed) // 4
    return routed[:n], routed[len(routed) - n :]


def _always(model: str, matrix: Matrix) -> Choice:
    return lambda answered: [matrix[model][answered.question]]


def _of(kind: str, answered: Iterable[Answered]) -> list[Answered]:
    return [one for one in answered if one.question.kind == kind]


def _quality(answered: Sequence[Answered]) -> float:
    return fmean(one.quality for one in answered)


def _cell(answered: Sequence[Answered], best: float) -> str:
    quality = _quality(answered)
    mark = "*" if quality == best else " "
    return f"{quality:.2f}{mark} {_ms(answered):5.0f} ms"


def _ms(answered: Sequence[Answered]) -> float:
    return 1000 * fmean(one.took_s for one in answered)


def _share(model: str, answered: Sequence[Answered]) -> str:
    if not answered:
        return "-"
    return f"{fmean(one.model == model for one in answered):.0%} of {len(answered)}"


def _row(first: str, *others: str) -> str:
    return f"{first:<27}" + "".join(f"{other:>20}" for other in others)
