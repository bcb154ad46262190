"""Which policy is taken, with which parameters.

    [router]                 policy = "thompson"
    [policies.thompson]      scale = 0.5            the parameters of the registered dataclass
    [router]                 policy_strength = 0.5  the same, shorter: the first parameter

A policy that is registered in `learners.policies` has its section without a line here.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from infra.settings.layout import policy_section
from infra.settings.sections import keys_of
from learners.policies.policy import POLICIES, Policy
from streams.errors import OptionRefused

Settings = Any  # `infra.settings.model`, which imports this; its fields come from the options


def policy_of(settings: Settings) -> Policy:
    """The policy that is set. Raises OptionRefused."""
    name, strength = settings.router.policy, settings.router.policy_strength
    first = next(keys_of(POLICIES[name], policy_section(name)), None)
    if not strength or first is None:
        return settings.options(POLICIES[name])
    if not first.option.allows(strength):
        wanted = f"{first.option.bounds} for {name}"
        raise OptionRefused("router.policy_strength", strength, wanted)
    stated = reduce(getattr, first.path.split("."), settings)
    if stated not in (first.default, strength):
        raise OptionRefused(
            f"router.policy_strength and {first.path}", (strength, stated), "one of the two"
        )
    return settings.options(POLICIES[name], **{first.name: strength})
