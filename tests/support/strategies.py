"""Outcomes for the learners' tests: many from a generator, or a few drawn by Hypothesis.

    rng ────────▶ outcomes(n, rng)        hundreds at once, for comparison with an oracle
    Hypothesis ─▶ batches()               a handful, awkward on purpose, that shrinks
                  cuts(n)                 any way of splitting n rows into batches

What is made here is what `streams.feedback.feedback` may hand on: values of ±8, zero where
not known, and each value of a decision in one row only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES
from learners.estimates.ema import FIGURES
from learners.estimates.sums.influence import groups_of, hash_of
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, VALUE_MAX
from learners.traits import N_TRAITS, SLOTS, columns_of

# Fewer examples than the hundred of a profile (tests/conftest.py), where each costs milliseconds.
lightly = settings(max_examples=40)

# Keys are hashes: half of them are above 2^63.
MODELS = (3, 2**63 + 5, 2**64 - 1)
POOLS = (1, 2**63)
VALUE_FIXED_MAX = round(VALUE_MAX * ONE)


def outcomes(
    n: int,
    rng: np.random.Generator,
    *,
    among: Sequence[int] = MODELS,
    span_ms: int = 10_000,
    **columns: NDArray,
) -> Outcomes:
    """N outcomes at random, of models `among`, over `span_ms`; `columns` replace what was made.

    One in four values was not reported, and neighbouring rows share a decision now and then.
    """
    decision = np.arange(n) // 2
    second_half = (np.arange(n) % 2).astype(bool)[:, None]
    part_of = rng.integers(0, 4, (n // 2 + 1, N_TARGETS + len(FIGURES)))[decision]
    known = np.where(second_half, part_of == 1, part_of >= 2)
    made = {
        "issuers": np.array([7, 2**63 + 7], np.uint64)[decision % 2],
        "sequences": decision.astype(np.uint64),
        "decided_at_ms": rng.integers(0, span_ms, n // 2 + 1)[decision],
        "models": np.array(among, np.uint64)[rng.integers(0, len(among), n // 2 + 1)[decision]],
        "pools": np.array(POOLS, np.uint64)[rng.integers(0, len(POOLS), n // 2 + 1)[decision]],
        "contexts": contexts(n // 2 + 1, rng)[decision],
        "targets": rng.integers(-2 * ONE, 2 * ONE, (n, N_TARGETS)),
        "known": known[:, :N_TARGETS],
        "figures": rng.integers(0, 10**9, (n, len(FIGURES))),
        "figures_known": known[:, N_TARGETS:],
        "estimated": rng.integers(-1, [ONE + 1, 10**9], (n, 2)),
        "traits": traits(n // 2 + 1, rng)[decision],
    }
    return whole(made | columns)


def contexts(n: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Contexts (n, 64) like those of prompts: directions of 0.6 on average, and the constant."""
    made = np.clip(np.rint(rng.normal(0, 19, (n, N_FEATURES))), -127, 127).astype(np.int8)
    made[:, BIAS_FEATURE] = BIAS
    return made


def traits(n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Traits (n, slots) of requests of two tasks, of three tenants, one in three with a tag."""
    tasks, tenants, tagged = rng.integers(0, [3, 3, 3], (n, 3)).T
    said = zip(tasks.tolist(), tagged.tolist(), tenants.tolist(), strict=True)
    return columns_of(
        ((["", "code", "law"][a], ("batch",) * (b == 0), ["", "a", "b"][c]) for a, b, c in said), n
    )


def whole(columns: dict[str, NDArray]) -> Outcomes:
    """Outcomes of these columns, with zero where a value is not known; of one tenant, if unsaid."""
    columns.setdefault("tenant_hashes", np.full(len(columns["known"]), hash_of(b""), np.uint8))
    columns["targets"] = columns["targets"] * columns["known"]
    columns["figures"] = columns["figures"] * columns["figures_known"]
    return Outcomes(**columns)


def group_at(rows: Outcomes, row: int) -> int:
    """The group of tenants whose sums one row enters."""
    return int(groups_of(rows.tenant_hashes, rows.producers)[row])


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """All rows of `parts`, in order."""
    return Outcomes(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Outcomes)}
    )


def changed(rows: Outcomes, **columns: NDArray) -> Outcomes:
    """The same outcomes with some columns replaced."""
    return Outcomes(**{f.name: getattr(rows, f.name) for f in fields(Outcomes)} | columns)


@st.composite
def batches(draw: st.DrawFn, n_max: int = 10, t_ms_max: int = 40_000) -> Outcomes:
    """At most `n_max` outcomes: few models, extreme and equal values, equal times, gaps."""
    n = draw(st.integers(1, n_max))

    def column(values: st.SearchStrategy, width: int = 0) -> NDArray:
        cells = st.lists(values, min_size=width, max_size=width) if width else values
        return np.array(draw(st.lists(cells, min_size=n, max_size=n)))

    seeds = column(st.integers(0, 3))
    extremes = st.sampled_from([0, 1, -1, ONE, VALUE_FIXED_MAX, -VALUE_FIXED_MAX, 2**15 - 1])
    return whole(
        {
            "issuers": np.array([7, 2**63 + 7], np.uint64)[column(st.integers(0, 1))],
            "sequences": np.arange(n, dtype=np.uint64),
            "decided_at_ms": column(st.integers(0, t_ms_max) | st.sampled_from([0, 999, 1000])),
            "models": np.array(MODELS, np.uint64)[column(st.integers(0, len(MODELS) - 1))],
            "pools": np.array(POOLS, np.uint64)[column(st.integers(0, len(POOLS) - 1))],
            "tenant_hashes": column(st.sampled_from([0, 1, 5, 6, 255])).astype(np.uint8),
            "contexts": np.stack([contexts(1, np.random.default_rng(seed))[0] for seed in seeds]),
            "targets": column(extremes | st.integers(-ONE, ONE), N_TARGETS),
            "known": column(st.booleans(), N_TARGETS),
            "figures": column(st.integers(0, 10**11), len(FIGURES)),
            "figures_known": column(st.booleans(), len(FIGURES)),
            "traits": column(st.integers(0, N_TRAITS - 1), SLOTS).astype(np.uint8),
            "producers": column(st.integers(0, 2)).astype(np.uint8),
        }
    )


def cuts(n: int) -> st.SearchStrategy[list[slice]]:
    """Any way to cut n rows into batches, the single batch and single rows among them."""
    edges = st.sets(st.integers(1, max(1, n - 1)), max_size=n).map(
        lambda inner: sorted({0, n} | {edge for edge in inner if edge < n})
    )
    return edges.map(lambda at: [slice(start, stop) for start, stop in pairwise(at)])
