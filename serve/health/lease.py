"""One attempt at one endpoint: what it found there, and what its end says of the endpoint.

    EndpointLease ──▶ first_token? ──▶ succeeded | failed | overloaded | cancelled   exactly once
        │                                  └─▶ Endpoint: judged, or left alone for a while
        └─▶ in flight, waits, turns, while it lasts

Who is given a lease, and of which endpoint, is in `health`.
"""

from __future__ import annotations

import math

from learners.servers.batch import Beside, Stay
from serve.health.first_token import FirstTokens, Pace
from serve.health.outliers import Endpoint, Endpoints

PAUSE_S_MAX = 600.0  # whoever asks to be left alone for longer is asked again all the same


class Pool:
    """What is known of one pool."""

    __slots__ = (
        "cancelled", "endpoints", "failures", "in_flight", "most", "pace", "refusals", "successes",
        "waits",
    )  # fmt: skip

    def __init__(self, endpoints: Endpoints, waits: FirstTokens) -> None:
        self.endpoints, self.waits, self.pace = endpoints, waits, Pace()
        self.in_flight = self.refusals = self.successes = self.cancelled = 0
        self.failures: dict[str, int] = {}
        self.most = math.inf  # requests that each endpoint may hold, as last known

    def holds(self, most: float, *, now_s: float) -> bool:
        """Whether each of its endpoints that may be asked has so many requests in flight."""
        if self.in_flight < most:  # as almost always
            return False
        if self.endpoints.due_s <= now_s:  # one that is out may be back: it has room
            return False
        full = all(one.in_flight >= most for one in self.endpoints.open(now_s))
        return full and not self.endpoints.needed(now_s)

    def note_wait(
        self, endpoint: Endpoint, wait_s: float, *, now_s: float, prompt_tokens: float
    ) -> None:
        """Count one wait for a first token."""
        self.waits.add(wait_s, now_s=now_s, prompt_tokens=prompt_tokens)
        self.pace.note(wait_s, now_s=now_s)
        endpoint.pace.note(wait_s, now_s=now_s)


class EndpointLease:
    """One attempt at one endpoint, to be finished by exactly one of three calls."""

    __slots__ = (
        "_began_s",
        "_begun",
        "_endpoint",
        "_finished",
        "_pool",
        "_stay",
        "_stint",
        "_tokens",
        "_turn",
        "_waiting",
        "beside",
        "found",
        "probe",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        endpoint: Endpoint,
        began_s: float,
        *,
        probe: bool,
        prompt_tokens: float = 0.0,
    ) -> None:
        self._pool, self._endpoint, self._began_s = pool, endpoint, began_s
        self._tokens = prompt_tokens
        self._stint, self._begun = endpoint.stint, endpoint.begun
        self._finished, self._waiting = False, True
        self._stay: Stay | None = None
        self.beside: Beside | None = None  # once it is finished, if its first token had come
        self.probe = probe  # whether the endpoint was out and this attempt finds out if it is back
        pool.in_flight += 1
        endpoint.in_flight += 1
        self.found = endpoint.in_flight  # requests there with it, this one included
        self._turn = endpoint.turns.begin()

    @property
    def address(self) -> str:
        """Where to send the attempt."""
        return self._endpoint.address

    @property
    def waited_for(self) -> int:
        """Those found there, this one included, less those ahead of it that left: see `turns`."""
        return max(1, self.found - self._turn.passed)

    def first_token(self, now_s: float) -> None:
        """Note that the first token has come."""
        assert self._waiting and not self._finished, "there is one first token, before the end"
        self._waiting = False
        self._endpoint.begun += 1
        self._stay = self._endpoint.batch.begin(now_s)
        self._note_wait(now_s - self._began_s, now_s)

    def succeeded(self, now_s: float) -> None:
        """Finish: the endpoint did its part. It also did if it refused a malformed request."""
        self._finish(now_s)
        self._endpoint.successes += 1
        self._pool.successes += 1
        self._judge(failed=False, now_s=now_s)

    def failed(self, now_s: float, kind: str, *, was_late: bool = False) -> None:
        """Finish: the endpoint is to blame. `kind` is one of a few, like "timeout" or "reset".

        `was_late`: the wait for its first token was given up. It counts as one of that length at
        least, otherwise the longest waits would be missing and the limit would stay too short.
        """
        self._leave(now_s)
        self._count(kind)
        if was_late and self._waiting:
            self._note_wait(now_s - self._began_s, now_s)
        if was_late and (self.found > self._pool.most or self._in_turn):
            return  # it waited behind others: the server is not stuck
        self._judge(failed=True, now_s=now_s, silent=was_late)

    @property
    def _in_turn(self) -> bool:
        """Whether the server was answering, and had not come to this request yet.

        Who finds n others there waits for n first tokens, or fewer, where answers come in order.
        """
        return 0 < self._endpoint.begun - self._begun < self.found

    def blamed(self, now_s: float, kind: str) -> None:
        """Say of an attempt that was finished without a judgement that the endpoint is to blame."""
        assert self._finished, "what is under way is finished by `failed`"
        self._count(kind)
        self._judge(failed=True, now_s=now_s)

    def overloaded(self, now_s: float, kind: str, *, pause_s: float) -> None:
        """Finish: the endpoint wants to be left alone for so long. Being busy is no failure."""
        self._leave(now_s)
        self._count(kind)
        self.pause(now_s, pause_s=pause_s)

    def pause(self, now_s: float, *, pause_s: float) -> None:
        """Note that the endpoint is to be left alone for so long."""
        until_s = now_s + min(pause_s, PAUSE_S_MAX)
        self._endpoint.paused_until_s = max(self._endpoint.paused_until_s, until_s)

    def _count(self, kind: str) -> None:
        for counts in (self._endpoint.failures, self._pool.failures):
            counts[kind] = counts.get(kind, 0) + 1

    def cancelled(self, now_s: float) -> None:
        """Finish without a judgement: the caller left, or another attempt was faster.

        If it had waited beyond the hedging delay it counts as a wait of that length. Otherwise
        the longest waits, which hedging cuts short, would be missing, and the delay would shrink.
        """
        self._leave(now_s)
        self._endpoint.cancelled += 1
        self._pool.cancelled += 1
        waited_s = now_s - self._began_s
        if self._waiting and waited_s >= self._pool.waits.hedge_delay_s(
            now_s, prompt_tokens=self._tokens
        ):
            self._note_wait(waited_s, now_s)

    def _note_wait(self, wait_s: float, now_s: float) -> None:
        self._pool.note_wait(self._endpoint, wait_s, now_s=now_s, prompt_tokens=self._tokens)

    def _leave(self, now_s: float) -> None:
        self._finish(now_s)
        self._turn.leave()

    def _finish(self, now_s: float) -> None:
        assert not self._finished, "a lease is finished once"
        self._finished = True
        if self._stay is not None:
            self.beside = self._endpoint.batch.end(self._stay, now_s)
        pool, endpoint = self._pool, self._endpoint
        pool.in_flight -= 1
        endpoint.in_flight -= 1
        assert pool.in_flight >= 0 and endpoint.in_flight >= 0
        if self.probe:
            pool.endpoints.end_probe(endpoint)

    def _judge(self, *, failed: bool, now_s: float, silent: bool = False) -> None:
        endpoint = self._endpoint
        if endpoint.stint == self._stint:
            endpoint.silent = silent
            self._pool.endpoints.judge(endpoint, probe=self.probe, failed=failed, now_s=now_s)
