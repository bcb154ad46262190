"""What is kept of decisions: their tickets, their lines in the decision log, telemetry's counts.

    RequestBatch, Choices ─▶ Decisions ─┬─seal──▶ tickets, which come back with outcomes
                                        ├─log───▶ the decision log
                                        └─count─▶ telemetry

The router and the simulator write with this class, so each column is written in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable
from serve.routing.choices import Choices, sources_of
from serve.routing.eligible import PASSING, RequestBatch, Verdict
from serve.routing.live import Live
from streams.feedback.decisions import DecisionBatch
from streams.feedback.said import NOTHING, Said, end_of
from streams.feedback.ticket import CANDIDATE, HEAD, Sealer, key_of
from streams.telemetry.window import DecidedBatch

KERNEL = "learners.kernels.records"
FEW = 8  # decisions: numpy fills in a record of many as soon, and more of them sooner
_NUMBERS = ("propensity", "utility", "quality", "cost_usd", "latency_ms")
_CHOICES = attrgetter("fits", "verdict", "utility", "chosen", "pool", "preferred", "shed")
_REQUESTS = attrgetter("prompt_tokens", "criticality")
_SOURCES = sources_of((*_NUMBERS, "expected_cost_usd", "estimated_quality", "estimated_cost_usd"))


def _places(record: np.dtype[np.void], names: Sequence[str]) -> NDArray[np.int64]:
    """Where a record has these fields, as the kernel takes it."""
    assert record.fields is not None
    return np.array([record.fields[name][1] for name in names], np.int64)


_OWN = ("model", "pool", "propensity", "preference", "expected_cost_usd", "expected_latency_ms")
_PLACES = (
    _places(HEAD, (*_OWN, "context", "estimated_quality", "estimated_cost_usd", "decided_at_ms")),
    _places(CANDIDATE, ("model", "pool", *_NUMBERS, "verdict")),
)
_TENANT_BYTES = int(_places(HEAD, ["tenant_bytes"])[0])
_PASSES = np.isin(np.arange(256), PASSING)  # by verdict: np.isin takes ten times as long


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """n decisions of one moment, with all that is kept of them."""

    tenants: Sequence[str]  # (n,)
    requests: RequestBatch
    choices: Choices
    live: Live
    policy: str
    at_ms: int

    def __getitem__(self, rows: NDArray[np.intp]) -> Decisions:
        if len(rows) == len(self.tenants):  # rows are in order: it is all of them
            return self
        tenants = [self.tenants[row] for row in rows.tolist()]
        return replace(
            self, tenants=tenants, requests=self.requests[rows], choices=self.choices[rows]
        )

    def seal(
        self, sealer: Sealer, ids: Sequence[bytes], measured: Sequence[bool] | None = None
    ) -> list[bytes]:
        """Their tickets; those `measured` are of calls that this process makes."""
        tenants = [tenant.encode() for tenant in self.tenants]
        kernel = self.live.kernel and len(tenants) <= FEW and kernels(KERNEL)
        lengths = [*map(len, tenants)]
        heads, cells = self._filled_quickly(kernel, lengths) if kernel else self._filled(lengths)
        plain = self.requests.said is None and self.choices.arm is None
        said = None if plain else [end_of(one) for one in self.said()]
        return sealer.seal(ids, heads, cells, tenants, measured, said)

    def _blank(self) -> tuple[bytearray, bytearray]:
        """Heads (n,) and candidates (n, k) with what is the same in all tickets of a view."""
        live, (n, k) = self.live, self.choices.propensity.shape
        of = self.policy, live.version  # a view is renewed with what it keeps
        if live.blank is None or live.blank[0] != of:
            head, cells = np.zeros(1, HEAD), np.zeros(k, CANDIDATE)
            head["encoder"], head["snapshot_version"] = live.encoder_key, live.version
            head["policy"], head["n_candidates"] = key_of(self.policy), k
            cells["model"] = live.catalogue.model_keys
            live.blank = of, head.tobytes(), cells.tobytes()
        _, head, cells_of_one = live.blank
        return bytearray(head * n), bytearray(cells_of_one * n)

    def _filled(self, lengths: Sequence[int]) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Heads (n,) and candidates (n, k), with what each decision has of its own."""
        live, choices, requests = self.live, self.choices, self.requests
        blank, cells = self._blank()
        heads = np.frombuffer(blank, HEAD)
        candidates = np.frombuffer(cells, CANDIDATE).reshape(choices.propensity.shape)
        heads["decided_at_ms"], heads["tenant_bytes"] = self.at_ms, lengths
        of = np.arange(len(heads)), choices.chosen
        heads["model"] = live.catalogue.model_keys[choices.chosen]
        heads["pool"] = live.catalogue.pool_keys[choices.pool]
        heads["propensity"] = choices.propensity[of]
        heads["preference"] = requests.preference
        heads["expected_cost_usd"] = choices.expected_cost_usd[of]
        heads["expected_latency_ms"] = live.catalogue.latency_ms[choices.chosen]
        heads["context"] = requests.contexts
        heads["estimated_quality"] = choices.estimated_quality[of]
        heads["estimated_cost_usd"] = choices.estimated_cost_usd[of]
        candidates["pool"] = live.catalogue.pool_keys[choices.pools]
        candidates["pool"][of] = heads["pool"]
        for name in (*_NUMBERS, "verdict"):
            candidates[name] = getattr(choices, name)
        return heads, candidates

    def _filled_quickly(
        self, kernel: Any, lengths: Sequence[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same by a kernel, as bytes (n, size) and (n, k, size)."""
        live, choices, requests = self.live, self.choices, self.requests
        (n, k), (blank, blank_cells) = choices.propensity.shape, self._blank()
        heads = np.frombuffer(blank, np.uint8).reshape(n, HEAD.itemsize)
        cells = np.frombuffer(blank_cells, np.uint8).reshape(n, k, CANDIDATE.itemsize)
        if any(lengths):  # else the template has it
            heads[:, _TENANT_BYTES] = lengths
        kernel.tickets(
            writable(choices.figures),
            writable(choices.propensity),
            writable(choices.verdict, np.uint8),
            writable(choices.pools, np.int64),
            writable(choices.chosen, np.int64),
            writable(choices.pool, np.int64),
            _SOURCES,
            writable(requests.preference),
            writable(requests.contexts, np.int8),
            writable(live.catalogue.latency_ms),
            live.catalogue.model_keys,
            live.catalogue.pool_keys,
            self.at_ms,
            *_PLACES,
            heads,
            cells,
        )
        return heads, cells

    def said(self) -> list[Said]:
        """What is carried of each, with the arm of a change that it belongs to."""
        held, arms = self.requests.said, self.choices.arm
        said: list[Said] = [NOTHING] * len(self.tenants) if held is None else held.tolist()
        if arms is None:
            return said
        return [
            msgspec.structs.replace(one, change=arm) if arm else one
            for one, arm in zip(said, arms.tolist(), strict=True)
        ]

    def log(
        self, ids: Sequence[bytes], sessions: Sequence[str], prompts: Sequence[str | None]
    ) -> DecisionBatch:
        """Their lines in the decision log."""
        live, choices, requests = self.live, self.choices, self.requests
        return DecisionBatch(
            ids=ids,
            decided_at_ms=np.full(len(ids), self.at_ms, np.int64),
            tenants=self.tenants,
            sessions=sessions,
            models=live.catalogue.names,
            pools=live.catalogue.pool_names,
            chosen=choices.chosen,
            pool=choices.pool,
            propensities=choices.propensity,
            utility=choices.utility,
            quality=choices.quality,
            cost_usd=choices.cost_usd,
            latency_ms=choices.latency_ms,
            preference=requests.preference,
            prompt_tokens=requests.prompt_tokens,
            snapshot_version=live.version,
            policy=self.policy,
            encoder=live.encoder,
            contexts=requests.contexts,
            prompts=prompts,
            said=self.said(),
            beside=choices.beside,
            suggested=choices.suggested,
        )

    def __len__(self) -> int:
        return len(self.tenants)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What is kept of a batch; its columns are made when they are asked for."""

    decisions: Decisions
    ids: Sequence[bytes]
    sessions: Sequence[str]
    prompts: Sequence[str | None]

    def log(self) -> DecisionBatch | None:
        """What the decision log gets: those that were decided."""
        choices = self.decisions.choices
        if choices.sent_all:
            return self.decisions.log(self.ids, self.sessions, self.prompts)
        rows = np.flatnonzero(choices.fits & ~choices.shed)
        if not len(rows):
            return None
        at = rows.tolist()
        return self.decisions[rows].log(
            [self.ids[i] for i in at],
            [self.sessions[i] for i in at],
            [self.prompts[i] for i in at],
        )


def counted(kept: Sequence[Decisions]) -> Iterator[DecidedBatch]:
    """What telemetry counts of decisions: also those that were shed, not those that nobody fits.

    Of many batches at once, because to compute the columns of one costs as much as of a hundred.
    """
    for _, alike in groupby(kept, key=lambda one: id(one.live)):
        if len(batch := _counted(list(alike))):
            yield batch


def _counted(kept: Sequence[Decisions]) -> DecidedBatch:
    """Batches of one view as one."""
    live, (fits, verdict, utility, *others) = kept[0].live, _columns_of(kept, _CHOICES)
    chosen, pool, preferred, shed = others
    tokens, criticality = _columns_of(kept, _REQUESTS, of="requests")
    tenants, far = [*chain.from_iterable(one.tenants for one in kept)], None
    if live.guard is not None:
        said = chain.from_iterable(one.said() for one in kept)
        far = np.array([one.guarded for one in said], bool)
    found = DecidedBatch(
        models=live.catalogue.names,
        pools=live.catalogue.pool_names,
        chosen=chosen,
        pool=pool,
        explored=explored(verdict, utility, chosen),
        preferred=preferred,
        fixed=_PASSES[verdict].sum(axis=1) == 1,
        shed=shed,
        tenants=tenants,
        prompt_tokens=tokens,
        criticality=criticality,
        guarded=far,
    )
    return found if fits.all() else found[np.flatnonzero(fits)]


def _columns_of(
    kept: Sequence[Decisions], names: attrgetter[tuple[Any, ...]], of: str = "choices"
) -> list[NDArray[Any]]:
    """Columns of all batches, one after the other."""
    each = [names(getattr(one, of)) for one in kept]
    return list(each[0]) if len(each) == 1 else list(map(np.concatenate, zip(*each, strict=True)))


def explored(
    verdict: NDArray[np.uint8], utility: NDArray[np.float64], chosen: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Of each row (n,), whether another eligible model had a higher utility than the chosen."""
    eligible = verdict == Verdict.ELIGIBLE
    best = np.where(eligible, utility, -np.inf).max(axis=1)
    of = np.arange(len(best)), chosen
    return np.asarray((utility[of] < best) | ~eligible[of])
