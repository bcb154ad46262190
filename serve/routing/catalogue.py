"""The models and pools there are, with what they are stated to cost and take.

Statements are the scale on which learning happens (see `learners.targets`): what is learned of a
model is how far it departs from them, so a new price counts from the moment it is stated.

A model is its name. Leaving and returning under the same name, it is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.estimates.kin import TIERS, Kin
from learners.option import option, required
from learners.work import WorkRates, WorkTable
from streams.errors import OptionRefused
from streams.feedback.ticket import key_of

TOKENS_UNLIMITED = 1e9  # longer than any prompt

# What a model may be able to do beyond text.
Ability = Literal["tools", "images", "audio", "json", "logprobs"]
Stated = Literal["text", Ability]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model and what is stated about it."""

    name: str = required("Its name, unique.", min_length=1, max_length=200)
    usd_per_1m_input_tokens: float = option(0.0, "List price, USD.", ge=0, le=1e6)
    usd_per_1m_cached_input_tokens: float = option(
        math.nan,
        "List price of input found in the server's cache, USD. None: that of other input.",
        ge=0,
        le=1e6,
        stands_for=(None, math.nan),
    )
    cache_write_factor: float = option(
        1.0,
        "Price of a session's input that enters the server's cache, over that of other input.",
        ge=1,
        le=10,
    )
    usd_per_1m_output_tokens: float = option(0.0, "List price, USD.", ge=0, le=1e6)
    usd_per_call: float = option(0.0, "Fixed price of a call, USD.", ge=0, le=100)
    output_tokens: float = option(300.0, "Tokens of a typical answer.", ge=0, le=1e7)
    latency_ms: float = option(
        1000.0, "Milliseconds of a typical complete answer.", gt=0, le=86_400_000
    )
    quality: float = option(
        math.nan,
        "Expected quality, before outcomes. None: that of the others.",
        ge=0,
        le=1,
        stands_for=(None, math.nan),
    )
    tier: Literal["", "small", "medium", "large"] = option(
        "",
        "What it is expected to be, before outcomes. It is then taken to be like known models of "
        "its tier and price. Empty: like all.",
    )
    like: str = option(
        "",
        "Name of a known model that it is most like, such as its former version. Until its own "
        "outcomes say otherwise it is taken to be as good, and good at the same. Empty: none.",
        max_length=200,
    )
    context_tokens_max: float = option(
        TOKENS_UNLIMITED, "Longest prompt it takes, tokens.", gt=0, le=TOKENS_UNLIMITED
    )
    supports: tuple[Stated, ...] = option(
        (),
        "What it can do. What a request asks for beyond it is not asked of this model. Empty: not "
        'known, everything is tried; `["text"]`: nothing but text.',
    )
    draining: bool = option(
        False, "It gets no more requests; those under way are answered. What it learned is kept."
    )

    def lacks(self, asked: Collection[str]) -> list[str]:
        """What of this it is stated not to do; nothing where nothing is stated."""
        return sorted(set(asked).difference(self.supports)) if self.supports else []

    @property
    def usd_per_cached_token(self) -> float:
        """Of input that is found in the server's cache."""
        stated = self.usd_per_1m_cached_input_tokens
        return (self.usd_per_1m_input_tokens if math.isnan(stated) else stated) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Replicas of one model in one place. What one replica can do, costs and takes, if known."""

    name: str
    model: str
    region: str = ""
    rates: WorkRates = WorkRates()  # zeros: requests are no work to it, so it has no price
    usd_per_hour: float = 0.0  # of one replica
    watts: float = 0.0  # of one replica at full load
    reports: bool = False  # it tells telemetry of itself: silent, it has no replicas
    replicas: int = 1  # that it begins with: so many there are until telemetry says more
    draining: bool = False  # it gets no more requests
    watched: bool = False  # telemetry has what its callers, or its servers' pages, say of it


class Catalogue:
    """Models (k) in a fixed order, each with at least one pool, and their figures as columns."""

    def __init__(
        self, models: Sequence[Model], pools: Sequence[Pool], prompt_tokens: float = 500.0
    ) -> None:
        """`prompt_tokens` is assumed where a request does not say. Raises OptionRefused."""
        self.models, self.pools = tuple(models), tuple(pools)
        self.prompt_tokens = prompt_tokens
        self.names = tuple(model.name for model in models)
        self.keys = [key_of(name) for name in self.names]
        self.column_of = {name: column for column, name in enumerate(self.names)}
        self._check()
        self._relate()
        column = self._column
        self.quality = column("quality")
        self.latency_ms = column("latency_ms")
        self.context_tokens_max = column("context_tokens_max")
        self.work = WorkTable([pool.rates for pool in pools])
        one_token = np.ones((1, len(pools)))
        self.has_work = self.work.work_s(np.ones(1), one_token)[0] > 0.0  # (P,): requests are work
        self.any_work = bool(self.has_work.any())
        self.usd_per_s = self._pool_column("usd_per_hour") / 3600.0  # (P,)
        self.watts = self._pool_column("watts")  # (P,)
        models_draining = [model.draining for model in models]
        self.draining = np.array(  # (P,) it, or its model
            [pool.draining or models_draining[self.column_of[pool.model]] for pool in pools], bool
        )
        open_ = set(self.model_of_pool[~self.draining].tolist())
        self.model_draining = np.array([at not in open_ for at in range(len(models))])  # (k,)
        self.output_tokens = column("output_tokens")
        self.usd_per_input_token = column("usd_per_1m_input_tokens") / 1e6
        self.usd_per_cached_token = np.array([model.usd_per_cached_token for model in models])
        self.cache_write_factor = column("cache_write_factor")
        self.usd_fixed = column("usd_per_1m_output_tokens") / 1e6 * column(
            "output_tokens"
        ) + column("usd_per_call")

    def _relate(self) -> None:
        """Which pools (P,) are of which models (k,): names, keys and columns of both."""
        self.model_keys = np.array(self.keys, np.uint64)
        self.pool_names = tuple(pool.name for pool in self.pools)
        self.pool_keys = np.array([key_of(name) for name in self.pool_names], np.uint64)
        self.model_names_of_pools = tuple(pool.model for pool in self.pools)
        self.model_of_pool = np.array([self.column_of[pool.model] for pool in self.pools], np.intp)
        self.pools_of = [[p for p in self.pools if p.model == name] for name in self.names]
        # (k,) of (its pools,); of those with a choice of pools; of the first of its pools.
        self.columns_of = [np.flatnonzero(self.model_of_pool == k) for k in range(len(self))]
        self.several = [(k, of) for k, of in enumerate(self.columns_of) if len(of) > 1]
        self.first_pool = np.array([of[0] for of in self.columns_of])
        self._by_model = np.concatenate(self.columns_of)
        self._starts = np.cumsum([0, *map(len, self.columns_of)])[:-1]

    @property
    def kin(self) -> Kin:
        """What models are declared to be like."""
        return Kin(
            np.array([TIERS.index(m.tier) if m.tier else -1 for m in self.models], np.intp),
            self.expected_cost_usd(np.zeros(1))[0],
            np.array([self.column_of.get(m.like, -1) for m in self.models], np.intp),
        )

    def _column(self, name: str) -> NDArray[np.float64]:
        return np.array([getattr(model, name) for model in self.models], np.float64)

    def _pool_column(self, name: str) -> NDArray[np.float64]:
        return np.array([getattr(pool, name) for pool in self.pools], np.float64)

    def _check(self) -> None:
        if not self.models:
            raise OptionRefused("models", "[]", "a list of at least one model")
        if len(self.models) > 255:
            raise OptionRefused("models", f"{len(self.models)} models", "at most 255 models")
        for kind, names in (("models", self.names), ("pools", [p.name for p in self.pools])):
            twice = {name for name in names if list(names).count(name) > 1}
            if twice:
                raise OptionRefused(f"{kind}.name", min(twice), "unique")
        for pool in self.pools:
            if pool.model not in self.column_of:
                raise OptionRefused(
                    f"pools.{pool.name}.model", pool.model, f"one of {', '.join(self.names)}"
                )
        served = {pool.model for pool in self.pools}
        for name in self.names:
            if name not in served:
                raise OptionRefused(f"pools of model {name}", "none", "at least one pool")
        draining = {model.name for model in self.models if model.draining}
        if all(pool.draining or pool.model in draining for pool in self.pools):
            raise OptionRefused("draining", "true for all pools", "false for one: nobody answers")

    def least(self, of_pools: NDArray[np.float64]) -> NDArray[np.float64]:
        """The least of every model's pools (…, k), of values by pool (…, P)."""
        return np.minimum.reduceat(of_pools[..., self._by_model], self._starts, axis=-1)

    def taking(self, columns: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of a model's pools those not drained; all where it is: for what was decided before."""
        left = columns[~self.draining[columns]]
        return left if len(left) else columns

    def expected_cost_usd(self, prompt_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Stated cost (n, k) of calls with prompts of n lengths; 0 tokens means unknown."""
        tokens = np.where(prompt_tokens > 0, prompt_tokens, self.prompt_tokens)
        return tokens[:, None] * self.usd_per_input_token + self.usd_fixed

    def saved_usd(self, *, tokens: float, cached: float, holder: int) -> NDArray[np.float64]:
        """How much less (k,) than by its input's list price a session's request costs each model.

        Of its `tokens` the model at column `holder` has `cached` in its cache; what is read anew is
        written into one.
        """
        anew = np.full(len(self), tokens)
        anew[holder] -= cached
        saved = -anew * self.usd_per_input_token * (self.cache_write_factor - 1.0)
        price = self.usd_per_input_token[holder] - self.usd_per_cached_token[holder]
        saved[holder] += cached * price
        return saved

    def cost_usd(
        self, model: str, prompt_tokens: int, output_tokens: int, *, cached_tokens: int = 0
    ) -> float:
        """What a call costs by the list prices; `cached_tokens` of its prompt were in the cache."""
        column = self.column_of[model]
        stated, cached = self.models[column], min(cached_tokens, prompt_tokens)
        output = output_tokens * stated.usd_per_1m_output_tokens / 1e6 + stated.usd_per_call
        fresh = (prompt_tokens - cached) * float(self.usd_per_input_token[column])
        return fresh + cached * stated.usd_per_cached_token + output

    def __len__(self) -> int:
        return len(self.models)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalogue):
            return NotImplemented
        mine = (repr(self.models), self.pools, self.prompt_tokens)  # NaN equals itself as text
        return mine == (repr(other.models), other.pools, other.prompt_tokens)

    __hash__ = None  # type: ignore[assignment]


class CatalogueSource(Protocol):
    """Where the catalogue comes from: `infra.settings.settings` implements it over a file."""

    def read(self) -> Catalogue:
        """The catalogue as it is now. Raises if it can't be read or is not valid."""
