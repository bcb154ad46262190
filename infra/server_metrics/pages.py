"""Reads the Prometheus page of a server of models: vLLM, SGLang, TGI, llama.cpp's, our emulator.

    text of /metrics ──lines with our names──▶ prometheus_client's parser ──KINDS──▶ Reading

Which server it is, is known by the prefix of its metrics' names. Each kind is a table: which name
says what. Servers rename metrics from version to version, so there are several names for a thing,
the newest first. Samples that differ in labels alone (engines of one server, reasons to finish) are
added up; of ranks that hold the same request together (tensor and pipeline parallel), the first
one's count.

The one rule: a page is somebody else's word. What can't be read is `PageUnreadable`, what is no
number that could be meant is left out, and nothing in it becomes a name of ours but the version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from infra.errors import PageUnreadable

COUNT_MAX = 1e15  # of tokens since a server started; more is no count
HELD_MAX = 1e6  # requests at once in one server
VERSION_LENGTH_MAX = 60
RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")
NOT_FINISHED = {"abort", "error"}  # reasons that are no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What one server's metrics are called; "": it has none. Several names: one for a version."""

    name: str
    prefix: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv_use: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()  # requests answered, a counter
    prompt_tokens: tuple[str, ...] = ()  # counters, all that follow
    output_tokens: tuple[str, ...] = ()
    cached_tokens: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    ttft: tuple[str, ...] = ()  # histograms, in seconds
    tpot: tuple[str, ...] = ()
    cached_in_prompt: bool = True  # whether prompt_tokens has those that were found in the cache


