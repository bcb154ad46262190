"""What the operator's rules say to a model before a conversation.

rules that matched ──their `system_prompt`──▶ one system message, before all others
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
