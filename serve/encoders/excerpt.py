"""As much of a text as an encoder reads.

A prompt may be a megabyte; encoding one would take a second, for vectors that hardly differ from
those of its first pages. 99 of 100 prompts in the tables measured are shorter than 2,500 bytes.

The time an encoder takes has a bound that no text can exceed. Bytes are counted, not characters,
because tokenizers take their time by the byte: 8,192 emoji cost WordLlama 125 ms.
"""

from __future__ import annotations

BYTES_MAX = 4096


def excerpt(text: str) -> str:
    """The text itself, or the two ends of a long one: the question is as often last as first."""
    # A lone surrogate is not valid Unicode, and tokenizers raise on it; it becomes a "?".
    data = text.encode("utf-8", "replace")
    if len(data) <= BYTES_MAX:
        return data.decode()
    half = (BYTES_MAX - 1) // 2  # and a space between
    # Cutting may split a character; what is left of it is dropped.
    return f"{data[:half].decode(errors='ignore')} {data[-half:].decode(errors='ignore')}"
