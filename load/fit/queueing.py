"""Measures how full a pool may be, and holds it against what `infra.capacity.queueing` predicts.

    lengths (Azure, Mooncake, short chat) ─┐
    replicas of the emulated engine, ──────┼─▶ the load at which 99 % are just within target
    each request to the least busy one ────┘                  ▲
                                              load_max ───────┘ predicted

    python -m load.fit.queueing [--quick]     prints the table, and the error; writes nothing

A load is a share of what the replicas carry, in `learners.work`'s units: Poisson arrivals of
`load · replicas / mean work` a second. The load is found by bisection, with the same random numbers
at each step. Loads above 0.95, where the formula ends, count as 0.95.

What is measured is the emulator, and never the formula's own idea of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.capacity.queueing import LOAD_MAX, load_max
from infra.emulator.fitted import performance_of
from infra.emulator.performance import Performance
from learners.work import WorkRates
from load.fit.pool_limits import bisected, within_target

TRACES = Path(__file__).parents[1] / "data"
PAIRS = (  # model, GPU, precision, GPUs of a replica: slow ones and fast ones
    ("Llama-3.1-8B-Instruct", "l4", "fp8", 1),
    ("Llama-3.1-8B-Instruct", "l40s", "fp8", 1),
    ("Llama-3.1-8B-Instruct", "h100_sxm", "fp8", 1),
    ("Qwen3-32B", "a100_sxm", "fp8", 1),
    ("Qwen3-32B", "h100_sxm", "fp8", 1),
    ("Llama-3.1-70B", "h100_sxm", "fp8", 4),
    ("gpt-oss-120b", "b200_sxm", "fp4", 1),
)
REPLICAS = (1, 2, 4, 8)
SHARE = 0.99  # within target
STEPS = 6  # of bisection: the load to 0.007
LOAD_LEAST, LOAD_MOST = 0.05, 1.0
ANSWERS = 6.0  # a run lasts as long as so many mean answers, the first of which is not counted
REQUESTS_MIN, REQUESTS_MAX = 3000, 12_000  # of one run

Lengths = NDArray[np.int64]  # (n, 2): prompt and output tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One pool under one kind of traffic, and what was found."""

    pair: str
    lengths: str
    replicas: int
    work_s: float
    cv2: float
    measured: float  # load at which 99 % are within target
    predicted: float


def main(arguments: list[str]) -> None:
    """Print the table."""
    quick = "--quick" in arguments
    cases = [
        case
        for pair in (PAIRS[:2] if quick else PAIRS)
        for name, lengths in all_lengths().items()
        for case in measure(pair, name, lengths, REPLICAS[:2] if quick else REPLICAS)
    ]
    print("\n".join(table_of(cases)))  # noqa: T201


def table_of(cases: list[Case]) -> list[str]:
    """A line for each case, and one for all."""
    errors = np.array([case.predicted - case.measured for case in cases])
    return [
        f"{'replica':34} {'lengths':9} {'n':>2} {'work_s':>7} {'cv2':>5} measured predicted",
        *(
            f"{c.pair:34} {c.lengths:9} {c.replicas:2} {c.work_s:7.3f} {c.cv2:5.2f} "
            f"{c.measured:8.2f} {c.predicted:9.2f}"
            for c in cases
        ),
        f"{len(cases)} cases: error {errors.mean():+.3f} in the mean, {np.abs(errors).mean():.3f} "
        f"absolute, {errors.max():+.3f} at most too high, {errors.min():+.3f} too low",
    ]


def all_lengths() -> dict[str, Lengths]:
    """Prompts and answers to draw from, by the name of where they are from."""
    rng = np.random.default_rng(5)
    found = {"chat": made_up(200, output_tokens=100, rng=rng)}
    for name in ("azure_conv_2023", "mooncake_conversation"):
        found[name.partition("_")[0]] = read(TRACES / f"{name}.parquet")
    return found


def made_up(prompt_tokens: float, *, output_tokens: float, rng: np.random.Generator) -> Lengths:
    """Log-normal lengths of these means, of a chat with short turns."""
    means = np.array([prompt_tokens, output_tokens])
    drawn = rng.lognormal(np.log(means) - 0.32, 0.8, (4000, 2))  # 0.32: half of 0.8²
    return np.maximum(drawn.round(), 1).astype(np.int64)


def read(path: Path) -> Lengths:
    """A trace's lengths."""
    table = pq.read_table(path, columns=["prompt_tokens", "output_tokens"])
    return np.column_stack([column.to_numpy() for column in table.columns]).astype(np.int64)


def measure(
    pair: tuple[str, str, str, int], name: str, lengths: Lengths, replicas: tuple[int, ...]
) -> list[Case]:
    """The cases of one pair under one kind of traffic; none if it cannot carry it at all."""
    model, gpu, precision, gpus = pair
    performance, target = (
        performance_of(model, gpu, precision=precision, gpus=gpus),
        LatencyTarget(),
    )
    rates = rates_of(performance, target)
    lengths = lengths[lengths.sum(axis=1) < 0.99 * performance.kv_tokens_max]
    work_s = np.array([rates.work_s(p, output_tokens=o) for p, o in lengths[:4000].tolist()])
    mean_s, cv2 = float(work_s.mean()), float(work_s.var() / work_s.mean() ** 2)
    prompt, output = lengths[:4000].mean(axis=0).tolist()
    return [
        Case(
            pair=f"{model} {gpus}x{gpu}",
            lengths=name,
            replicas=n,
            work_s=mean_s,
            cv2=cv2,
            measured=min(LOAD_MAX, fullest(performance, rates, target, lengths[:4000], n)),
            predicted=load_max(
                rates, target, prompt, output_tokens_mean=output, cv2=cv2, replicas=n
            ),
        )
        for n in replicas
    ]


def fullest(
    performance: Performance, rates: WorkRates, target: LatencyTarget, lengths: Lengths, n: int
) -> float:
    """The highest load at which 99 % are within target."""
    work_s = float(np.mean([rates.work_s(p, output_tokens=o) for p, o in lengths.tolist()]))

    def holds(load: float) -> bool:
        return share_met(performance, target, lengths, n, load * n / work_s) >= SHARE

    return sum(bisected(holds, (LOAD_LEAST, LOAD_MOST), STEPS)) / 2.0


def share_met(
    performance: Performance,
    target: LatencyTarget,
    lengths: Lengths,
    replicas: int,
    requests_per_s: float,
) -> float:
    """Share of the requests within target."""
    answer_s = float(lengths[:, 1].mean()) * target.tpot_s
    lasting = ANSWERS * answer_s * requests_per_s
    n = int(np.clip(lasting, REQUESTS_MIN, REQUESTS_MAX))
    rng = np.random.default_rng(11)
    drawn = lengths[rng.integers(0, len(lengths), n)]
    arrive_s = np.cumsum(rng.exponential(1.0 / requests_per_s, n))
    met = within_target(performance, target, arrive_s, drawn[:, 0], drawn[:, 1], replicas)
    return float(met[min(n // 3, int(np.searchsorted(arrive_s, answer_s))) :].mean())


if __name__ == "__main__":
    main(sys.argv[1:])
