"""A JSON body from a stranger, checked against a struct: what is wrong is said by its field's name.

    bytes ──read_body(kind)──▶ (all of it as a dict, the checked part as `kind`)   or InvalidRequest

Whatever bytes come, nothing but InvalidRequest is raised.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from serve.errors import InvalidRequest

Kind = TypeVar("Kind", bound=msgspec.Struct)

VALUE_CHARS_MAX = 60  # of a wrong value repeated in a message: enough to find it by

_FORM = re.compile(r"(?P<problem>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<key>\w+)|\[(?P<position>\d+)\]")
# Python's names for types, for those who write JSON in other languages.
_KINDS = {
    "float": "a number",
    "int": "an integer",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "an object",
}
_decode = msgspec.json.Decoder().decode
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors write it; RFC 8259 allows to ignore it


def read_body(content: bytes, kind: type[Kind]) -> tuple[dict[str, object], Kind]:
    """The object as it came, and its fields that `kind` names. Raises InvalidRequest."""
    try:
        body = _decode(content.removeprefix(BYTE_ORDER_MARK))
    # Nested deeper than Python's stack, and text that is no UTF-8, have errors of their own.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = f"{len(content)} bytes that are no JSON ({error})"
        raise InvalidRequest("body", problem, "one JSON object in UTF-8") from error
    if not isinstance(body, dict):
        raise InvalidRequest("body", _shown(body), "a JSON object")
    try:
        return body, msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), body, kind) from error


def _named(message: str, body: object, kind: type) -> InvalidRequest:
    """What msgspec says, with field and value. Its forms are pinned by tests."""
    found = _FORM.fullmatch(message)
    assert found is not None, "the form takes any text"
    problem, path = found["problem"], found["path"] or ""
    if name := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return InvalidRequest(_joined(path, name[1]), "missing", "given")
    if name := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
        value = _shown(_at(body, f"{path}.{name[1]}"))
        return InvalidRequest(
            _joined(path, name[1]), value, "left out: there is no field of that name here"
        )
    if problem.startswith("Invalid enum value"):
        allowed = ", ".join(map(str, _values(inspect.type_info(kind), path)))
        return InvalidRequest(_joined(path, ""), _shown(_at(body, path)), f"one of {allowed}")
    limit = problem.removeprefix("Expected ").split(", got ")[0]
    return InvalidRequest(_joined(path, ""), _shown(_at(body, path)), _plain(limit))


def _values(of: inspect.Type, path: str) -> tuple[Any, ...]:
    """The values that a field may have, if its type lists them."""
    for step in _STEP.finditer(path):
        of = _found(of, inspect.StructType if step["key"] else inspect.ListType)
        if isinstance(of, inspect.ListType):
            of = of.item_type
        elif isinstance(of, inspect.StructType):
            of = next(field.type for field in of.fields if field.encode_name == step["key"])
    listed = _found(of, inspect.LiteralType)
    return listed.values if isinstance(listed, inspect.LiteralType) else ()


def _found(of: inspect.Type, kind: type) -> inspect.Type:
    """The part of a union, such as with null, that is of a kind; without one the type itself."""
    parts = of.types if isinstance(of, inspect.UnionType) else (of,)
    return next((part for part in parts if isinstance(part, kind)), of)


def _plain(limit: str) -> str:
    """Words for msgspec's `` `int | null` >= 0 ``: an integer or null >= 0."""

    def plain(quoted: re.Match[str]) -> str:
        return " or ".join(_KINDS.get(kind, kind) for kind in quoted[1].split(" | "))

    return re.sub(r"`(.+?)`", plain, limit)


def _joined(path: str, name: str) -> str:
    return ".".join(part for part in (path.removeprefix("."), name) if part)


def _at(body: Any, path: str) -> object:
    """The value at msgspec's path; None where the path is not as plain as ours are."""
    for step in _STEP.finditer(path):
        try:
            body = body[step["key"] if step["key"] is not None else int(step["position"])]
        except (KeyError, IndexError, TypeError):
            return None
    return body


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + " …"
