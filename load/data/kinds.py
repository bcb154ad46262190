"""What requests say of themselves beside their prompt: one `Kind` for all that say the same.

    tenant, task, tags, modality, criticality ──each combination──▶ a kind, and its number

Rules and budgets ask for these. A trace has millions of rows and few combinations, so a row has the
number of its kind, and what is kept of kinds does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from learners.criticality import Criticality

KINDS_MAX = 65_536  # 40 MB of them
DEFAULT = "default"  # what telemetry calls the class of those that name no tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The names are those of a request's fields."""

    tenant: str = ""
    task: str = ""
    tags: tuple[str, ...] = ()
    modality: str = ""
    criticality: Criticality = Criticality.CRITICAL

    @property
    def class_name(self) -> str:
        """What telemetry counts it as."""
        return self.tenant or DEFAULT

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """What it says, by field; of `tags` each."""
        level = self.criticality.name.lower()
        one = {"tenant": self.tenant, "task": self.task, "modality": self.modality}
        return {name: (word,) if word else () for name, word in one.items()} | {
            "tags": self.tags,
            "criticality": (level,),
        }


UNSAID = Kind()
FIELDS = tuple(field.name for field in fields(Kind))


def said_by(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """The fields in which any of them says something.

    >>> said_by([Kind(), Kind(tenant="acme")])
    ('tenant',)
    """
    return tuple(
        name for name in FIELDS if any(getattr(k, name) != getattr(UNSAID, name) for k in kinds)
    )
