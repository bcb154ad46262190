"""The dashboard's paths: a page without figures, and the JSON that it reads.

    GET /dashboard                     the page: one file, which loads nothing else
    GET /dashboard/now.json            status, and the day in columns     ?baseline=MODEL
    GET /dashboard/decisions.json      the newest decisions               ?n=50
    GET /dashboard/decision.json       one, with all that it rested on    ?ticket=…

Where tokens are on, the JSON takes one with the scope `read` and no tenant, because it is of all
tenants; the page asks for it and keeps it for as long as its tab is open. docs/dashboard.md is the
contract.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any, Protocol

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.dashboard.history import AT, HOUR_MS, HOURS, History, Sample, series
from infra.dashboard.recent import recent
from infra.dashboard.recorder import TALLY
from infra.dashboard.savings import compared, merged
from infra.status.status import Status
from serve.errors import InvalidRequest
from serve.openai_api.request import read_ticket
from streams.errors import BadTicket
from streams.log.contract import Log

PREFIX = "/dashboard"
DECISIONS_MAX = 200
# Nothing from elsewhere, nothing framed, nothing kept.
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Desk(Protocol):
    """What is read: implemented by `infra.dashboard.desk`."""

    def status(self) -> Status:
        """One look. Raises OSError and StreamError."""

    def log(self) -> Log:
        """The log, opened anew."""

    def history(self) -> History:
        """The last day."""

    def baseline(self) -> str:
        """The model that savings are stated against; "" where there is none."""


class Explainer(Protocol):
    """What opens tickets: `serve.deploy.explorer.Explorer`."""

    def explain(self, ticket: bytes) -> dict[str, Any]:
        """Raises BadTicket."""


def pages(desk: Desk, explainer: Explainer, now_ms: Callable[[], int]) -> Mapping[str, ASGIApp]:
    """All of them, by path."""

    def now(request: Request) -> object:
        baseline = request.query_params.get("baseline", "") or desk.baseline()
        return as_json(desk.status(), desk.history(), baseline, now_ms())

    def decisions(request: Request) -> object:
        n = _whole_number("n", request.query_params.get("n", "50"), DECISIONS_MAX)
        log = desk.log()
        try:
            return {"decisions": recent(log, n)}
        finally:
            log.close()

    def decision(request: Request) -> object:
        text = request.query_params.get("ticket", "").strip()
        try:
            return explainer.explain(ticket_of(text))
        except (ValueError, BadTicket) as error:
            raise InvalidRequest("ticket", error, "as it came with a decision") from error

    return {
        PREFIX: _Page(_page),
        f"{PREFIX}/now.json": _Page(_read(now)),
        f"{PREFIX}/decisions.json": _Page(_read(decisions)),
        f"{PREFIX}/decision.json": _Page(_read(decision)),
    }


def as_json(status: Status, history: History, baseline: str, now_ms: int) -> dict[str, object]:
    """What the page shows; every figure on it is one of these."""
    from_ms = now_ms - HOURS * HOUR_MS
    samples = history.since(from_ms)
    tally = merged([one.get(TALLY) for one in samples])
    # A young site's charts begin with it, an hour ago at the latest.
    began_ms = min([*(one[AT] for one in samples[:1]), now_ms - HOUR_MS])
    shown = [{name: value for name, value in one.items() if name != TALLY} for one in samples]
    return {
        "version": version("fairlead"),
        "at_unix_ms": now_ms,
        "status": status.json(),
        "history": series(shown, max(from_ms, began_ms), now_ms),
        "savings": compared(tally, baseline),
        "savings_by_hour": _by_hour(samples, baseline, from_ms),
        "baselines": sorted({name for of in tally.values() for name in of}),
    }


def _by_hour(samples: Sequence[Sample], baseline: str, from_ms: int) -> list[dict[str, object]]:
    """Each hour by itself, where there is anything to say."""
    found = []
    for begin_ms in range(from_ms, from_ms + HOURS * HOUR_MS, HOUR_MS):
        within = [one for one in samples if begin_ms <= one[AT] < begin_ms + HOUR_MS]
        one = compared(merged([sample.get(TALLY) for sample in within]), baseline)
        found.append({AT: begin_ms, **{name: one[name] for name in ("saved_share", "requests")}})
    return found


def ticket_of(text: str) -> bytes:
    """In hexadecimal or base64, as people paste it. Raises ValueError."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return read_ticket(text.replace("+", "-").replace("/", "_"))


class _Page:
    """An ASGI app of one GET."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)


def _read(what: Callable[[Request], object]) -> Callable[[Request], Awaitable[Response]]:
    """JSON that is read in a thread: it waits for disks."""

    async def answer(request: Request) -> Response:
        found = await run_in_threadpool(what, request)
        headers = HEADERS | {"content-type": "application/json"}
        return Response(msgspec.json.encode(found), headers=headers)

    return answer


async def _page(request: Request) -> Response:
    del request
    headers = HEADERS | {"content-type": "text/html; charset=utf-8"}
    return Response(page(), headers=headers)


def page() -> str:
    """The page as it is sent."""
    folder = resources.files("infra.dashboard")
    parts = {name: (folder / f"page.{name}").read_text() for name in ("css", "js", "html")}
    whole = parts["html"].replace("/*style*/", parts["css"])
    return whole.replace("/*script*/", parts["js"])


def _whole_number(name: str, text: str, most: int) -> int:
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise InvalidRequest(name, repr(text[:20]), f"1 to {most}")
    return int(text)
