"""What a conversation is routed by: its words.

    contents of messages ──▶ a message a line ──▶ the last 64 KiB

Whatever the conversation holds there is a text, so that there can be a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serve.routing.request import TEXT_BYTES_MAX

NO_TEXT = "[no text]"  # what a conversation without a single word is routed by


def routing_text(contents: Iterable[object]) -> str:
    """The words of all contents, one a line; at most the last 65,536 bytes.

    The last, because what is asked now stands at the end. What is no text leaves its type as a
    word, `[image_url]`: it tells apart what the words alone do not.
    """
    text = "\n".join(words for content in contents if (words := _words(content)))
    if not text.strip():
        return NO_TEXT
    encoded = text.encode()
    if len(encoded) <= TEXT_BYTES_MAX:
        return text
    return encoded[-TEXT_BYTES_MAX:].decode(errors="ignore")  # drops the rest of a cut character


def _words(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(_part(part) for part in parts if isinstance(part, Mapping))


def _part(part: Mapping[str, object]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else f"[{part.get('type', 'unknown')}]"
