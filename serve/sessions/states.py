"""What rules have said of conversations: the state of each session, known to a whole machine.

    rule with a `state` matches ──put──▶ table in shared memory ──of──▶ conditions on `state`, when
                                          of all replicas there         the session's next requests
                                                                        come, at whichever replica

A session is in the state "new" until a rule says otherwise. A state is in the table as the hash of
its name: replicas with newer rules may know them in another order. The table's memory is taken at
the start, as rules are enforced by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from serve.sessions.table import SessionTable
from serve.shared_memory import HASH_BYTES, hash_of

NEW = "new"
FRESH = 8  # a record is written again when so much of its time is over


class SessionStates:
    """The states of sessions. Used from one thread, beside other processes.

    >>> states = SessionStates(["sensitive"], kept_s=60.0)
    >>> states.of("acme", "s-1", 0)
    'new'
    >>> states.put("acme", "s-1", "sensitive", 0)
    >>> states.of("acme", "s-1", 60_000), states.of("acme", "s-1", 200_000)
    ('sensitive', 'new')
    """

    def __init__(self, names: Iterable[str], kept_s: float, path: Path | None = None) -> None:
        """`names` are those that rules give. Without `path` no other process knows of it.

        Raises OSError.
        """
        self._kept_ms = kept_s * 1000.0
        self._name_of = {hash_of(name): name for name in names}
        self._table = SessionTable(HASH_BYTES, path, reserved=path is not None)

    def of(self, tenant: str, session: str, now_ms: int) -> str:
        """The state that a session is in; "new" of none, and where it was silent for too long."""
        found = self._table.get(tenant, session) if session else None
        if found is None or now_ms - found[0] > self._kept_ms:
            return NEW
        at_ms, state = found
        if now_ms - at_ms > self._kept_ms / FRESH:
            self._table.put(tenant, session, state, now_ms)
        return self._name_of.get(state, NEW)

    def put(self, tenant: str, session: str, state: str, now_ms: int) -> None:
        """Say which state a session is in from now on."""
        if session and self.of(tenant, session, now_ms) != state:
            self._table.put(tenant, session, hash_of(state), now_ms)
