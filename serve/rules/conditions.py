"""Conditions: tables of the settings, made into functions of a request's facts.

    { language = "de", any = [ { keywords = ["refund"] }, { examples = ["I want my money"] } ] }

All that a table says must hold. `all` and `any` take lists of tables, `not` takes one. What a
signal may be compared with is in `SIGNALS`; a name that is none is refused, and what was probably
meant is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

from serve.rules.facts import Facts
from serve.rules.hints import CODE, JAILBREAK, PII
from serve.rules.languages import LANGUAGES
from serve.rules.patterns import engine_of
from streams.errors import OptionRefused

Test = Callable[[Facts], bool]
MODALITIES = ("text", "image", "audio", "video")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SIMILARITY_MIN = 0.5  # of examples, where a condition does not say it
DEPTH_MAX = 16
_HOURS = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)")
# Scripts that are written without spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff]")


@dataclass(slots=True)
class Needs:
    """What conditions look for in texts, numbered as they come."""

    patterns: list[str] = field(default_factory=list)
    # Texts, and how similar a request must be to one of them: cosine of embeddings.
    examples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)  # of sessions, by name

    def pattern(self, pattern: str) -> int:
        """Its number. Raises ValueError where it is no pattern."""
        engine_of(pattern)
        if pattern not in self.patterns:
            self.patterns.append(pattern)
        return self.patterns.index(pattern)


def compiled(key: str, when: Any, needs: Needs, depth: int = 0) -> Test:
    """Whether all that a table says holds. `key` is where it stands. Raises OptionRefused."""
    if not isinstance(when, Mapping):
        raise OptionRefused(key, when, "a table of conditions")
    if depth > DEPTH_MAX:
        raise OptionRefused(key, "nested deeper", f"at most {DEPTH_MAX} levels deep")
    if "similarity_min" in when and "examples" not in when:
        raise OptionRefused(f"{key}.similarity_min", when["similarity_min"], "beside `examples`")
    tests = []
    for name, value in when.items():
        at = f"{key}.{name}"
        if name in ("all", "any"):
            tests.append(_several(at, name, value, needs, depth))
        elif name == "not":
            tests.append(partial(_not, compiled(at, value, needs, depth + 1)))
        elif name in SIGNALS:
            tests.append(_signal(at, name, value, when, needs))
        elif name != "similarity_min":
            raise OptionRefused(at, value, meant(name, (*SIGNALS, "all", "any", "not")))
    return tests[0] if len(tests) == 1 else partial(_all, tuple(tests))


def meant(name: str, known: Iterable[str]) -> str:
    """Which names there are, and which one was probably meant."""
    names = list(known)
    close = get_close_matches(name, names, 1)
    said = "a name there is: " + ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return f"{said}; did you mean {close[0]!r}?" if close else said


def _several(key: str, name: str, value: Any, needs: Needs, depth: int) -> Test:
    if not isinstance(value, list | tuple) or not value:
        raise OptionRefused(key, value, "a list of at least one table of conditions")
    tests = tuple(compiled(f"{key}[{i}]", one, needs, depth + 1) for i, one in enumerate(value))
    return partial(_all if name == "all" else _any, tests)


def _signal(key: str, name: str, value: Any, when: Mapping[str, Any], needs: Needs) -> Test:
    try:
        if name == "examples":
            return _examples(value, when.get("similarity_min", SIMILARITY_MIN), needs)
        return SIGNALS[name](value, needs)
    except ValueError as error:
        raise OptionRefused(key, value, str(error)) from error


# A generator, as in `all(...)`, would cost as much as the tests.
def _all(tests: Sequence[Test], facts: Facts) -> bool:
    for test in tests:  # noqa: SIM110 - see above
        if not test(facts):
            return False
    return True


def _any(tests: Sequence[Test], facts: Facts) -> bool:
    for test in tests:  # noqa: SIM110 - see above
        if test(facts):
            return True
    return False


def _not(test: Test, facts: Facts) -> bool:
    return not test(facts)


# --- signals: from what the settings say of one to a function; they raise ValueError


def _texts(value: Any) -> tuple[str, ...]:
    """One text, or several."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ValueError("a text or a list of at least one")
    if not all(isinstance(one, str) and one for one in listed):
        raise ValueError("a text or a list of texts, none of them empty")
    return tuple(listed)


