"""Bearer tokens: which are known, whose they are, and what they are good for.

    authorization: Bearer fl_… ──SHA-256──▶ a token of the settings ──▶ Grant(tenant, scopes)

The settings hold digests, never tokens: who reads the file can't call. A token is 32 random bytes,
so one round of SHA-256 is enough, and looking a digest up tells nobody's clock anything of a token.

A token with a tenant speaks for that tenant alone, whatever a request says. Two tokens may have the
same tenant and scopes, so that one can be replaced by the other while both are valid.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from learners.option import option
from serve.errors import AccessDenied, Unauthenticated
from serve.routing.request import TENANT_BYTES_MAX
from streams.errors import OptionRefused

PREFIX, TOKEN_BYTES = "fl_", 32
SCHEME = b"bearer"
SCOPES = ("route", "dispatch", "feedback", "read", "admin")
DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of the settings. `fairlead tokens new` makes it."""

    name: str = option("", "For logs and people; not secret.", max_length=200)
    sha256: str = option("", "SHA-256 of the token, in hexadecimal.", max_length=DIGEST_LENGTH)
    tenant: str = option("", "Whose requests these are; empty: whose they say.", max_length=200)
    scopes: tuple[str, ...] = option(
        ("route", "feedback"),
        "What it is good for: route, dispatch, feedback, read (Explain, models, status), admin.",
    )
    expires_at_unix_s: float = option(0.0, "It is refused from then on. 0: never.", ge=0, le=1e11)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do, and as whom: "" is whoever it says."""

    name: str
    tenant: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raise AccessDenied unless the scope is granted."""
        if scope not in self.scopes:
            raise AccessDenied(self.name, scope)


EVERYONE = Grant("", "", frozenset(SCOPES) - {"admin"})


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in. Without tokens everyone is, for all but `admin`.

    >>> Access([]).grant(None, 0.0) == EVERYONE
    True
    """

    tokens: Sequence[Token]
    _known: dict[str, Token] = field(init=False)

    def __post_init__(self) -> None:
        """Raises OptionRefused."""
        known: dict[str, Token] = {}
        for token in self.tokens:
            _check(token)
            twin = known.setdefault(token.sha256.lower(), token)
            if twin is not token:
                raise OptionRefused(
                    f"tokens.{token.name}.sha256", f"that of {twin.name!r}, too", "its own"
                )
        object.__setattr__(self, "_known", known)

    @property
    def asks(self) -> bool:
        """Whether a token is needed at all."""
        return bool(self._known)

    def grant(self, authorization: str | bytes | None, now_s: float) -> Grant:
        """What the value of an `authorization` header allows. Raises Unauthenticated."""
        if not self._known:
            return EVERYONE
        shown = authorization or b""
        shown = shown if isinstance(shown, bytes) else shown.encode("utf-8", "surrogateescape")
        scheme, _, secret = shown.partition(b" ")
        if scheme.lower() != SCHEME or not secret:
            raise Unauthenticated("no token was shown: send `authorization: Bearer …`")
        found = self._known.get(digest_of(secret.strip()))
        if found is None:
            raise Unauthenticated("the token is not known here")
        if found.expires_at_unix_s and now_s >= found.expires_at_unix_s:
            raise Unauthenticated(f"the token {found.name!r} has expired")
        return Grant(found.name, found.tenant, frozenset(found.scopes))


OPEN = Access(())  # no tokens: everyone is let in


def new_token() -> str:
    """A fresh token; to be shown once and kept by its owner."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: bytes) -> str:
    """What the settings keep of it."""
    return hashlib.sha256(token).hexdigest()


def keys_as_tokens(keys: Sequence[str]) -> list[Token]:
    """Keys of OpenAI's API as tokens: for whoever a request says, and all that HTTP has."""
    scopes = ("route", "dispatch", "feedback", "read")
    return [
        Token(name=f"api key {i}", sha256=digest_of(key.encode()), scopes=scopes)
        for i, key in enumerate(keys, 1)
    ]


def _check(token: Token) -> None:
    where = f"tokens.{token.name or '(unnamed)'}"
    if len(token.sha256) != DIGEST_LENGTH or set(token.sha256.lower()) - set("0123456789abcdef"):
        raise OptionRefused(f"{where}.sha256", token.sha256, f"{DIGEST_LENGTH} hexadecimal digits")
    if len(token.tenant.encode()) > TENANT_BYTES_MAX:
        wanted = f"at most {TENANT_BYTES_MAX} bytes, as in a request"
        raise OptionRefused(f"{where}.tenant", token.tenant, wanted)
    unknown = sorted(set(token.scopes) - set(SCOPES))
    if unknown or not token.scopes:
        wanted = "some of " + ", ".join(SCOPES)
        raise OptionRefused(f"{where}.scopes", ", ".join(unknown) or "empty", wanted)
