"""The metrics pages of the servers that are stood in for: the same names, types and labels.

Doing (of a stand-in) ──KINDS[kind]──▶ text of /metrics; None: this kind has no page
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ENDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # of histograms' buckets


@dataclass(slots=True)
class Doing:
    """What a server does, and has done since it started."""

    slots: int
    running: int = 0
    waiting: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_s: list[int] = field(default_factory=lambda: [0] * (len(ENDS_S) + 1))
    first_token_sum_s: float = 0.0

    def note(self, first_token_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """Count a request that is answered."""
        self.finished += 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self.first_token_s[sum(first_token_s > end for end in ENDS_S)] += 1
        self.first_token_sum_s += first_token_s


def vllm(doing: Doing) -> str:
    """As vLLM's API server, version 1 of its engine."""
    labels = 'engine="0",model_name="m"'
    return _page(
        _gauge("vllm:num_requests_running", labels, doing.running),
        _gauge("vllm:num_requests_waiting", labels, doing.waiting),
        _gauge("vllm:kv_cache_usage_perc", labels, doing.running / doing.slots),
        _counter("vllm:prompt_tokens_total", labels, doing.prompt_tokens),
        _counter("vllm:generation_tokens_total", labels, doing.output_tokens),
        _counter("vllm:num_preemptions_total", labels, 0),
        _counter("vllm:request_success_total", labels + ',finished_reason="stop"', doing.finished),
        _histogram("vllm:time_to_first_token_seconds", labels, doing),
    )


def sglang(doing: Doing) -> str:
    """As SGLang's, with `--enable-metrics`."""
    labels = 'engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"'
    return _page(
        _gauge("sglang:num_running_reqs", labels, doing.running),
        _gauge("sglang:num_queue_reqs", labels, doing.waiting),
        _gauge("sglang:token_usage", labels, doing.running / doing.slots),
        _counter("sglang:prompt_tokens_total", labels, doing.prompt_tokens),
        _counter("sglang:generation_tokens_total", labels, doing.output_tokens),
        _counter("sglang:num_requests_total", labels, doing.finished),
        _histogram("sglang:time_to_first_token_seconds", labels, doing),
    )


def tgi(doing: Doing) -> str:
    """As text-generation-inference's router."""
    return _page(
        _gauge("tgi_batch_current_size", "", doing.running),
        _gauge("tgi_queue_size", "", doing.waiting),
        _counter("tgi_request_success", "", doing.finished),
        f"# TYPE tgi_request_input_length histogram\n"
        f'tgi_request_input_length_bucket{{le="+Inf"}} {doing.finished}\n'
        f"tgi_request_input_length_sum {doing.prompt_tokens}\n"
        f"tgi_request_input_length_count {doing.finished}",
        f"# TYPE tgi_request_generated_tokens histogram\n"
        f'tgi_request_generated_tokens_bucket{{le="+Inf"}} {doing.finished}\n'
        f"tgi_request_generated_tokens_sum {doing.output_tokens}\n"
        f"tgi_request_generated_tokens_count {doing.finished}",
    )


def llamacpp(doing: Doing) -> str:
    """As llama.cpp's server with `--metrics`, which does not count requests."""
    return _page(
        _counter("llamacpp:prompt_tokens_total", "", doing.prompt_tokens),
        _counter("llamacpp:tokens_predicted_total", "", doing.output_tokens),
        _gauge("llamacpp:requests_processing", "", doing.running),
        _gauge("llamacpp:requests_deferred", "", doing.waiting),
    )


KINDS: Mapping[str, Callable[[Doing], str] | None] = {
    "vllm": vllm,
    "sglang": sglang,
    "tgi": tgi,
    "llamacpp": llamacpp,
    "plain": None,
}


def _page(*parts: str) -> str:
    return "\n".join(parts) + "\n"


def _gauge(name: str, labels: str, value: float) -> str:
    return f"# TYPE {name} gauge\n{_sample(name, labels, value)}"


def _counter(name: str, labels: str, value: float) -> str:
    return f"# TYPE {name} counter\n{_sample(name, labels, value)}"


def _sample(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {float(value)}" if labels else f"{name} {float(value)}"


def _histogram(name: str, labels: str, doing: Doing) -> str:
    lines, passed = [f"# TYPE {name} histogram"], 0
    ends: Sequence[str] = [*map(str, ENDS_S), "+Inf"]
    for end, n in zip(ends, doing.first_token_s, strict=True):
        passed += n
        lines.append(_sample(f"{name}_bucket", f'{labels},le="{end}"', passed))
    lines.append(_sample(f"{name}_sum", labels, doing.first_token_sum_s))
    lines.append(_sample(f"{name}_count", labels, doing.finished))
    return "\n".join(lines)
