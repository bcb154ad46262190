"""Which conversations an emulated server still has in its cache, and what of them.

    messages ─▶ one node for every prefix: a hash of it, and the tokens its last message adds
    cached   =  the tokens of the longest prefix whose every node is held

As in vLLM's automatic prefix caching: what was computed stays until room is needed, and whoever was
used longest ago goes first, a conversation's end before its beginning. Whole messages are kept
instead of blocks of 16 tokens.

Nothing is cached before it was computed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serve.dispatch.answers import texts_in
from serve.routing.request import BYTES_PER_TOKEN

# Clients send the keys of a message in whatever order they like.
encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A prompt, as far as the cache is concerned."""

    tokens: int
    cached_tokens: int
    seed: int  # the same for the same messages


class Prefixes:
    """The cache of one server."""

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max, self._tokens = tokens_max, 0
        self._held: OrderedDict[bytes, int] = OrderedDict()  # tokens by prefix; oldest use first

    def read(self, messages: Sequence[dict[str, Any]]) -> Found:
        """What is known of a prompt; changes nothing."""
        nodes = _nodes(messages)
        cached = 0
        for prefix, tokens in nodes:
            if prefix not in self._held:
                break
            cached += tokens
        return Found(
            tokens=sum(tokens for _, tokens in nodes),
            cached_tokens=cached,
            seed=int.from_bytes(nodes[-1][0], "little"),
        )

    def keep(self, messages: Sequence[dict[str, Any]]) -> None:
        """These have been computed."""
        for prefix, tokens in reversed(_nodes(messages)):
            self._tokens += tokens - self._held.pop(prefix, 0)
            self._held[prefix] = tokens
        while self._tokens > self._tokens_max:
            self._tokens -= self._held.popitem(last=False)[1]


def _nodes(messages: Sequence[dict[str, Any]]) -> list[tuple[bytes, int]]:
    seen, nodes = hashlib.blake2b(digest_size=16), []
    for message in messages:
        # Some clients send back all keys of an answer, with null where there was nothing.
        seen.update(encode({key: value for key, value in message.items() if value is not None}))
        n_bytes = sum(len(text.encode()) for text in texts_in(message.get("content")))
        nodes.append((seen.digest(), max(1, round(n_bytes / BYTES_PER_TOKEN))))
    return nodes
