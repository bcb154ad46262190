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
from serve.routing.eligible import PASSING, RequestBatch, Verdict
from serve.routing.live import Live
from serve.routing.router import Choices
from streams.feedback.decisions import DecisionBatch
from streams.feedback.said import NOTHING, Said, end_of
from streams.feedback.ticket import CANDIDATE, HEAD, Sealer, key_of
from streams.telemetry.window import DecidedBatch

KERNEL = "learners.kernels.records"
FEW = 8  # decisions: numpy fills in a record of many as soon, and more of them sooner
_COLUMNS = ("propensity", "utility", "quality", "cost_usd", "latency_ms", "verdict")
_NUMBERS = attrgetter(*_COLUMNS[:-1])
_CHOICES = attrgetter("fits", "verdict", "utility", "chosen", "pool", "preferred", "shed")
_REQUESTS = attrgetter("prompt_tokens", "criticality")
_OF_CHOSEN = attrgetter("expected_cost_usd", "estimated_quality", "estimated_cost_usd")


def _places(record: np.dtype[np.void], names: Sequence[str]) -> NDArray[np.int64]:
    """Where a record has these fields, as the kernel takes it."""
    assert record.fields is not None
    return np.array([record.fields[name][1] for name in names], np.int64)


_OWN = ("model", "pool", "propensity", "preference", "expected_cost_usd", "expected_latency_ms")
_PLACES = (
    _places(HEAD, (*_OWN, "context", "estimated_quality", "estimated_cost_usd")),
    _places(CANDIDATE, ("model", "pool", *_COLUMNS)),
)
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
        heads, candidates = self._blank()
        heads["decided_at_ms"] = self.at_ms
        heads["tenant_bytes"] = [len(tenant) for tenant in tenants]
        if kernel:
            self._fill_quickly(kernel, heads, candidates)
        else:
            self._fill(heads, candidates)
        plain = self.requests.said is None and self.choices.arm is None
        said = None if plain else [end_of(one) for one in self.said()]
        return sealer.seal(ids, heads, candidates, tenants, measured, said)

    def _blank(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Heads (n,) and candidates (n, k) with what is the same in all tickets of a view."""
        live, (n, k) = self.live, self.choices.propensity.shape
        of = self.policy, live.version  # a view is renewed with what it keeps
        if live.blank is None or live.blank[0] != of:
            head, cells = np.zeros(1, HEAD), np.zeros(k, CANDIDATE)
            head["encoder"], head["snapshot_version"] = live.encoder_key, live.version
            head["policy"], head["n_candidates"] = key_of(self.policy), k
            cells["model"] = live.catalogue.model_keys
            live.blank = of, head.tobytes(), cells.tobytes()
        _, head_bytes, candidate_bytes = live.blank
        candidates = np.frombuffer(bytearray(candidate_bytes * n), CANDIDATE).reshape(n, k)
        return np.frombuffer(bytearray(head_bytes * n), HEAD), candidates

    def _fill(self, heads: NDArray[np.void], candidates: NDArray[np.void]) -> None:
        """What each decision has of its own."""
        live, choices, requests = self.live, self.choices, self.requests
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
        for name in _COLUMNS:
            candidates[name] = getattr(choices, name)

    def _fill_quickly(
        self, kernel: Any, heads: NDArray[np.void], candidates: NDArray[np.void]
    ) -> None:
        """The same by a kernel."""
        live, choices, requests = self.live, self.choices, self.requests
        (n, k), bytes_each = candidates.shape, CANDIDATE.itemsize
        kernel.tickets(
            tuple(map(writable, _NUMBERS(choices))),
            writable(choices.verdict, np.uint8),
            writable(choices.pools, np.int64),
            writable(choices.chosen, np.int64),
            writable(choices.pool, np.int64),
            tuple(map(writable, _OF_CHOSEN(choices))),
            writable(requests.preference),
            writable(requests.contexts, np.int8),
            writable(live.catalogue.latency_ms),
            live.catalogue.model_keys,
            live.catalogue.pool_keys,
            *_PLACES,
            heads.view(np.uint8).reshape(n, HEAD.itemsize),
            candidates.view(np.uint8).reshape(n, k, bytes_each),
        )

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
    tenants = np.array([*chain.from_iterable(one.tenants for one in kept)], object)
    far = None
    if live.guard is not None:
        said = chain.from_iterable(one.said() for one in kept)
        far = np.array([one.guarded for one in said], bool)[fits]
    return DecidedBatch(
        models=live.catalogue.names,
        pools=live.catalogue.pool_names,
        chosen=chosen[fits],
        pool=pool[fits],
        explored=explored(verdict, utility, chosen)[fits],
        preferred=preferred[fits],
        fixed=(_PASSES[verdict].sum(axis=1) == 1)[fits],
        shed=shed[fits],
        tenants=tenants[fits].tolist(),
        prompt_tokens=tokens[fits],
        criticality=criticality[fits],
        guarded=far,
    )


def _columns_of(
    kept: Sequence[Decisions], names: attrgetter[tuple[Any, ...]], of: str = "choices"
) -> list[NDArray[Any]]:
    """Columns of all batches, one after the other."""
    each = [names(getattr(one, of)) for one in kept]
    return [np.concatenate(columns) for columns in zip(*each, strict=True)]


def explored(
    verdict: NDArray[np.uint8], utility: NDArray[np.float64], chosen: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Of each row (n,), whether another eligible model had a higher utility than the chosen."""
    eligible = verdict == Verdict.ELIGIBLE
    best = np.where(eligible, utility, -np.inf).max(axis=1)
    of = np.arange(len(best)), chosen
    return np.asarray((utility[of] < best) | ~eligible[of])
