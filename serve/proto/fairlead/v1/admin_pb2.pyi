from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_MODELS: _ClassVar[Kind]
    KIND_POOLS: _ClassVar[Kind]
    KIND_BUDGETS: _ClassVar[Kind]
    KIND_POLICY: _ClassVar[Kind]
    KIND_EDITS: _ClassVar[Kind]
    KIND_SNAPSHOTS: _ClassVar[Kind]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ADD: _ClassVar[Action]
    ACTION_SET: _ClassVar[Action]
    ACTION_DRAIN: _ClassVar[Action]
    ACTION_RESUME: _ClassVar[Action]
    ACTION_REMOVE: _ClassVar[Action]
    ACTION_RESET: _ClassVar[Action]
    ACTION_ROLL_BACK: _ClassVar[Action]

class CountsFrom(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COUNTS_FROM_UNSPECIFIED: _ClassVar[CountsFrom]
    COUNTS_FROM_NOW: _ClassVar[CountsFrom]
    COUNTS_FROM_ROLLING_UPDATE: _ClassVar[CountsFrom]
    COUNTS_FROM_NEXT_START: _ClassVar[CountsFrom]
KIND_UNSPECIFIED: Kind
KIND_MODELS: Kind
KIND_POOLS: Kind
KIND_BUDGETS: Kind
KIND_POLICY: Kind
KIND_EDITS: Kind
KIND_SNAPSHOTS: Kind
ACTION_UNSPECIFIED: Action
ACTION_ADD: Action
ACTION_SET: Action
ACTION_DRAIN: Action
ACTION_RESUME: Action
ACTION_REMOVE: Action
ACTION_RESET: Action
ACTION_ROLL_BACK: Action
COUNTS_FROM_UNSPECIFIED: CountsFrom
COUNTS_FROM_NOW: CountsFrom
COUNTS_FROM_ROLLING_UPDATE: CountsFrom
COUNTS_FROM_NEXT_START: CountsFrom

class ListRequest(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("name", "settings_json", "draining", "edited")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    EDITED_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings_json: str
    draining: bool
    edited: bool
    def __init__(self, name: _Optional[str] = ..., settings_json: _Optional[str] = ..., draining: _Optional[bool] = ..., edited: _Optional[bool] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("entries", "edits")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    edits: int
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., edits: _Optional[int] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("key", "value_json")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_JSON_FIELD_NUMBER: _ClassVar[int]
    key: str
    value_json: str
    def __init__(self, key: _Optional[str] = ..., value_json: _Optional[str] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("kind", "name", "action", "settings", "reason", "dry_run")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    name: str
    action: Action
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    reason: str
    dry_run: bool
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., name: _Optional[str] = ..., action: _Optional[_Union[Action, str]] = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., reason: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class ChangeReply(_message.Message):
    __slots__ = ("number", "at_unix_ms", "by", "counts_from")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FROM_FIELD_NUMBER: _ClassVar[int]
    number: int
    at_unix_ms: int
    by: str
    counts_from: CountsFrom
    def __init__(self, number: _Optional[int] = ..., at_unix_ms: _Optional[int] = ..., by: _Optional[str] = ..., counts_from: _Optional[_Union[CountsFrom, str]] = ...) -> None: ...
