"""The way of telemetry in virtual time, and what may become of it there.

    replicas, routers ──records──▶ encode ─┬─▶ the log in memory ──▶ trainer
                                           ├─ silent ──▶ lost
                                           └─ garbled ─▶ broken bytes, or numbers that can't be

A garbled record of replicas says that they are absurdly full, with a billion requests in each, or
is not JSON at all, or comes from a time that is no time. Routers' are broken.

What is garbled is garbled by chance alone, from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from streams.log.contract import TELEMETRY, Log
from streams.telemetry.records import AnyTelemetry, ReplicaStates, encode

ABSURD_LOAD, ABSURD_COUNT, ABSURD_WATTS = 1e9, 10**9, 1e9  # the most that a record may say


class VirtualTelemetry:
    """Takes records to the log, as well as it can at the time."""

    def __init__(self, log: Log, rng: np.random.Generator) -> None:
        self._log, self._rng = log, rng
        self._silent_until_s = self._garbled_until_s = -1.0

    def silence(self, *, until_s: float) -> None:
        """What is sent until then is lost."""
        self._silent_until_s = max(self._silent_until_s, until_s)

    def garble(self, *, until_s: float) -> None:
        """What is sent until then is garbled."""
        self._garbled_until_s = max(self._garbled_until_s, until_s)

    def send(self, records: Sequence[AnyTelemetry], now_s: float) -> None:
        """Append what arrives of these."""
        if now_s < self._silent_until_s:
            return
        if now_s < self._garbled_until_s:
            self._log.append(TELEMETRY, [self._garbled(record) for record in records])
        else:
            self._log.append(TELEMETRY, encode(records))

    def _garbled(self, record: AnyTelemetry) -> tuple[bytes | None, bytes]:
        kind = int(self._rng.integers(4))
        ((key, value),) = encode([record])
        if kind == 0:
            return key, value[: len(value) // 2]
        if kind == 1:
            return key, self._rng.bytes(64)
        if kind == 2 or not isinstance(record, ReplicaStates):
            return key, value.replace(b'"to_unix_ms":', b'"to_unix_ms":-')
        n = len(record.replica)
        absurd = msgspec.structs.replace(
            record,
            load=[ABSURD_LOAD] * n,
            queued=[ABSURD_COUNT] * n,
            running=[ABSURD_COUNT] * n,
            watts=[ABSURD_WATTS] * n,
            kv_use=[1.0] * n,
        )
        return encode([absurd])[0]
