"""How a server that speaks OpenAI's API is called. Apart from the endpoint, whose HTTP client takes
a quarter of the time that a command needs to read its settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from yarl import URL

from infra.capacity.fleet import ServerOptions
from streams.errors import OptionRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiOptions(ServerOptions):
    """Where a server is and how it is talked to."""

    url: str  # up to and with the version: "http://host:8000/v1"
    model: str  # as the server calls it
    line_bytes_max: int = 1 << 20  # a token is 300 bytes, with 20 alternatives 4 kB
    answer_bytes_max: int = 64 << 20  # 128,000 tokens of 500 bytes
    include_usage: bool = True  # ask for token counts in the stream

    @classmethod
    def of(cls, server: ServerOptions, *, url: str, model: str) -> OpenAiOptions:
        """One server of a pool. Raises OptionRefused."""
        stated = {field.name: getattr(server, field.name) for field in fields(ServerOptions)}
        return cls(url=url, model=model, **stated)

    def __post_init__(self) -> None:
        """Raises OptionRefused. A key is never part of its message."""
        if not _is_plain(self.url):
            # It may carry a password, so it is not repeated.
            wanted = "http(s)://host[:port]/path, without user, query and fragment"
            raise OptionRefused("url", "something else", wanted)
        if not self.model:
            raise OptionRefused("model", self.model, "the name of a model")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable()):
            raise OptionRefused("api_key", "<hidden>", "printable ASCII and not empty")
        if "stream" in self.extra:
            raise OptionRefused("extra.stream", self.extra["stream"], "left out: see `stream`")
        for name in ("connect_timeout_s", "idle_timeout_s", "line_bytes_max", "answer_bytes_max"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise OptionRefused(name, value, "above 0 and finite")


def _is_plain(url: str) -> bool:
    try:
        parts = URL(url)
    except ValueError:
        return False
    return bool(
        parts.scheme in ("http", "https")
        and parts.host
        and not (parts.user or parts.password or parts.query_string or parts.fragment)
    )
