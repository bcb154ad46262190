"""Fits shares of a GPU's rated power to measured ones; see `infra.emulator.power`.

    splitwise.parquet: Llama2-70B and BLOOM-176B, bf16, on 2, 4 and 8 A100-80GB, power as a share
    of the rated one (Mutinifni/splitwise-sim, MIT; rows without a power reading left out)

    decode + bandwidth · use   a line through average_power of runs that mostly decode
    prefill                    median peak_power of runs with prompts that fill the GPU
    idle                       median average_power of the runs whose readings were taken at rest:
                               8,192-token prompts of Llama2-70B read 0.18 on 2, 4 and 8 GPUs alike

Bandwidth use is that of the weights alone, bytes per GPU over the measured time of a
token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from infra.emulator.catalogue import gpu

PATH = Path(__file__).parents[1] / "data" / "splitwise.parquet"
WEIGHTS_BYTES = {"llama2-70b": 2 * 69e9, "bloom-176b": 2 * 176.2e9}  # bf16
GPU = "a100_sxm"
PROMPT_SHARE_MAX = 0.1  # of a run's time, for a run that mostly decodes
PREFILL_TOKENS_MIN = 2048  # batch · prompt; below, the GPU is not full
RESTING_BELOW = 0.25  # no run that computes reads less than 0.38


def fit_power(path: Path = PATH) -> dict[str, float]:
    """The shares, rounded to three digits."""
    table = pq.read_table(path).to_pylist()
    bandwidth = gpu(GPU).bandwidth_bytes_per_s
    resting = [row["average_power"] for row in table if row["average_power"] < RESTING_BELOW]
    decoding = [
        (WEIGHTS_BYTES[row["model"]] / row["tensor_parallel"] / (row["token_time"] / 1e3), row)
        for row in table
        if row["prompt_time"] < PROMPT_SHARE_MAX * row["e2e_time"]
    ]
    use = np.array([bytes_per_s / bandwidth for bytes_per_s, _ in decoding])
    power = np.array([row["average_power"] for _, row in decoding])
    slope, base = np.polyfit(use, power, 1)
    peaks = [
        row["peak_power"]
        for row in table
        if row["batch_size"] * row["prompt_size"] >= PREFILL_TOKENS_MIN
    ]
    error = np.median(np.abs((base + slope * use) / power - 1.0))
    return {
        "idle": round(float(np.median(resting)), 3),
        "decode": round(float(base), 3),
        "bandwidth": round(float(slope), 3),
        "prefill": round(min(1.0, float(np.median(peaks))), 3),
        "decode_error_median": round(float(error), 3),
        "rows": len(table),
    }
