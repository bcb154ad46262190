"""Hints in a text, as patterns: source code, personal data, attempts to undo a model's rules.

Hints, not proofs: they miss what is written otherwise, and now and then find what is none. What
must not be missed belongs to a classifier in front of the router, which says so in `tags`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CODE = (
    r"```|(?m)^\s*(?:def|class) \w+[(:]|(?m)^\s*(?:import|from) [\w.]+(?: import|$)"
    r"|#include\s*[<\x22]|\b(?:function|func|fn)\s+\w*\s*\(|\b(?:const|let|var)\s+\w+\s*="
    r"|=>\s*\{|\b(?:public|private|static)\s+(?:static\s+)?\w+\s+\w+\s*\(|(?i:\bselect\b.{1,200}\bfrom\s+\w+|\binsert\s+into\s+\w+)|"
    r"Traceback \(most recent call last\)|(?m);\s*$[\s\S]*?;\s*$|</(?:div|span|p|html|body|script)>"
)

PII: Mapping[str, str] = {
    "email": r"[\w.+-]+@[\w-]+\.[\w.-]*\w",
    # International with +, or in groups as they are written; a plain number is none.
    "phone": r"(?:\+\d{1,3}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,4}|\(\d{3}\) ?\d{3}-\d{4}"
    r"|\b\d{3}[.-]\d{3}[.-]\d{4})\b",
    "card": r"\b\d(?:[ -]?\d){12,18}\b",  # and the check digit must be right: `is_card`
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",
    "ssn": r"\b\d{3}-\d{2}-\d{4}\b",
    "ip": r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b",
}

_RULES = r"(?:instructions?|rules?|guidelines?|prompts?|directions?|restrictions?|filters?)"
JAILBREAK = (
    r"(?is)\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:all|any|previous|prior|above|"
    r"earlier|your|the|system|safety)\b.{0,40}\b" + _RULES + r"\b"
    r"|\bdo anything now\b|\bDAN mode\b|\byou are (?:now )?DAN\b|\bjailbr(?:eak|oken)\b"
    r"|\bdeveloper mode\b.{0,40}\b(?:on|enabled|output)\b"
    r"|\b(?:pretend|act|behave|respond|answer|roleplay)\b.{0,60}\b(?:no|without|free of|"
    r"not bound by|unfiltered|uncensored|unrestricted)\b.{0,40}\b(?:"
    + _RULES
    + r"|limits?|limitations?|ethics|"
    r"censorship|morals?|AI|assistant|model)\b"
    r"|\b(?:reveal|print|show|repeat|output|leak)\b.{0,40}\b(?:system|hidden|initial|secret)\b.{0,20}"
    r"\b(?:prompt|instructions?|message)\b"
)

_CARD = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")


def has_card(text: str) -> bool:
    """Whether a number in it has the form and the check digit of a payment card (Luhn).

    >>> has_card("4111 1111 1111 1111"), has_card("4111 1111 1111 1112")
    (True, False)
    """
    return any(_luhn(found.group()) for found in _CARD.finditer(text))


def _luhn(number: str) -> bool:
    digits = [int(d) for d in reversed(number) if d.isdigit()]
    doubled = (d * 2 - 9 if d > 4 else d * 2 for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
