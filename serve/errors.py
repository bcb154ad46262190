"""What can go wrong with serving.

ServeError
├── EncoderUnavailable  the configured encoder is not installed, not reachable or answers nonsense
├── TextRefused         this router takes embeddings, and got a text
└── RequestRefused      one request gets no decision; the others go on
    ├── InvalidRequest      a field is malformed or out of bounds
    ├── UnknownModel        it names a model that is not in the catalogue
    ├── NoModelFits         every model is denied, or beyond the request's limits
    │   └── RuledOut            the operator's rules leave none of those that it allows
    ├── NoArms              an arm is asked for, and there are none
    ├── DeadlinePassed      its deadline had passed before it could be scored
    ├── QueueFull           too many requests wait already
    ├── FleetFull           every pool it could go to is full, and others need them more
    ├── RateExceeded        its tenant sends more requests than it may
    ├── BudgetUsedUp        a budget has nothing left for it until it is renewed
    ├── NotServing          the router is starting or stopping
    ├── Unauthenticated     no token that is known here and valid was shown
    ├── AccessDenied        the token is not good for this
    │   └── LoopbackOnly        without tokens it is for callers on this host alone
    ├── ChangeRefused       an edit of the settings that would leave them invalid, or as they are
    ├── EntryNotFound       it names an entry of the settings that there is not
    └── AttemptFailed       an endpoint of a pool gave no whole answer; another one may
        ├── EndpointUnreachable  no connection, or it broke
        ├── EndpointOverloaded   it said that it has too much to do
        ├── EndpointFailed       it answered with an error of its own
        │   └── EndpointMisconfigured  its url, model, key or account are set up wrongly
        ├── AnswerGarbled        its bytes are no answer
        ├── AnswerLate           no first token in time, or silence after one
        ├── CallRefused          it says the call itself is wrong; only another model is tried
        ├── AnswerBroken         it failed after its first token: too late for another one
        └── NoAnswer             all attempts failed
            ├── PoolsOverloaded      every pool it could go to wants to be left alone for now
            └── PoolsStarting        none of them has a server yet, and one is being started

An option with a value that can't work is `streams.errors.OptionRefused`, here as there.
What each means to a caller is the table in `meanings.py`.

Constructors are positional and pass their arguments on, so that every error survives pickling.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime


class ServeError(Exception):
    """Base of all errors of this folder."""


class EncoderUnavailable(ServeError):
    """The configured encoder can't turn texts into vectors, now or at all.

    `remedy` names what to install or to check. Requests that bring an embedding are not affected.
    """

    def __init__(self, encoder: str, problem: str, remedy: str) -> None:
        super().__init__(encoder, problem, remedy)
        self.encoder, self.problem, self.remedy = encoder, problem, remedy

    def __str__(self) -> str:
        return f"the encoder {self.encoder} can't be used: {self.problem}. {self.remedy}."


class TextRefused(ServeError):
    """A text came to a router that has no encoder, because its callers encode."""

    def __init__(self, encoder: str, dim: int) -> None:
        super().__init__(encoder, dim)
        self.encoder, self.dim = encoder, dim

    def __str__(self) -> str:
        return (
            f"a text was sent, but this router takes embeddings of length {self.dim} "
            f"({self.encoder}) and has no encoder of its own. Send `embedding` instead of `text`, "
            f"or set the encoder's `kind` to one that reads text."
        )


class RequestRefused(ServeError):
    """One request gets no decision. The message is for its sender."""


class InvalidRequest(RequestRefused):
    """A field is malformed or out of bounds."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        super().__init__(field, value, limit)
        self.field, self.value, self.limit = field, value, limit

    def __str__(self) -> str:
        return f"{self.field} is {self.value}; it must be {self.limit}"


class UnknownModel(RequestRefused):
    """The request names a model that is not in the catalogue."""

    def __init__(self, field: str, model: str, known: tuple[str, ...]) -> None:
        super().__init__(field, model, known)
        self.field, self.model, self.known = field, model, known

    def __str__(self) -> str:
        return f"{self.field} names {self.model!r}; the catalogue has {', '.join(self.known)}"


