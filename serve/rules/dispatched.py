"""What the operator's rules make of a call that is dispatched.

rules that matched ─┬─ `system_prompt` ─▶ one system message, before all others
└─ `extra` ─────────▶ fields of the body, over what the caller has there:
past a cache, say, as its server wants it said
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve.rules.rule import Rule


def as_dispatched(body: Mapping[str, object], rules: Sequence[Rule]) -> Mapping[str, object]:
    """A chat completion as these rules have it; of two that say a field, the first one's counts."""
    found = with_system_prompts(body, [one.system_prompt for one in rules if one.system_prompt])
    for rule in reversed(rules):
        found = {**found, **rule.extra} if rule.extra else found
    return found


def with_system_prompts(body: Mapping[str, object], prompts: Sequence[str]) -> Mapping[str, object]:
    r"""A chat completion with these prompts first.

    A system message that it begins with is joined to them: some servers take one alone.

    >>> asked = {"messages": [{"role": "system", "content": "Be brief."}]}
    >>> with_system_prompts(asked, ["No advice."])["messages"]
    [{'role': 'system', 'content': 'No advice.\n\nBe brief.'}]
    """
    messages = body.get("messages")
    if not prompts or not isinstance(messages, list | tuple):
        return body
    said, rest = list(prompts), list(messages)
    first = rest[0] if rest else None
    if isinstance(first, Mapping) and first.get("role") == "system":
        content = first.get("content")
        if isinstance(content, str):
            said, rest = [*said, content], rest[1:]
    return {**body, "messages": [{"role": "system", "content": "\n\n".join(said)}, *rest]}
