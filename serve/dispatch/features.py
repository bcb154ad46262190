"""What a request asks of a model beyond answering text, and what pools have refused of it.

    body ──features_of──▶ {tools, images, json, logprobs, audio}     and its length in tokens
    a refusal's words ──refused_features──▶ which of them it is about

A server answers 400 where its model can't do something. That is nobody's fault: the next model
answers, and the pool is remembered to refuse that feature. It is then asked last for such requests,
not never: `Refusals` forgets after a while, and at once when the pool does what it had refused. A
catalogue that states `supports` keeps a model from being asked at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from serve.routing.catalogue import Ability

# What a catalogue can state, and the length, for which it has `context_tokens_max`.
Feature = Ability | Literal["length"]
FEATURES: tuple[Feature, ...] = (*get_args(Ability), "length")

KEPT_S = 600.0  # then a request probes: servers are updated, and words can be misread

# How servers' words name a feature: OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Google.
WORDS: Mapping[Feature, re.Pattern[str]] = {
    "tools": re.compile(r"\btools?\b|tool[_ ]?(choice|call|use)|function[_ ]?call", re.IGNORECASE),
    "images": re.compile(r"\bimages?\b|image_url|vision|multi-?modal|mmproj", re.IGNORECASE),
    "audio": re.compile(r"\baudio\b|input_audio|speech", re.IGNORECASE),
    "json": re.compile(r"response_format|json|guided|structured|grammar|schema", re.IGNORECASE),
    "logprobs": re.compile(r"log_?-?prob", re.IGNORECASE),
    "length": re.compile(
        r"context|too (long|large|many)|maximum.{0,40}(length|tokens)|max_(model_len|seq_len)"
        r"|exceed.{0,40}(tokens|length)",
        re.IGNORECASE,
    ),
}
PARTS: Mapping[str, Feature] = {
    "image_url": "images",
    "image": "images",
    "input_image": "images",
    "input_audio": "audio",
    "audio": "audio",
}
MODALITY: Mapping[Feature, str] = {"images": "image", "audio": "audio"}


def features_of(body: Mapping[str, object]) -> frozenset[Feature]:
    """What an OpenAI chat completion request asks for.

    >>> sorted(features_of({"tools": [{}], "messages": [{"content": [{"type": "image_url"}]}]}))
    ['images', 'tools']
    """
    found: set[Feature] = set()
    if body.get("tools") or body.get("functions"):
        found.add("tools")
    if _kind(body.get("response_format")) not in (None, "text"):
        found.add("json")
    if body.get("logprobs") or body.get("top_logprobs"):
        found.add("logprobs")
    modalities = body.get("modalities")
    if body.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
        found.add("audio")
    return frozenset(found | _in_messages(body.get("messages")))


def modality_of(features: Collection[Feature]) -> str:
    """What a request is beside text, as requests name it; "" where it is nothing else."""
    return next((name for part, name in MODALITY.items() if part in features), "")


def _in_messages(messages: object) -> set[Feature]:
    contents = [m.get("content") for m in _list(messages) if isinstance(m, Mapping)]
    kinds = {str(_kind(part)) for content in contents for part in _list(content)}
    return {PARTS[kind] for kind in kinds if kind in PARTS}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, Mapping) else None


def refused_features(words: str, asked: Collection[Feature]) -> frozenset[Feature]:
    """What of the asked features a refusal is about; none where its words name none of them.

    >>> sorted(refused_features("This model does not support image input", {"images", "tools"}))
    ['images']
    """
    named = {name for name in asked if WORDS[name].search(words)}
    if WORDS["length"].search(words) and not named:
        named.add("length")
    return frozenset(named)


@dataclass(slots=True, kw_only=True)
class Refused:
    """That a pool has refused a feature."""

    until_s: float
    words: str
    tokens: float  # of the prompt that was too long; every longer one is


class Refusals:
    """What each pool has refused, and not done since. Used from one event loop.

    >>> refusals = Refusals()
    >>> refusals.note("small", {"tools"}, 100, "no tools", now_s=0.0)
    >>> refusals.refuses("small", {"tools", "json"}, 100, now_s=1.0)
    True
    >>> refusals.undo("small", {"tools"}, 100)
    >>> refusals.refuses("small", {"tools"}, 100, now_s=1.0)
    False
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[Feature, Refused]] = {}

    def note(
        self, pool: str, features: Collection[Feature], tokens: float, words: str, *, now_s: float
    ) -> None:
        """A pool has refused these features of a prompt of so many tokens."""
        known = self._of.setdefault(pool, {})
        for feature in features:
            known[feature] = Refused(until_s=now_s + KEPT_S, words=words, tokens=tokens)

    def undo(self, pool: str, features: Collection[Feature], tokens: float) -> None:
        """A pool has answered a request with these features and so many tokens."""
        known = self._of.get(pool)
        if not known:
            return
        for feature in features:
            known.pop(feature, None)
        if (length := known.get("length")) and tokens >= length.tokens:
            del known["length"]

    def refuses(
        self, pool: str, features: Collection[Feature], tokens: float, *, now_s: float
    ) -> bool:
        """Whether the pool is expected to refuse such a request."""
        known = self._of.get(pool)
        if not known:
            return False
        asked = [known[f] for f in features if f in known]
        if (length := known.get("length")) and tokens >= length.tokens:
            asked.append(length)
        return any(now_s < one.until_s for one in asked)

    def status(self, now_s: float) -> dict[str, dict[Feature, str]]:
        """By pool and feature, in the server's words, what is remembered now."""
        found = {
            pool: {name: one.words for name, one in known.items() if now_s < one.until_s}
            for pool, known in self._of.items()
        }
        return {pool: known for pool, known in found.items() if known}