class NoModelFits(RequestRefused):
    """Every model is denied, or beyond the request's limits."""


class NoArms(RequestRefused):
    """An arm was asked for where the operator has declared none."""


class RuledOut(NoModelFits):
    """The operator's rules leave no model that the request allows."""

    def __init__(self, rules: tuple[str, ...], problem: str) -> None:
        super().__init__(rules, problem)
        self.rules, self.problem = rules, problem

    def __str__(self) -> str:
        named = ", ".join(map(repr, self.rules))
        return f"refused by the rule{'s' * (len(self.rules) > 1)} {named}: {self.problem}"


class DeadlinePassed(RequestRefused):
    """The deadline had passed before the request could be scored."""


class QueueFull(RequestRefused):
    """Too many requests wait already; failing at once is kinder than answering late."""


class FleetFull(RequestRefused):
    """Every pool it could go to is full, and requests of higher criticality need them more.

    `multiple` is what capacity costs in the cheapest of these pools, in prices of its GPUs.
    """

    def __init__(self, criticality: str, multiple: float) -> None:
        super().__init__(criticality, multiple)
        self.criticality, self.multiple = criticality, multiple

    def __str__(self) -> str:
        return (
            f"the fleet is full: where this request would be cheapest, capacity costs "
            f"{self.multiple:.3g} times the price of its GPUs, and requests of criticality "
            f"{self.criticality} are being refused. Try again later, or send what can't wait with "
            f"a higher criticality."
        )


class Unauthenticated(RequestRefused):
    """No token that is known here and valid was shown; the message does not repeat it."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class AccessDenied(RequestRefused):
    """The token is known, and not good for what is asked."""

    def __init__(self, token: str, scope: str, of: str = "") -> None:
        super().__init__(token, scope, of)
        self.token, self.scope, self.of = token, scope, of

    def __str__(self) -> str:
        of = f" for {self.of}" if self.of else ""
        return f"the token {self.token!r} has not the scope {self.scope!r}{of}"


class LoopbackOnly(AccessDenied):
    """What needs a right of its own, where nobody has tokens: for callers on this host alone."""

    def __init__(self, scope: str, peer: str) -> None:
        super().__init__("", scope)
        self.args = (scope, peer)
        self.peer = peer

    def __str__(self) -> str:
        return (
            f"this site has no tokens, so {self.scope!r} is for callers on its own host; this call "
            f"came from {self.peer}. Call from there, or give the site `[[tokens]]`"
        )


class ChangeRefused(RequestRefused):
    """An edit of the settings that would leave them invalid, or as they are; nothing was done."""

    def __init__(self, what: str, problems: tuple[str, ...]) -> None:
        super().__init__(what, problems)
        self.what, self.problems = what, problems

    def __str__(self) -> str:
        return f"{self.what} is not changed: {'; '.join(self.problems)}"


class EntryNotFound(RequestRefused):
    """There is no entry of this name in a list of the settings."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        return f"{self.kind} has no {self.name!r}; there are {', '.join(self.known) or 'none'}"


class RateExceeded(RequestRefused):
    """Its tenant sends more requests than the operator lets it."""

    def __init__(self, tenant: str, limit: str, retry_after_s: float) -> None:
        super().__init__(tenant, limit, retry_after_s)
        self.tenant, self.limit, self.retry_after_s = tenant, limit, retry_after_s
        self.field = "tenant"

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant!r} sends more than {self.limit}; try again in "
            f"{self.retry_after_s:.3g} s"
        )


SLICE_S = 2.0  # until a replica that refused has more of a budget that has some left


