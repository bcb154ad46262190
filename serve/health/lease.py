"""One attempt at one endpoint, and what it tells of the endpoint and its pool.

    pick ──▶ Lease ──▶ first_token? ──▶ succeeded   the endpoint did its part
                                    ├─▶ failed      the endpoint is to blame
                                    └─▶ cancelled   nobody is

A lease holds a place among the requests in flight from its making to its finish.

The one rule: every lease is finished exactly once, whatever became of its attempt.
"""

from __future__ import annotations

from serve.health.first_token import FirstTokens, Pace
from serve.health.outliers import Endpoint, Endpoints


class Pool:
    """What is known of one pool."""

    __slots__ = (
        "cancelled", "endpoints", "failures", "in_flight", "pace", "refusals", "successes", "waits",
    )  # fmt: skip

    def __init__(self, endpoints: Endpoints, waits: FirstTokens) -> None:
        self.endpoints, self.waits, self.pace = endpoints, waits, Pace()
        self.in_flight = self.refusals = self.successes = self.cancelled = 0
        self.failures: dict[str, int] = {}

    def note_wait(self, endpoint: Endpoint, wait_s: float, *, now_s: float) -> None:
        """Count one wait for a first token."""
        self.waits.add(wait_s, now_s=now_s)
        self.pace.note(wait_s, now_s=now_s)
        endpoint.pace.note(wait_s, now_s=now_s)


class Lease:
    """One attempt at one endpoint, to be finished by exactly one of three calls."""

    __slots__ = ("_began_s", "_endpoint", "_finished", "_pool", "_stint", "_waiting", "probe")

    def __init__(self, pool: Pool, endpoint: Endpoint, began_s: float, *, probe: bool) -> None:
        self._pool, self._endpoint, self._began_s = pool, endpoint, began_s
        self._stint = endpoint.stint
        self._finished, self._waiting = False, True
        self.probe = probe  # whether the endpoint was out and this shall tell if it is back
        pool.in_flight += 1
        endpoint.in_flight += 1

    @property
    def address(self) -> str:
        """Where to send the attempt."""
        return self._endpoint.address

    def first_token(self, now_s: float) -> None:
        """Note that the first token has come."""
        assert self._waiting and not self._finished, "there is one first token, before the end"
        self._waiting = False
        self._pool.note_wait(self._endpoint, now_s - self._began_s, now_s=now_s)

    def succeeded(self, now_s: float) -> None:
        """Finish: the endpoint did its part. It also did if it refused a malformed request."""
        self._finish()
        self._endpoint.successes += 1
        self._pool.successes += 1
        self._judge(failed=False, now_s=now_s)

    def failed(self, now_s: float, kind: str) -> None:
        """Finish: the endpoint is to blame. `kind` is one of a few, like "timeout" or "reset"."""
        self._finish()
        for counts in (self._endpoint.failures, self._pool.failures):
            counts[kind] = counts.get(kind, 0) + 1
        self._judge(failed=True, now_s=now_s)

    def cancelled(self, now_s: float) -> None:
        """Finish without a judgement: the caller left, or another attempt was faster.

        If it had waited beyond the hedging delay it counts as a wait of that length. Otherwise
        the longest waits, which hedging cuts short, would be missing, and the delay would shrink.
        """
        self._finish()
        self._endpoint.cancelled += 1
        self._pool.cancelled += 1
        waited_s = now_s - self._began_s
        if self._waiting and waited_s >= self._pool.waits.hedge_delay_s(now_s):
            self._pool.note_wait(self._endpoint, waited_s, now_s=now_s)

    def _finish(self) -> None:
        assert not self._finished, "a lease is finished once"
        self._finished = True
        pool, endpoint = self._pool, self._endpoint
        pool.in_flight -= 1
        endpoint.in_flight -= 1
        assert pool.in_flight >= 0 and endpoint.in_flight >= 0
        if self.probe:
            pool.endpoints.end_probe(endpoint)

    def _judge(self, *, failed: bool, now_s: float) -> None:
        endpoint = self._endpoint
        if endpoint.stint == self._stint:
            self._pool.endpoints.judge(endpoint, probe=self.probe, failed=failed, now_s=now_s)
