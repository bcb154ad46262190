"""Watts of a replica, by what it is doing, and the energy that makes.

    idle      idle_share                                      of power_w · GPUs
    decoding  decode_share + bandwidth_share · bandwidth use
    prefill   prefill_share

While decoding, a GPU waits for its memory, and its power is linear in the share of the memory's
bandwidth that is used: weights per GPU / (iteration's fixed time · bandwidth). While prefilling it
computes and takes what it is built for. An iteration that mixes both is split by its time.

The coefficients are fitted by `load/fit/emulator.py` to the power of Llama2-70B and BLOOM-176B on
A100, 2 to 8 GPUs, measured by Mutinifni/splitwise-sim (MIT); other GPUs are assumed alike relative
to their rated power.

No replica takes more than its GPUs' rated power.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerShares:
    """Shares of the rated power; fitted.json has them."""

    idle: float
    decode: float  # at no bandwidth use
    bandwidth: float  # more at full bandwidth use
    prefill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Watts of one replica, all its GPUs together."""

    idle_w: float
    decode_w: float
    prefill_w: float

    def energy_j(self, all_s: float, *, busy_s: float, prefill_s: float) -> float:
        """Energy of `all_s` seconds, `busy_s` of them in iterations, of these some in prefill."""
        return (
            self.idle_w * (all_s - busy_s)
            + self.decode_w * (busy_s - prefill_s)
            + self.prefill_w * prefill_s
        )


def power(shares: PowerShares, gpu_power_w: float, gpus: int, bandwidth_use: float) -> Power:
    """The power of a replica of `gpus` GPUs; `bandwidth_use` in [0, 1] is that of decoding."""
    rated_w = gpu_power_w * gpus
    decode = min(1.0, shares.decode + shares.bandwidth * min(1.0, max(0.0, bandwidth_use)))
    return Power(
        idle_w=rated_w * shares.idle,
        decode_w=rated_w * decode,
        prefill_w=rated_w * min(1.0, shares.prefill),
    )