KINDS = (
    Kind(
        name="vllm",
        prefix="vllm:",
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        finished=("vllm:request_success_total",),
        prompt_tokens=("vllm:prompt_tokens_total",),
        output_tokens=("vllm:generation_tokens_total",),
        cached_tokens=("vllm:prefix_cache_hits_total",),
        preempted=("vllm:num_preemptions_total",),
        ttft=("vllm:time_to_first_token_seconds",),
        tpot=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    ),
    Kind(
        name="sglang",
        prefix="sglang:",
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_use=("sglang:token_usage",),
        finished=("sglang:num_requests_total",),
        prompt_tokens=("sglang:prompt_tokens_total",),
        output_tokens=("sglang:generation_tokens_total",),
        cached_tokens=("sglang:cached_tokens_total",),
        preempted=("sglang:num_retractions_total",),
        ttft=("sglang:time_to_first_token_seconds",),
        tpot=("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    ),
    Kind(
        name="tgi",
        prefix="tgi_",
        running=("tgi_batch_current_size",),
        waiting=("tgi_queue_size",),
        finished=("tgi_request_success", "tgi_request_success_total"),
        prompt_tokens=("tgi_request_input_length_sum",),
        output_tokens=("tgi_request_generated_tokens_sum",),
        tpot=("tgi_request_mean_time_per_token_duration",),
    ),
    Kind(
        name="llamacpp",
        prefix="llamacpp:",
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        kv_use=("llamacpp:kv_cache_usage_ratio",),
        prompt_tokens=("llamacpp:prompt_tokens_total",),
        output_tokens=("llamacpp:tokens_predicted_total",),
        cached_tokens=("llamacpp:prompt_tokens_cached_total",),
        cached_in_prompt=False,
    ),
    Kind(
        name="fairlead",
        prefix="fairlead_emulator_",
        running=("fairlead_emulator_requests_running",),
        waiting=("fairlead_emulator_requests_waiting",),
        kv_use=("fairlead_emulator_kv_cache_use",),
        finished=("fairlead_emulator_requests_finished_total",),
        prompt_tokens=("fairlead_emulator_prompt_tokens_total",),
        output_tokens=("fairlead_emulator_output_tokens_total",),
        cached_tokens=("fairlead_emulator_cached_tokens_total",),
    ),
)
PREFIXES = tuple(kind.prefix for kind in KINDS)
# Power per GPU, watts: NVIDIA's DCGM exporter, where a page has its metrics, too.
POWER = "DCGM_FI_DEV_POWER_USAGE"
BUILD = "_build_info"  # a metric of this name has the version among its labels

Buckets = tuple[tuple[float, float], ...]  # (upper end in seconds, count up to it), ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a server."""

    kind: str
    running: float
    waiting: float
    kv_use: float = 0.0
    finished: float | None = None  # None: this kind does not count them
    prompt_tokens: float = 0.0  # since it started, like all that follow; cached ones included
    output_tokens: float = 0.0
    cached_tokens: float = 0.0
    preempted: float = 0.0
    ttft: Buckets = ()
    tpot: Buckets = ()
    watts: float | None = None
    version: str = ""


@dataclass(slots=True)
class _Samples:
    """Samples by name, and what else is looked for."""

    values: dict[str, list[float]] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    version: str = ""

    def add(self, sample: Sample) -> None:
        """Take one, if it is a number that can be meant."""
        labels, name = sample.labels, sample.name
        if name.endswith(BUILD):
            self.version = labels.get("version", "")[:VERSION_LENGTH_MAX]
        if any(labels.get(rank, "0") not in ("0", "") for rank in RANKS):
            return
        if labels.get("finished_reason", "") in NOT_FINISHED:
            return
        if not (math.isfinite(sample.value) and 0.0 <= sample.value <= COUNT_MAX):
            return
        if name.endswith("_bucket"):
            ends = self.buckets.setdefault(name.removesuffix("_bucket"), {})
            end_s = float(labels.get("le", "nan"))
            ends[end_s] = ends.get(end_s, 0.0) + sample.value
        else:
            self.values.setdefault(name, []).append(sample.value)

    def first(self, names: Sequence[str]) -> list[float]:
        """The samples under the first of these names that there are any of."""
        return next((self.values[name] for name in names if name in self.values), [])

    def histogram(self, names: Sequence[str]) -> Buckets:
        """The first of these histograms that there is."""
        found = next((self.buckets[name] for name in names if name in self.buckets), {})
        return tuple(sorted((end, n) for end, n in found.items() if not math.isnan(end)))


def read_page(text: str) -> Reading:
    """What a page says. Raises PageUnreadable."""
    samples = _samples(text)
    for kind in KINDS:
        if samples.first(kind.running):
            return _reading(kind, samples)
    raise PageUnreadable(f"it has none of the metrics {', '.join(k.running[0] for k in KINDS)}")


def power_of(text: str) -> list[float]:
    """Watts of each GPU on a page of NVIDIA's DCGM exporter. Raises PageUnreadable."""
    return _samples(text).values.get(POWER, [])


def _samples(text: str) -> _Samples:
    samples = _Samples()
    try:
        for family in text_string_to_metric_families(_ours(text)):
            for sample in family.samples:
                samples.add(sample)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PageUnreadable(f"it is no Prometheus page: {error}") from None
    return samples


def _ours(text: str) -> str:
    """The lines that are about us: pages have thousands, and parsing one takes 10 µs."""
    return "\n".join(_wanted(text)) + "\n"


def _wanted(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name = line.removeprefix("# TYPE ")
        if name.startswith(PREFIXES) or name.startswith(POWER) or BUILD in name[:100]:
            yield line


def _reading(kind: Kind, samples: _Samples) -> Reading:
    def total(names: Sequence[str]) -> float:
        return sum(samples.first(names))

    kv = samples.first(kind.kv_use)
    held = total(kind.running) + total(kind.waiting)
    if held > HELD_MAX:
        raise PageUnreadable(f"it says that {held:g} requests are there")
    finished, watts = samples.first(kind.finished), samples.first((POWER,))
    cached = total(kind.cached_tokens)
    return Reading(
        kind=kind.name,
        running=total(kind.running),
        waiting=total(kind.waiting),
        kv_use=min(1.0, max(kv, default=0.0)),
        finished=sum(finished) if kind.finished else None,
        prompt_tokens=total(kind.prompt_tokens) + (0.0 if kind.cached_in_prompt else cached),
        output_tokens=total(kind.output_tokens),
        cached_tokens=cached,
        preempted=total(kind.preempted),
        ttft=samples.histogram(kind.ttft),
        tpot=samples.histogram(kind.tpot),
        watts=sum(watts) if watts else None,
        version=samples.version,
    )