class BudgetUsedUp(RequestRefused):
    """A budget has nothing left for it. It is renewed at a stated time, Unix ms.

    Or nothing at this replica, which is sent more within a second as long as something is `left`.
    `retry_after_s` is when either is.
    """

    def __init__(
        self, budget: str, renewed_at_ms: int, now_ms: int, left: float = 0.0, why: str = ""
    ) -> None:
        super().__init__(budget, renewed_at_ms, now_ms, left, why)
        self.budget, self.renewed_at_ms, self.left, self.why = budget, renewed_at_ms, left, why
        self.retry_after_s = max(0.0, (renewed_at_ms - now_ms) / 1000.0)
        if left:
            self.retry_after_s = min(SLICE_S, self.retry_after_s)

    def __str__(self) -> str:
        renewed = datetime.fromtimestamp(self.renewed_at_ms / 1000.0, UTC)
        if self.left:
            return (
                f"the budget {self.budget} has nothing for this request now: of {self.left:,.6g} "
                f"that are left, {self.why}. Try again in {SLICE_S:.0f} s; it is renewed at "
                f"{renewed:%Y-%m-%dT%H:%M:%SZ}"
            )
        return (
            f"the budget {self.budget} has nothing left for this request. It is renewed at "
            f"{renewed:%Y-%m-%dT%H:%M:%SZ}, in {self.retry_after_s:.0f} s. Try again then, or ask "
            f"the operator for a higher amount"
        )


class NotServing(RequestRefused):
    """The router is starting or stopping."""


class AttemptFailed(RequestRefused):
    """An endpoint of a pool gave no whole answer.

    `kind` names the class in counters and replies.
    """

    kind = "failed"

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where, self.problem = where, problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class EndpointUnreachable(AttemptFailed):
    """No connection could be made, or it broke before the answer was whole."""

    kind = "unreachable"


class EndpointOverloaded(AttemptFailed):
    """The endpoint said that it has too much to do.

    `retry_after_s` is when it wants to be asked again; None where it did not say.
    """

    kind = "overloaded"

    def __init__(self, where: str, problem: str, retry_after_s: float | None = None) -> None:
        wait = f" (retry after {math.ceil(retry_after_s)} s)" if retry_after_s else ""
        super().__init__(where, problem + wait)
        self.args = (where, problem, retry_after_s)
        self.retry_after_s = retry_after_s


class EndpointFailed(AttemptFailed):
    """The endpoint answered with an error of its own."""

    kind = "error"


class EndpointMisconfigured(EndpointFailed):
    """The pool's url, model, key or account are set up wrongly: every call of it will fail."""

    kind = "set-up"


class AnswerGarbled(AttemptFailed):
    """What the endpoint sent is no answer."""

    kind = "garbled"


class AnswerLate(AttemptFailed):
    """No first token came in time, or the answer stopped coming."""

    kind = "late"


class CallRefused(AttemptFailed):
    """The endpoint says that the call itself is wrong, or more than its model can do."""

    kind = "refused"


class AnswerBroken(AttemptFailed):
    """The endpoint failed after its first token, so no other one could be tried."""

    kind = "broken"


class NoAnswer(AttemptFailed):
    """All attempts failed. `problem` lists them."""

    kind = "no answer"


class PoolsOverloaded(NoAnswer):
    """Every pool it could go to has said when it wants to be asked again.

    `retry_after_s` is when the first of them does.
    """

    kind = "overloaded"

    def __init__(self, where: str, problem: str, retry_after_s: float) -> None:
        super().__init__(where, problem)
        self.args = (where, problem, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{super().__str__()}. Ask again in {self.retry_after_s:.0f} s"


class PoolsStarting(NoAnswer):
    """No pool it could go to has a server, and one is being started.

    `retry_after_s` is when it may be there, by what its start was stated to take.
    """

    kind = "starting"

    def __init__(self, where: str, problem: str, retry_after_s: float) -> None:
        super().__init__(where, problem)
        self.args = (where, problem, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return (
            f"{super().__str__()}. A server is being started: ask again in "
            f"{self.retry_after_s:.0f} s. A model that has to answer at once needs "
            "`replicas_min = 1` in one of its pools"
        )
