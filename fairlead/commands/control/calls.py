"""Calls of the service `Admin`: one connection, a token from a file, plain values in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fairlead import channels
from fairlead.errors import InvalidOption, from_status
from serve.admin.changes import ACTIONS, COUNTS_FROM, KINDS
from serve.proto.fairlead.v1 import admin_pb2 as pb
from serve.proto.fairlead.v1.admin_pb2_grpc import AdminStub


@dataclass(frozen=True, slots=True)
class Desk:
    """Where to call, and as whom."""

    target: str  # host:port
    token: str = ""
    root_certificates: bytes | None = None  # None: nothing is encrypted, or the system's
    certificate: bytes | None = None  # what is shown, with its key in the same PEM
    timeout_s: float = 10.0

    def listed(self, kind: str) -> dict[str, Any]:
        """What holds of a kind. Raises FairleadError."""
        with self._stub("List") as stub:
            reply = stub.List(pb.ListRequest(kind=KINDS[kind]), **self._how())
        entries = [_entry(entry) for entry in reply.entries]
        return {"kind": kind, "entries": entries, "edits": reply.edits}

    def change(
        self,
        kind: str,
        name: str,
        action: str,
        settings: Sequence[str],
        reason: str,
        *,
        dry_run: bool,
    ) -> dict[str, Any]:
        """Make one change; `settings` are "key=value". Raises FairleadError."""
        request = pb.ChangeRequest(
            kind=KINDS[kind],
            name=name,
            action=ACTIONS[action],
            settings=[setting_of(text, action) for text in settings],
            reason=reason,
            dry_run=dry_run,
        )
        with self._stub("Change") as stub:
            reply = stub.Change(request, **self._how())
        since = {number: words for words, number in COUNTS_FROM.items()}
        return {
            "number": reply.number,
            "at_unix_ms": reply.at_unix_ms,
            "by": reply.by,
            "counts_from": since.get(reply.counts_from, "unknown"),
        }

    def _how(self) -> dict[str, Any]:
        shown = (("authorization", f"Bearer {self.token}"),) if self.token else None
        return {"timeout": self.timeout_s, "metadata": shown}

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if self.certificate is None:
            return channels.tls(self.root_certificates, None)
        shown = self.certificate  # of a file, gRPC takes what it looks for
        return grpc.ssl_channel_credentials(self.root_certificates, shown, shown)

    @contextmanager
    def _stub(self, method: str) -> Iterator[Any]:
        """The service, for one call. It is not tried again: a change might be made twice."""
        channel = channels.opened(grpc, self.target, self._credentials(), channels.RetryOptions())
        try:
            yield AdminStub(channel)
        except grpc.RpcError as error:
            doing = f"{method} at {self.target}"
            raise from_status(doing, error.code(), error.details() or "") from error
        finally:
            channel.close()


def token_in(file: Path | None) -> str:
    """The token that a file holds; none for no file. Raises InvalidOption."""
    if file is None:
        return ""
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption("--token-file", f"{file} can't be read: {error}") from None
    if not (token and token.isascii() and token.isprintable()):  # not shown: it may be a secret
        raise InvalidOption("--token-file", f"{file} is to hold a token in one line of ASCII")
    return token


def pem_in(file: Path | None, option: str) -> bytes | None:
    """The certificates that the file of an option holds; None for no file. Raises InvalidOption."""
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise InvalidOption(option, f"{file} can't be read: {error}") from error


def setting_of(text: str, action: str) -> pb.Setting:
    """`key=value`: the value as JSON where it is some, else as text; to reset, the key alone.

    >>> [setting_of(text, "set").value_json for text in ("tier=small", "quality=0.7")]
    ['"small"', '0.7']

    Raises InvalidOption.
    """
    key, equals, value = text.partition("=")
    if action == "reset":
        return pb.Setting(key=key, value_json="null")
    if not equals:
        raise InvalidOption(f"setting {text!r}", "has no value: write key=value")
    try:
        json.loads(value)
    except ValueError:
        value = json.dumps(value)
    return pb.Setting(key=key.strip(), value_json=value)


def _entry(entry: pb.Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "settings": json.loads(entry.settings_json),
        "draining": entry.draining,
        "edited": entry.edited,
    }
