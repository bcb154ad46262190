"""The page in a real browser: its figures are the API's, it loads nothing else, and a stranger sees none."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser

import httpx2
import pytest
from in_a_browser import in_a_browser
from recorded_day import EXPLANATION, NOON_MS, SAVED, Desk
from starlette.routing import Route
from waiting import PATIENCE_S

from infra.dashboard.app import page, pages
from load.bench.operate.dashboard import PAINTED
from serve.access.tokens import Token, digest_of
from serve.openai_api.app import HttpOptions, make_app
from serve.openai_api.http_listener import HttpListener, HttpListenerOptions
from streams.errors import BadTicket

KB_MAX = 300
TICKET = b"\x05a ticket"


class Explainer:
    def explain(self, ticket: bytes) -> dict:
        if ticket != TICKET:
            raise BadTicket("a ticket that was not sealed here, or was changed since")
        return EXPLANATION


@contextmanager
def served(desk: Desk, tokens: tuple[Token, ...] = ()) -> Iterator[str]:
    """Base URL of the dashboard of this desk, on the real HTTP listener."""
    shown = pages(desk, Explainer(), lambda: NOON_MS)
    app = make_app(
        None, lambda: None, None, HttpOptions(), tokens=tokens,
        beside=lambda bodies: [Route(path, one) for path, one in shown.items()],
    )  # fmt: skip
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> HttpListener:
        listener = HttpListener(app, HttpListenerOptions(port=0, grace_s=1.0))
        await listener.start()
        return listener

    listener = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield f"http://127.0.0.1:{listener.port}/dashboard"
    finally:
        asyncio.run_coroutine_threadsafe(listener.stop(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(Desk(tmp_path_factory.mktemp("day"))) as base:
        yield base


class Figures(HTMLParser):
    """Every figure of a page: its key, the value it stands for, and what people read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self._open: dict[str, str] | None = None

    def handle_starttag(self, tag, attrs):
        if tag == "span" and "data-key" in dict(attrs):
            self._open = dict(attrs)

    def handle_data(self, data):
        if self._open is not None:
            self.found.append((self._open["data-key"], self._open["data-value"], data))
            self._open = None


def within(found, key):
    if isinstance(found, list):
        first, _, rest = key.partition(".")
        return within(found[int(first)], rest) if rest else found[int(first)]
    if key in found:
        return found[key]
    (name,) = [n for n in found if key.startswith(f"{n}.") and isinstance(found[n], dict | list)]
    return within(found[name], key[len(name) + 1 :])


def test_figures_of_the_page_are_those_of_the_api(url):
    (dom, _), api = in_a_browser(url, PAINTED), httpx2.get(f"{url}/now.json").json()
    figures = Figures()
    figures.feed(dom)

    assert len(figures.found) > 45
    for key, raw, _ in figures.found:
        assert json.loads(raw) == within(api, key), key
    shown = {key: text for key, _, text in figures.found}
    assert shown["status.router.decisions_per_s"] == "152"
    assert shown["status.records"] == "1,204,332"
    assert (
        shown["savings.saved_share.mean"] == f"{100 * api['savings']['saved_share']['mean']:.0f} %"
    )
    assert (
        api["savings"]["saved_share"]["low"] - 0.01
        < SAVED
        < api["savings"]["saved_share"]["high"] + 0.01
    )
    assert "All well" in dom
    assert dom.split("<script>")[0].count("<svg") == 9


def test_the_page_is_small_and_loads_nothing_from_elsewhere(url):
    """
    A day of data included; and no address but its own is named, so it works without a network.
    """
    whole, day = httpx2.get(url), httpx2.get(f"{url}/now.json")
    assert len(whole.content) + len(day.content) < KB_MAX * 1024
    assert whole.text == page()
    assert not re.search(r"https?://|@import|url\(", whole.text)
    assert "default-src 'none'" in whole.headers["content-security-policy"]
    assert day.headers["cache-control"] == "no-store"


def test_an_alarm_is_the_first_thing_on_the_page(tmp_path):
    with served(Desk(tmp_path, alarmed=True, minutes=5)) as base:
        dom, _ = in_a_browser(base, PAINTED)
    assert "1 alarm" in dom
    assert dom.index("nothing of it was read") < dom.index("Time to decide")


def test_newest_decisions_are_shown_without_prompts(url):
    found = httpx2.get(f"{url}/decisions.json?n=3")
    assert "nobody may see" not in found.text
    rows = found.json()["decisions"]
    assert [row["decided_at_unix_ms"] for row in rows] == [NOON_MS, NOON_MS - 1000, NOON_MS - 2000]
    assert rows[0]["propensities"] == {"small": 0.62, "medium": 0.28, "large": 0.1}


@pytest.mark.parametrize("written", [TICKET.hex(), "BWEgdGlja2V0", "BWEgdGlja2V0=="])
def test_a_ticket_is_explained_however_it_was_pasted(url, written):
    found = httpx2.get(f"{url}/decision.json", params={"ticket": written})
    assert found.json() == EXPLANATION


@pytest.mark.parametrize(
    ("path", "named"),
    [("decision.json?ticket=00ff", "ticket"), ("decision.json", "ticket"), ("decisions.json?n=0", "n"), ("decisions.json?n=x", "n")],
)  # fmt: skip
def test_what_is_asked_wrongly_is_refused_with_the_field(url, path, named):
    refused = httpx2.get(f"{url}/{path}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == named


def test_where_tokens_are_on_figures_take_one_of_no_tenant(tmp_path):
    """
    The page itself says nothing and is open; what it reads is of all tenants.
    """

    def token(name: str, tenant: str, *scopes: str) -> Token:
        return Token(name=name, sha256=digest_of(name.encode()), tenant=tenant, scopes=scopes)

    tokens = (
        token("operator", "", "read"),
        token("shop", "acme", "read"),
        token("router", "", "route"),
    )
    with served(Desk(tmp_path, minutes=5), tokens) as base:

        def status(path: str, secret: str = "") -> int:
            headers = {"authorization": f"Bearer {secret}"} if secret else {}
            return httpx2.get(base + path, headers=headers).status_code

        assert status("") == 200
        for path in ("/now.json", "/decisions.json", "/decision.json?ticket=00"):
            assert status(path) == 401
            assert status(path, "shop") == 403
            assert status(path, "router") == 403
            assert status(path, "operator") in {200, 400}
        assert status("/now.json/") == 401
        dom, _ = in_a_browser(base, "document.body?.innerText.includes('Locked')")
        dom = dom.split("<script>")[0]
        assert "<svg" not in dom


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "laptop"])
def test_a_screenshot_can_be_taken(url, dark, width):
    _, picture = in_a_browser(url, PAINTED, width=width, dark=dark)
    assert len(picture) > 20_000
