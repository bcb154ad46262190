"""A page as a real browser has it, for tests: its elements after its scripts, and its picture."""

from __future__ import annotations

import asyncio

import pytest

from load.bench.operate.browser import NoBrowser, browser

LOADED = "document.readyState === 'complete'"


def in_a_browser(
    url: str, shown: str = LOADED, *, width: int = 1280, height: int = 900, dark: bool = False
) -> tuple[str, bytes]:
    """(elements, PNG) of a page, once the script `shown` says that it is; skipped without a browser."""

    async def looked_at() -> tuple[str, bytes]:
        async with browser(width, height) as page:
            await page.paint(dark=dark)
            await page.open(url)
            await page.until(f"location.href !== 'about:blank' && ({shown})")
            return await page.run("document.documentElement.outerHTML"), await page.picture()

    try:
        return asyncio.run(looked_at())
    except NoBrowser as none:
        pytest.skip(str(none))
