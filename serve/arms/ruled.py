"""The operator's rules applied to requests for arms: which groups of arms they leave.

    requests ──Rulebook──▶ rules each meets ──▶ requests with their limits, weights, tags, groups

Conditions are those of `serve.rules`. Of what a rule does, arms know `refuse`, `allow_groups`,
`deny_groups`, `cost_usd_max`, `preference` and `tag`; the rest is about models. A rule that sends
requests to the guard and says nothing of groups refuses them: not in silence may they go anywhere.
As there, rules only ever narrow what a request may have, before the draw: propensities are those
of the draw among what was left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.arms.asked import ArmInput
from serve.errors import RuledOut, ServeError
from serve.routing.request import BYTES_PER_TOKEN, WEIGHTS
from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from serve.rules.ruling import changed_by

NO_GUARD = (
    "it sends requests to the guard's model, and of arms none is the guard's: it must say in "
    "`allow_groups` who answers them"
)
NONE_LEFT = "of the arms that the request allows, they leave none; ask the operator, or allow more"


def ruled(
    asked: Sequence[ArmInput],
    rulebook: Rulebook | None,
    embeddings: NDArray[np.float32],
    now_ms: int,
    refused: dict[int, ServeError],
) -> list[ArmInput]:
    """The requests as rules leave them; whom they leave nothing is added to `refused`."""
    found = list(asked)
    if rulebook is None or not len(rulebook):
        return found
    routes = [one.route for one in asked]
    tokens = [_tokens(one) for one in asked]
    for row, met in enumerate(rulebook.matched(routes, tokens, embeddings, now_ms)):
        if not met:
            continue
        rules = [rulebook.rules[at] for at in met]
        try:
            found[row] = _narrowed(asked[row], rules)
        except RuledOut as error:
            refused.setdefault(row, error)
    return found


def _narrowed(one: ArmInput, rules: Sequence[Rule]) -> ArmInput:
    """Raises RuledOut."""
    refusing = next((rule for rule in rules if rule.refuse), None)
    if refusing is not None:
        raise RuledOut((refusing.name,), refusing.refuse)
    for rule in rules:
        if rule.guard == "on" and not (rule.allow_groups or rule.deny_groups):
            raise RuledOut((rule.name,), NO_GUARD)
    groups = one.groups
    denied = tuple(name for rule in rules for name in rule.deny_groups)
    for rule in rules:
        if rule.allow_groups:
            among = groups or rule.allow_groups
            groups = tuple(name for name in among if name in rule.allow_groups)
            if not groups:
                raise none_left([rule.name])
    return ArmInput(
        route=changed_by(one.route, rules, WEIGHTS), groups=groups, denied_groups=denied
    )


def none_left(names: Sequence[str]) -> RuledOut:
    """These rules leave a request no arm."""
    return RuledOut(tuple(names), NONE_LEFT)


def _tokens(one: ArmInput) -> float:
    return one.route.prompt_tokens or len((one.text or "").encode()) / BYTES_PER_TOKEN
