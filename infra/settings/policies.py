"""Which policy is taken, with which parameters; and which one a change tries.

    [router]                 policy = "thompson"
    [policies.thompson]      scale = 0.5            the parameters of the registered dataclass
    [router]                 policy_strength = 0.5  the same, shorter: the first parameter

A policy that is registered in `learners.policies` has its section without a line here.
"""

from __future__ import annotations

from infra.settings.layout import policy_section
from infra.settings.sections import Stated, keys_of
from infra.settings.site_options import PolicyChoice
from learners.policies.policy import POLICIES, Policy
from streams.errors import OptionRefused


def policy_of(settings: Stated) -> Policy:
    """The policy that is set. Raises OptionRefused."""
    choice = settings.options(PolicyChoice)
    name, strength = choice.policy, choice.strength
    first = next(keys_of(POLICIES[name], policy_section(name)), None)
    if not strength or first is None:
        return settings.options(POLICIES[name])
    if not first.option.allows(strength):
        wanted = f"{first.option.bounds} for {name}"
        raise OptionRefused("router.policy_strength", strength, wanted)
    stated = settings.stated(first.path)
    if stated not in (first.default, strength):
        raise OptionRefused(
            f"router.policy_strength and {first.path}", (strength, stated), "one of the two"
        )
    return settings.options(POLICIES[name], **{first.name: strength})
