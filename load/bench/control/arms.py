"""Ten thousand arms described by text: how often the best is found, and what that takes.

    made-up subjects × made-up arms ─▶ descriptions ─┐
    requests in other words of the same subjects ────┴─▶ encoder ─▶ each contender ─▶ one arm each
                          answered or not, by chance, as good as that arm is for that request ◀──┘

Each arm is for one subject and of a kind ("expert", "draft", …). How good it is depends on its
kind, which descriptions tell, and on a skill of its own that nobody tells. Subjects are asked about
as words are used (Zipf). Contenders learn what their own choices gave, 512 requests late.

The naive ways: the nearest description; the arm with the most successes so far; of the nearest
arms the one with the best mean, and now and then (ε) any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.arms.experience import Experience
from learners.arms.shortlist import ArmOptions, Arms, Shortlist
from learners.context import N_DIRECTIONS, Contexts, unit_directions
from learners.targets import to_fixed
from load.bench.decisions.report.metrics import interval
from serve.encoders import EncoderOptions, make_encoder

KINDS, WORDS_OF_SUBJECT, SAID, COMMON = 12, 10, 7, 2
ELSEWHERE = 0.05  # quality of an arm for another subject
ZIPF = 1.1
EPSILON = 0.1
LAST = 0.25  # of the requests: those that are judged
Rows = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsBench:
    """What is measured."""

    n_arms: int = 10_000
    n_requests: int = 40_000
    batch: int = 512
    seeds: int = 8
    calls: int = 2000  # timed, one at a time


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Arms, requests, and what each arm would be worth to each request."""

    arms: Contexts  # (A, 64)
    requests: Contexts  # (n, 64)
    subject_of_arm: Rows  # (A,)
    kind: Rows  # (A,) the group it is declared to be of
    subject: Rows  # (n,)
    worth: Floats  # (A,) for its own subject
    best: Rows  # (n,)

    def quality(self, rows: Rows, arms: Rows) -> Floats:
        """What these arms are worth for these requests (n,)."""
        own = self.subject_of_arm[arms] == self.subject[rows]
        return np.where(own, self.worth[arms], ELSEWHERE)


