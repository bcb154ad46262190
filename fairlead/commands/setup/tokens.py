"""`fairlead tokens new`: a token for its owner, and the settings' entry, which is no secret."""

from __future__ import annotations

import json
from typing import Any

from serve.access.tokens import Access, Token, digest_of, new_token


def made(name: str, tenant: str, scopes: str, expires_at_unix_s: float) -> dict[str, Any]:
    """A fresh token and its entry. Raises OptionRefused."""
    secret = new_token()
    wanted = tuple(scope.strip() for scope in scopes.split(",") if scope.strip())
    token = Token(
        name=name,
        sha256=digest_of(secret.encode()),
        tenant=tenant,
        scopes=wanted,
        expires_at_unix_s=expires_at_unix_s,
    )
    Access((token,))
    return {"token": secret, "settings": _entry(token)}


def _entry(token: Token) -> str:
    """As it is written in the settings file."""
    lines = ["[[tokens]]", f"name = {json.dumps(token.name)}", f'sha256 = "{token.sha256}"']
    if token.tenant:
        lines.append(f"tenant = {json.dumps(token.tenant)}")
    lines.append(f"scopes = {json.dumps(list(token.scopes))}")
    if token.expires_at_unix_s:
        lines.append(f"expires_at_unix_s = {token.expires_at_unix_s:.0f}")
    return "\n".join(lines)