def _of(value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """One or several of known names."""
    for one in (names := _texts(value)):
        if one not in known:
            raise ValueError(meant(one, known))
    return names


def _boolean(value: Any, test: Test) -> Test:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - becomes an OptionRefused
    return test if value else partial(_not, test)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e7:
        raise ValueError("a number from 0 to 10,000,000")
    return float(value)


def _keywords(value: Any, needs: Needs) -> Test:
    """Whole words or phrases, in any case; where a script has no spaces, anywhere."""
    words = [_bounded(one) for one in _texts(value)]
    return partial(_found, needs.pattern(f"(?i){'|'.join(words)}"))


def _bounded(keyword: str) -> str:
    parts = r"\s+".join(_escaped(part) for part in keyword.split())
    before, after = (r"\b" if _needs_space(keyword[at]) else "" for at in (0, -1))
    return before + parts + after


def _needs_space(letter: str) -> bool:
    return (letter.isalnum() or letter == "_") and not _UNSPACED.match(letter)


def _escaped(text: str) -> str:
    """Python escapes more than other engines let it."""
    return re.sub(r"([.^$*+?{}\[\]\\|()#&~-])", r"\\\1", text)


def _found(at: int, facts: Facts) -> bool:
    return at in facts.found


def _pattern(value: Any, needs: Needs) -> Test:
    numbers = []
    for one in _texts(value):
        try:
            numbers.append(needs.pattern(one))
        except ValueError as error:
            raise ValueError(f"a regular expression in RE2's syntax ({error})") from error
    return partial(_any_found, frozenset(numbers))


def _any_found(numbers: frozenset[int], facts: Facts) -> bool:
    return not numbers.isdisjoint(facts.found)


def _pii(value: Any, needs: Needs) -> Test:
    if isinstance(value, bool):
        return _boolean(value, _pii([*PII], needs))
    kinds = _of(value, (*PII,))
    number_of = {kind: needs.pattern(PII[kind]) for kind in kinds}
    card = number_of.pop("card", -1)
    others = frozenset(number_of.values())

    def test(facts: Facts) -> bool:
        found = facts.found
        return not others.isdisjoint(found) or (card in found and facts.has_card)

    return test


def _hint(pattern: str, value: Any, needs: Needs) -> Test:
    return _boolean(value, partial(_found, needs.pattern(pattern)))


def _languages(value: Any, _: Needs) -> Test:
    names = frozenset(_of(value, LANGUAGES))
    return lambda facts: facts.language in names


def _modalities(value: Any, _: Needs) -> Test:
    names = frozenset(_of(value, MODALITIES))
    return lambda facts: (facts.asked.modality or "text") in names


def _task(value: Any, _: Needs) -> Test:
    names = frozenset(_texts(value))
    return lambda facts: facts.asked.task in names


def _tenant(value: Any, _: Needs) -> Test:
    names = frozenset(_texts(value))
    return lambda facts: facts.asked.tenant in names


def _tags(value: Any, _: Needs) -> Test:
    names = frozenset(_texts(value))
    return lambda facts: not names.isdisjoint(facts.asked.tags)


def _states(value: Any, needs: Needs) -> Test:
    names = frozenset(_texts(value))
    needs.states.extend(sorted(names))
    return lambda facts: facts.state in names


def _tokens_min(value: Any, _: Needs) -> Test:
    least = _number(value)
    return lambda facts: facts.tokens >= least


def _tokens_max(value: Any, _: Needs) -> Test:
    most = _number(value)
    return lambda facts: 0 < facts.tokens <= most


def _hours(value: Any, _: Needs) -> Test:
    said = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if said is None:
        raise ValueError('hours in UTC such as "22:00-06:00"')
    from_h, from_m, to_h, to_m = map(int, said.groups())
    start, end = 60 * from_h + from_m, 60 * to_h + to_m
    if start < end:
        return lambda facts: start <= facts.minute < end
    return lambda facts: facts.minute >= start or facts.minute < end


def _days(value: Any, _: Needs) -> Test:
    names = frozenset(DAYS.index(one) for one in _of(value, DAYS))
    return lambda facts: facts.weekday in names


def _examples(value: Any, similarity_min: Any, needs: Needs) -> Test:
    if isinstance(similarity_min, bool) or not isinstance(similarity_min, int | float):
        raise ValueError("beside a similarity_min that is a number")  # noqa: TRY004 - as above
    if not -1.0 <= similarity_min <= 1.0:
        raise ValueError("beside a similarity_min of -1 to 1")
    needs.examples.append((_texts(value), float(similarity_min)))
    at = len(needs.examples) - 1
    return lambda facts: facts.similar[at]


SIGNALS: Mapping[str, Callable[[Any, Needs], Test]] = {
    "keywords": _keywords,
    "pattern": _pattern,
    "language": _languages,
    "code": partial(_hint, CODE),
    "pii": _pii,
    "jailbreak": partial(_hint, JAILBREAK),
    "examples": lambda value, needs: _examples(value, SIMILARITY_MIN, needs),
    "modality": _modalities,
    "tokens_min": _tokens_min,
    "tokens_max": _tokens_max,
    "hours": _hours,
    "days": _days,
    "task": _task,
    "tags": _tags,
    "state": _states,
    "tenant": _tenant,
}