def world(options: ArmsBench, seed: int) -> World:
    """Made of words that mean nothing, so that no encoder knows more than which are the same."""
    rng = np.random.default_rng([seed, 80])
    n_subjects = max(2, options.n_arms // 10)
    words = np.array([f"w{i}" for i in range(n_subjects * WORDS_OF_SUBJECT)])
    words = words.reshape(n_subjects, WORDS_OF_SUBJECT)
    of_arm = np.arange(options.n_arms) % n_subjects
    kind = rng.integers(0, KINDS, options.n_arms)
    worth = 0.15 + 0.45 * rng.random(KINDS)[kind] + 0.35 * rng.random(options.n_arms)
    share = 1.0 / np.arange(1, n_subjects + 1) ** ZIPF
    asked = rng.choice(n_subjects, options.n_requests, p=share / share.sum())
    encode = _encoded()
    best = np.array([np.where(of_arm == one, worth, -1.0).argmax() for one in range(n_subjects)])
    kinds = [f"kind{one} kind{one}" for one in kind]
    described = [f"{_some(words[s], rng)} {k}" for s, k in zip(of_arm, kinds, strict=True)]
    said = [f"{_some(words[s], rng)} {_common(rng)}" for s in asked]
    return World(encode(described), encode(said), of_arm, kind, asked, worth, best[asked])


def _some(words: NDArray[np.str_], rng: np.random.Generator) -> str:
    return " ".join(rng.choice(words, SAID, replace=False))


def _common(rng: np.random.Generator) -> str:
    return " ".join(f"common{i}" for i in rng.integers(0, 50, COMMON))


def _encoded() -> Callable[[list[str]], Contexts]:
    encoder = make_encoder(EncoderOptions(kind="hashing"))

    def encode(texts: list[str]) -> Contexts:
        vectors = encoder.encode(texts)
        return encoder.projection.contexts(vectors, np.zeros(len(texts), np.float32))

    return encode


class Player(Protocol):
    """A contender."""

    def choose(self, rows: Rows) -> Rows:
        """Arms (n,) for requests."""

    def learn(self, rows: Rows, arms: Rows, quality: Floats) -> None:
        """What came of the batch that was chosen last."""


class Learner:
    """Fairlead's: retrieval and ranking, solved again for each batch."""

    def __init__(self, of: World, seed: int, options: ArmOptions | None = None) -> None:
        self._of, self._options = of, options
        self._rng = np.random.default_rng([seed, 81])
        self.experience, self.keys = Experience(), tuple(range(len(of.arms)))
        self.shortlist = self._solved()

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        ranked = self.shortlist.choose(self._of.requests[rows], self._rng.random(len(rows)))
        self._pairs = ranked.chosen_pairs
        return ranked.chosen

    def learn(self, rows: Rows, arms: Rows, quality: Floats) -> None:
        """See `Player`."""
        y = to_fixed(quality)
        self.experience.update(arms.tolist(), self._of.requests[rows], self._pairs, y)
        self.shortlist = self._solved()

    def _solved(self) -> Shortlist:
        arms = Arms(keys=self.keys, descriptions=self._of.arms, groups=self._of.kind)
        return Shortlist(arms, self.experience, self._options)


class Naive:
    """The three naive ways: by the nearest descriptions, by what each arm did, or both."""

    def __init__(self, of: World, seed: int, *, retrieved: int, epsilon: float) -> None:
        """Without `retrieved` any arm may be chosen; of one, the nearest is."""
        self._of, self._retrieved, self._epsilon = of, retrieved, epsilon
        self._rng = np.random.default_rng([seed, 82])
        self._index = faiss.IndexFlatIP(N_DIRECTIONS)
        self._index.add(np.ascontiguousarray(unit_directions(of.arms)[:, :N_DIRECTIONS]))
        self._successes, self._n = np.zeros(len(of.arms)), np.zeros(len(of.arms))

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        n, explores = len(rows), self._rng.random(len(rows)) < self._epsilon
        if not self._retrieved:
            best = np.full(n, self._successes.argmax())
            return np.where(explores, self._rng.integers(0, len(self._n), n), best)
        asked = np.ascontiguousarray(unit_directions(self._of.requests[rows])[:, :N_DIRECTIONS])
        nearest = self._index.search(asked, self._retrieved)[1]
        mean = (self._successes + 1.0) / (self._n + 2.0)
        place = np.where(
            explores, self._rng.integers(0, self._retrieved, n), mean[nearest].argmax(axis=1)
        )
        return nearest[np.arange(n), place]

    def learn(self, rows: Rows, arms: Rows, quality: Floats) -> None:
        """See `Player`."""
        del rows
        np.add.at(self._successes, arms, quality)
        np.add.at(self._n, arms, 1.0)


CONTENDERS: dict[str, Callable[[World, int], Player]] = {
    "fairlead": Learner,
    "nearest": lambda of, seed: Naive(of, seed, retrieved=1, epsilon=0.0),
    "popular": lambda of, seed: Naive(of, seed, retrieved=0, epsilon=EPSILON),
    "epsilon_greedy": lambda of, seed: Naive(of, seed, retrieved=32, epsilon=EPSILON),
}


def played(options: ArmsBench, seed: int) -> dict[str, dict[str, float]]:
    """By contender, of the last requests: how often the best arm was chosen, and mean quality."""
    of = world(options, seed)
    return {name: _judged(of, make(of, seed), options, seed) for name, make in CONTENDERS.items()}


def _judged(of: World, player: Player, options: ArmsBench, seed: int) -> dict[str, float]:
    luck = np.random.default_rng([seed, 83]).random(options.n_requests)
    chosen = np.empty(options.n_requests, np.intp)
    for start in range(0, options.n_requests, options.batch):
        rows = np.arange(start, min(start + options.batch, options.n_requests))
        chosen[rows] = player.choose(rows)
        worth = of.quality(rows, chosen[rows])
        player.learn(rows, chosen[rows], (luck[rows] < worth).astype(np.float64))
    last = np.arange(round((1.0 - LAST) * options.n_requests), options.n_requests)
    quality = of.quality(last, chosen[last])
    return {
        "top1": float((chosen[last] == of.best[last]).mean()),
        "quality": float(quality.mean()),
        "of_best": float(quality.sum() / of.quality(last, of.best[last]).sum()),
    }


def measure(options: ArmsBench, say: Callable[[str], None]) -> dict[str, Any]:
    """The key `arms`."""
    say("arms")
    runs = [played(options, seed) for seed in range(options.seeds)]

    def figure(name: str, of: str) -> list[float | None]:
        return interval(np.array([run[name][of] for run in runs]))

    return {
        "n": options.n_arms,
        **_ms(options),
        "top1": figure("fairlead", "top1"),
        "of_best": figure("fairlead", "of_best"),
        "rivals": {
            name: {"top1": figure(name, "top1"), "of_best": figure(name, "of_best")}
            for name in CONTENDERS
            if name != "fairlead"
        },
    }


def _ms(options: ArmsBench) -> dict[str, float]:
    """Processor time per request to retrieve, rank and draw: alone (median), and of 32 together."""
    rng = np.random.default_rng(84)
    arms = rng.integers(-64, 65, (options.n_arms, 64)).astype(np.int8)
    declared = Arms(keys=range(options.n_arms), descriptions=arms)
    shortlist = Shortlist(declared, Experience())
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # as a router does: the others serve
    alone = [_took_ms(shortlist, 1, rng) for _ in range(options.calls)]
    together = [_took_ms(shortlist, 32, rng) / 32 for _ in range(max(1, options.calls // 32))]
    faiss.omp_set_num_threads(threads)
    return {"ms": float(np.median(alone)), "ms_of_32": float(np.median(together))}


def _took_ms(shortlist: Shortlist, n: int, rng: np.random.Generator) -> float:
    requests = rng.integers(-64, 65, (n, 64)).astype(np.int8)
    uniform = rng.random(n)
    began = time.process_time()
    shortlist.choose(requests, uniform)
    return (time.process_time() - began) * 1000.0
