"""What several keys must agree on: a key by itself may be right, and still not fit another one.

Each check raises OptionRefused, which names the keys, their values and what would do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.settings.sections import Stated
from serve.access.rates import Rate
from serve.routing.request import WEIGHT_MAX, WEIGHTS
from serve.rules.conditions import meant
from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from streams.errors import OptionRefused
from streams.training.budgets import Budget

CALLS_OWN = ("model", "messages", "stream", "n")  # of the body of a call


def certificate(settings: Stated) -> None:
    """TLS needs both files."""
    files = ("listener.tls_certificate", "listener.tls_key")
    if len({settings.stated(key) is None for key in files}) > 1:
        raise OptionRefused(
            "listener.tls_certificate and tls_key", "one of the two", "both given, or neither"
        )
    alone = settings.stated("listener.tls_certificate") is None
    if alone and settings.stated("listener.tls_client_ca") is not None:
        raise OptionRefused("listener.tls_client_ca", "given alone", "given with tls_certificate")


def trainers(settings: Stated) -> None:
    """Each trainer needs a partition of its own."""
    wanted, on_kafka = settings.stated("learning.trainers"), settings.stated("log.kind") == "kafka"
    partitions = settings.stated("log.feedback_partitions") if on_kafka else 1
    if wanted > partitions:
        raise OptionRefused(
            "learning.trainers", wanted, f"at most the feedback's {partitions} partitions"
        )


def api_keys(settings: Stated) -> None:
    """An empty key would let in whoever shows none."""
    if not all(settings.stated("dispatch.api_keys")):
        raise OptionRefused("dispatch.api_keys", "(hidden)", "keys that are not empty")


def ports(settings: Stated) -> None:
    """Replicas share their port on purpose, so the system would not refuse this."""
    names = ["listener.port"]
    if settings.stated("listener.reserved_port"):
        names.append("listener.reserved_port")
    if settings.stated("dispatch.replicas"):
        names += ["dispatch.port", "dispatch.http_port"]
    found = tuple(map(settings.stated, names))
    if len(set(found)) < len(found):
        named = f"{', '.join(names[:-1])} and {names[-1]}"
        raise OptionRefused(named, found, "different ones")


def budgets(settings: Stated, found: Sequence[Budget]) -> None:
    """Each has a name of its own and says whose it is; slices come by way of telemetry."""
    names = [budget.name for budget in found]
    for budget in found:
        key = f"budgets.{budget.name}"
        if names.count(budget.name) > 1:
            raise OptionRefused("budgets.name", budget.name, "unique")
        if (budget.scope == "all") == bool(budget.value):
            wanted = 'empty for scope "all"' if budget.value else f"the name of a {budget.scope}"
            raise OptionRefused(f"{key}.value", repr(budget.value), wanted)
        if budget.hard and not settings.stated("telemetry.period_s"):
            wanted = "true only with telemetry.period_s above 0: replicas report what they spent"
            raise OptionRefused(f"{key}.hard", True, wanted)


def rules(settings: Stated, found: Sequence[Rule], groups: Sequence[str]) -> None:
    """Each has a name of its own; conditions, weights, models and groups of arms there are."""
    names, models = [rule.name for rule in found], [m.name for m in settings.stated("models")]
    for rule in found:
        if names.count(rule.name) > 1:
            raise OptionRefused("rules.name", rule.name, "unique")
        _named(rule.name, rule.models, models)
        _named(rule.name, rule.groups, groups)
        for weight, value in rule.preference.items():
            at = f"rules.{rule.name}.preference.{weight}"
            if weight not in WEIGHTS:
                raise OptionRefused(at, value, meant(weight, WEIGHTS))
            if not 0.0 <= value <= WEIGHT_MAX:
                raise OptionRefused(at, value, f"0 to {WEIGHT_MAX:,.0f}")
        for name in CALLS_OWN:
            if name in rule.extra:
                at = f"rules.{rule.name}.extra.{name}"
                raise OptionRefused(at, rule.extra[name], "left out: Fairlead says that itself")
    book = Rulebook(found)
    if book.looks_at_embeddings and settings.stated("encoder.kind") == "embeddings-only":
        wanted = "left out: this router has no encoder for texts ([encoder] kind)"
        raise OptionRefused("rules.when.examples", "given", wanted)


def _named(rule: str, lists: Mapping[str, Sequence[str]], known: Sequence[str]) -> None:
    """What a rule names is there; where nothing is known, anything may come to be."""
    for key, listed in lists.items():
        for name in listed if known else ():
            if name not in known:
                raise OptionRefused(f"rules.{rule}.{key}", name, meant(name, known))


def judge(settings: Stated) -> None:
    """The models of [judge], [fuse] and last resort are there; what needs a judge has one."""
    name, models = settings.stated("judge.model"), [m.name for m in settings.stated("models")]
    if name and models and name not in models:
        raise OptionRefused("judge.model", name, meant(name, models))
    if settings.stated("probes.judge") == "model" and not name:
        raise OptionRefused("probes.judge", "model", "another one, unless judge.model is set")
    for key in ("fuse.model", "dispatch.escalate_to"):
        other = settings.stated(key)
        if other and models and other not in models:
            raise OptionRefused(key, other, meant(other, models))


def guard(settings: Stated) -> None:
    """Its model is one that there is."""
    name, models = settings.stated("guard.model"), [m.name for m in settings.stated("models")]
    if name and models and name not in models:
        raise OptionRefused("guard.model", name, meant(name, models))


def rates(found: Sequence[Rate]) -> None:
    """Each tenant has one."""
    tenants = [rate.tenant for rate in found]
    twice = next((tenant for tenant in tenants if tenants.count(tenant) > 1), None)
    if twice is not None:
        raise OptionRefused("rates.tenant", twice, "unique")
