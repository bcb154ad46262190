"""The protos keep what callers were built upon, and the form that other languages' tools expect.

`make buf` asks buf itself; what is here needs nothing but the code that was made from the protos.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from source_files import ROOT

KEPT = sorted((ROOT / "tests" / "data" / "api").glob("*.binpb"))
PROTOS = sorted((ROOT / "serve" / "proto").rglob("*.proto"))
SNAKE, PASCAL, CAPITALS = r"[a-z][a-z0-9_]*", r"[A-Z][A-Za-z0-9]*", r"[A-Z][A-Z0-9_]*"


def described(proto: Path) -> FileDescriptorProto:
    """What Python's code for it was made from."""
    name = proto.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") + "_pb2"
    found = FileDescriptorProto()
    importlib.import_module(name).DESCRIPTOR.CopyToProto(found)
    return found


def now() -> FileDescriptorSet:
    return FileDescriptorSet(file=map(described, PROTOS))


def messages(
    inside: FileDescriptorProto | DescriptorProto, path: str
) -> Iterator[tuple[str, DescriptorProto]]:
    own = inside.message_type if isinstance(inside, FileDescriptorProto) else inside.nested_type
    for one in own:
        yield f"{path}.{one.name}", one
        yield from messages(one, f"{path}.{one.name}")


def field(one: FieldDescriptorProto, message: DescriptorProto) -> str:
    """All of a field that its callers or the wire depend on."""
    group = message.oneof_decl[one.oneof_index].name if one.HasField("oneof_index") else "-"
    kind, label = (
        FieldDescriptorProto.Type.Name(one.type),
        FieldDescriptorProto.Label.Name(one.label),
    )
    packed = one.options.packed if one.options.HasField("packed") else "-"
    return f"{one.number} {kind} {one.type_name} {label} {group} {packed}"


def promises(api: FileDescriptorSet) -> dict[str, str]:
    """What is promised, by its full name."""
    found = {}
    for file in api.file:
        for path, message in messages(file, file.package):
            found[path] = "message"
            found |= {f"{path}.{one.name}": field(one, message) for one in message.field}
            enums = [(path, one) for one in message.enum_type]
            found |= values(enums)
        found |= values([(file.package, one) for one in file.enum_type])
        for service in file.service:
            for call in service.method:
                found[f"{file.package}.{service.name}/{call.name}"] = (
                    f"{call.client_streaming} {call.input_type} "
                    f"{call.server_streaming} {call.output_type}"
                )
    return found


def values(enums: list) -> dict[str, str]:
    return {
        f"{path}.{enum.name}.{value.name}": str(value.number)
        for path, enum in enums
        for value in enum.value
    }


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_nothing_that_callers_were_built_upon_is_gone_or_another(kept):
    """
    No message, field, value or call is removed, renumbered or retyped. New ones are welcome.
    """
    before, after = promises(FileDescriptorSet.FromString(kept.read_bytes())), promises(now())
    assert len(before) > 90
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("change", ["removed", "renumbered", "retyped", "call", "moved to a oneof"])
def test_a_change_that_breaks_callers_would_be_noticed(change):
    before, broken = promises(now()), now()
    router = next(file for file in broken.file if file.name.endswith("router.proto"))
    message = next(one for one in router.message_type if one.name == "RouteReply")
    if change == "removed":
        del message.field[0]
    elif change == "renumbered":
        message.field[0].number = 99
    elif change == "retyped":
        message.field[0].type = FieldDescriptorProto.TYPE_BYTES
    elif change == "moved to a oneof":
        message.field[0].oneof_index = 0
    else:
        router.service[0].method[0].server_streaming = True
    after = promises(broken)
    assert {name: after.get(name) for name in before} != before


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_a_proto_has_the_form_that_tools_expect(proto):
    """
    Its package is its folder and has a version; Go and Java get packages of their own; names are
    written as the style guide says.
    """
    file, folder = described(proto), proto.parent.relative_to(ROOT / "serve" / "proto").as_posix()
    assert file.name == f"{folder}/{proto.name}"
    assert file.package == folder.replace("/", ".") and re.search(r"\.v\d+$", file.package)
    assert file.options.go_package == f"{folder};{folder.replace('/', '')}"
    assert file.options.java_package == file.package and file.options.java_multiple_files
    fields = [one.name for _, message in messages(file, "") for one in message.field]
    enums = [*file.enum_type, *(e for _, m in messages(file, "") for e in m.enum_type)]
    calls = [call.name for service in file.service for call in service.method]
    types = [path.rpartition(".")[2] for path, _ in messages(file, "")]
    assert [name for name in fields if not re.fullmatch(SNAKE, name)] == []
    assert [name for name in [*types, *calls] if not re.fullmatch(PASCAL, name)] == []
    for enum in enums:
        assert enum.value[0].number == 0 and enum.value[0].name.endswith("_UNSPECIFIED")
        assert all(re.fullmatch(CAPITALS, value.name) for value in enum.value)
