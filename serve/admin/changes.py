"""What an operator asks to be changed, and what comes of it; and between these and protobuf.

    ChangeRequest ─read_change─▶ Asked ─▶ Control ─▶ Edited ─▶ ChangeReply

Here only the form is checked. Whether the settings would be valid is `Control`'s to say: it knows
them, and is handed in (`infra.control` implements it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from serve.errors import InvalidRequest
from serve.proto.fairlead.v1 import admin_pb2 as pb

SETTINGS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX = 100, 100, 10_000  # also said in the proto
NAME_BYTES_MAX, REASON_BYTES_MAX = 200, 500
KINDS = {"models": pb.KIND_MODELS, "pools": pb.KIND_POOLS, "budgets": pb.KIND_BUDGETS}
KINDS |= {"policy": pb.KIND_POLICY, "edits": pb.KIND_EDITS, "snapshots": pb.KIND_SNAPSHOTS}
ACTIONS = {"add": pb.ACTION_ADD, "set": pb.ACTION_SET, "remove": pb.ACTION_REMOVE}
ACTIONS["roll back"] = pb.ACTION_ROLL_BACK
ACTIONS |= {"drain": pb.ACTION_DRAIN, "resume": pb.ACTION_RESUME, "reset": pb.ACTION_RESET}
CountsFrom = Literal["now", "rolling update", "next start"]
COUNTS_FROM: Mapping[CountsFrom, pb.CountsFrom] = {
    "now": pb.COUNTS_FROM_NOW,
    "rolling update": pb.COUNTS_FROM_ROLLING_UPDATE,
    "next start": pb.COUNTS_FROM_NEXT_START,
}
# Which actions a kind has; `drain` and `resume` set a key that models and pools alone have.
OF_LISTS = ("add", "set", "remove", "reset")
ACTIONS_OF = {
    "models": (*OF_LISTS, "drain", "resume"),
    "pools": (*OF_LISTS, "drain", "resume"),
    "budgets": OF_LISTS,
    "policy": ("set", "reset"),
    "snapshots": ("roll back",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One change, as it is asked for."""

    kind: str  # one of ACTIONS_OF
    name: str  # "" for the policy
    action: str  # one of ACTIONS_OF[kind]
    settings: Mapping[str, Any] = field(default_factory=dict)  # None: the key is left out
    reason: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What came of it."""

    number: int  # 0 after a dry run
    at_unix_ms: int
    by: str
    counts_from: CountsFrom


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry as it holds now, without secrets; or one edit."""

    name: str
    settings: Mapping[str, Any]
    draining: bool = False
    edited: bool = False


class Control(Protocol):
    """Reads and changes a site's settings; called in threads, by several replicas at once."""

    def listed(self, kind: str) -> tuple[Sequence[Entry], int]:
        """What holds of a kind, and how many edits were made. Raises ChangeRefused."""

    def change(self, asked: Asked, by: str) -> Edited:
        """Check and make one change. Raises ChangeRefused and EntryNotFound."""


def read_change(request: pb.ChangeRequest) -> Asked:
    """Check the form. Raises InvalidRequest."""
    kind = read_kind(request.kind, ACTIONS_OF)
    action = _named(ACTIONS, request.action)
    if action not in ACTIONS_OF[kind]:
        raise InvalidRequest("action", action or request.action, f"{_any(ACTIONS_OF[kind])}")
    if bool(request.name) == (kind == "policy"):
        wanted = "empty for the policy" if request.name else "the name of an entry"
        raise InvalidRequest("name", repr(request.name[:NAME_BYTES_MAX]), wanted)
    _within("name", request.name, NAME_BYTES_MAX)
    _within("reason", request.reason, REASON_BYTES_MAX)
    settings = {one.key: _value(one) for one in request.settings}
    if len(request.settings) > SETTINGS_MAX or len(settings) < len(request.settings):
        given = f"{len(request.settings)} settings of {len(settings)} keys"
        raise InvalidRequest("settings", given, f"at most {SETTINGS_MAX}, each key once")
    _check_needed(kind, action, settings)
    return Asked(
        kind=kind,
        name=request.name,
        action=action,
        settings=settings,
        reason=request.reason,
        dry_run=request.dry_run,
    )


def read_kind(kind: int, among: Mapping[str, object] = KINDS) -> str:
    """Raises InvalidRequest."""
    name = _named(KINDS, kind)
    if name not in among:
        raise InvalidRequest("kind", name or kind, _any(among))
    return name


def write_edited(edited: Edited) -> pb.ChangeReply:
    """The reply."""
    return pb.ChangeReply(
        number=edited.number,
        at_unix_ms=edited.at_unix_ms,
        by=edited.by,
        counts_from=COUNTS_FROM[edited.counts_from],
    )


def write_entry(entry: Entry) -> pb.Entry:
    """One of a reply's entries."""
    return pb.Entry(
        name=entry.name,
        settings_json=json.dumps(dict(entry.settings)),
        draining=entry.draining,
        edited=entry.edited,
    )


def _check_needed(kind: str, action: str, settings: Mapping[str, Any]) -> None:
    needed = action == "set" or (kind, action) == ("policy", "reset")
    if needed and not settings:
        raise InvalidRequest("settings", "empty", f"given to {action} {kind}")
    if not needed and action != "add" and settings:
        raise InvalidRequest("settings", f"given to {action}", "empty")


def _value(one: pb.Setting) -> Any:
    _within("settings.key", one.key, KEY_BYTES_MAX)
    _within(f"settings.{one.key}", one.value_json, VALUE_BYTES_MAX)
    try:
        return json.loads(one.value_json, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        shown = repr(one.value_json[:REASON_BYTES_MAX])
        raise InvalidRequest(f"settings.{one.key}", shown, f"JSON ({error})") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _within(field_: str, text: str, bytes_max: int) -> None:
    if len(text.encode()) > bytes_max:
        raise InvalidRequest(field_, f"{len(text.encode())} bytes", f"at most {bytes_max} bytes")


def _named(names: Mapping[str, Any], number: int) -> str:
    return next((name for name, known in names.items() if known == number), "")


def _any(names: Mapping[str, object] | Sequence[str]) -> str:
    return "one of " + ", ".join(name.upper() for name in names)
