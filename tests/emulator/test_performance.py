"""What a replica's performance and power are, measured or derived from the hardware."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.emulator import catalogue
from infra.emulator.errors import NotDescribed
from infra.emulator.fitted import efficiency, efficiency_of, fitted, performance_of, power_of
from infra.emulator.performance import Performance
from infra.emulator.power import PowerShares, power
from infra.emulator.roofline import Deployment, Efficiency, derive, roofline

EXACTLY = Efficiency(
    overhead_s=0.0, fixed=1.0, experts=1.0, per_sequence=1.0, per_context_token=1.0,
    per_prompt_token=1.0, request_s=0.0,
)  # fmt: skip


def on(model: str, gpu: str, precision: str = "bf16", gpus: int = 1, **more) -> Deployment:
    return Deployment(
        model=catalogue.model(model), gpu=catalogue.gpu(gpu), precision=precision, gpus=gpus, **more
    )


# --- the roofline


def test_a_dense_model_reads_all_its_weights_for_every_token():
    """
    Llama-3.1-8B in bf16 on an A100: 16 GB at 2 TB/s, and 128 KiB of cache per token.
    """
    least = roofline(on("Llama-3.1-8B-Instruct", "a100_sxm"))

    assert least.fixed_s == pytest.approx(16.06e9 / 2.039e12)
    assert least.experts_s == 0.0
    assert least.per_context_token_s == pytest.approx(131072 / 2.039e12)
    assert least.per_prompt_token_s == pytest.approx(2 * 8.03e9 / 312e12)


def test_a_mixture_of_experts_reads_its_active_parameters_for_one_token():
    """
    What one token uses and what all use add up to the model's own figures.
    """
    gpt_oss = on("gpt-oss-120b", "h100_sxm", "fp8")

    least = roofline(gpt_oss)

    share = gpt_oss.model.expert_share
    bandwidth = gpt_oss.bandwidth_bytes_per_s
    assert least.fixed_s + least.experts_s == pytest.approx(116.8e9 / bandwidth)
    assert least.fixed_s + share * least.experts_s == pytest.approx(5.1e9 / bandwidth)


@lightly
@given(
    st.sampled_from(sorted(catalogue.MODELS)),
    st.sampled_from(sorted(catalogue.GPUS)),
    st.sampled_from([1, 2, 4, 8]),
)
def test_more_gpus_are_never_slower(model, gpu, gpus):
    """
    The bound halves as GPUs double, and the cache more than doubles.
    """
    few, many = on(model, gpu, gpus=gpus), on(model, gpu, gpus=2 * gpus)

    least, half = (np.array(dataclasses.astuple(roofline(one))) for one in (few, many))

    np.testing.assert_allclose(half, least / 2)
    assert many.kv_tokens_max >= 2 * few.kv_tokens_max


def test_the_cache_is_the_memory_that_weights_leave():
    """
    90 % of 80 GiB less 16 GB, at 128 KiB per token; and fp8 holds twice as much.
    """
    bf16 = on("Llama-3.1-8B-Instruct", "h100_sxm")

    assert bf16.kv_tokens_max == int((0.9 * 80 * 2**30 - 16.06e9) / 131072)
    fp8 = dataclasses.replace(bf16, kv_bytes=1.0)
    assert fp8.kv_tokens_max == pytest.approx(2 * bf16.kv_tokens_max, abs=1)


def test_a_model_that_does_not_fit_has_no_cache():
    """
    And no performance.
    """
    too_big = on("Llama-3.1-70B", "l4")

    assert too_big.kv_tokens_max == 0
    with pytest.raises(AssertionError, match="does not fit"):
        derive(too_big, EXACTLY)


def test_what_is_derived_says_so():
    """
    Wherever it is shown, and with where it came from.
    """
    found = derive(on("Llama-3.1-8B-Instruct", "a100_sxm"), EXACTLY)

    assert found.derived
    assert "roofline of Llama-3.1-8B-Instruct on 1 × a100_sxm" in found.source
    assert found.fixed_s == pytest.approx(16.06e9 / 2.039e12)


# --- what ships


def test_everything_that_ships_is_possible():
    """
    No negative time, no faster than half of what the memory's bandwidth allows, named sources.
    """
    assert len(fitted()) > 200
    for one in fitted():
        of = one.performance
        assert of.fixed_s > 0.0
        assert min(dataclasses.astuple(of)[1:6]) >= 0.0
        assert "aiconfigurator" in of.source
        assert of.derived == (one.rows == 0)
        assert of.expert_share == one.deployment.model.expert_share


def test_a_measured_pair_is_given_as_measured():
    """
    The setup that was measured most.
    """
    found = performance_of("Llama-3.1-70B", "h200_sxm", precision="fp8", gpus=4)

    assert not found.derived
    assert found in [one.performance for one in fitted()]


@pytest.mark.parametrize("gpu", ["a100_sxm", "l40s", "l4"])
def test_a_pair_nobody_measured_is_derived_and_marked(gpu):
    """
    And slower where the memory is slower.
    """
    found = performance_of("Llama-3.1-8B-Instruct", gpu, precision="bf16", gpus=1)
    h100 = performance_of("Llama-3.1-8B-Instruct", "h100_sxm", precision="bf16", gpus=1)

    assert found.derived
    assert not h100.derived
    assert found.fixed_s > h100.fixed_s


def test_the_unknown_is_refused_by_name():
    """
    With what there is.
    """
    with pytest.raises(NotDescribed, match="no GPU 'abacus' is described; there are: a100_sxm"):
        performance_of("Llama-3.1-70B", "abacus", precision="fp8", gpus=1)
    with pytest.raises(NotDescribed, match="no model 'gpt-9'"):
        performance_of("gpt-9", "h100_sxm", precision="fp8", gpus=1)


@pytest.mark.parametrize("mixture", [False, True])
def test_real_engines_do_not_beat_their_hardware(mixture):
    """
    Reading weights and prefilling take longer than the roofline, and not a hundred times.
    """
    found = efficiency(mixture=mixture)

    assert 1.0 < found.per_prompt_token < 100.0
    assert found.overhead_s + found.fixed * 0.010 > 0.010 * 0.9
    assert 0.0 < found.request_s < 1.0


def test_efficiency_is_found_again():
    """
    From setups that are exact multiples of their rooflines.
    """
    known = Efficiency(
        overhead_s=0.002, fixed=1.5, experts=0.0, per_sequence=3.0, per_context_token=2.0,
        per_prompt_token=1.8, request_s=0.05,
    )  # fmt: skip
    setups = [one for one in fitted() if not one.deployment.model.experts][:12]
    made = [dataclasses.replace(one, performance=derive(one.deployment, known)) for one in setups]

    found = efficiency_of(made)

    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(known))


# --- power


SHARES = PowerShares(idle=0.2, decode=0.3, bandwidth=0.5, prefill=1.0)


def test_decoding_takes_power_by_its_bandwidth_use():
    """
    Two GPUs of 400 W that use half of their bandwidth.
    """
    found = power(SHARES, 400.0, 2, 0.5)

    assert (found.idle_w, found.decode_w, found.prefill_w) == pytest.approx((160, 440, 800))


@lightly
@given(st.floats(-1.0, 3.0), st.floats(0.0, 1.2))
def test_no_replica_takes_more_than_its_rated_power(use, bandwidth):
    """
    Whatever the coefficients and the use.
    """
    shares = PowerShares(idle=0.2, decode=0.3, bandwidth=bandwidth, prefill=1.05)

    found = power(shares, 700.0, 4, use)

    assert found.idle_w <= found.decode_w <= 2800.0
    assert found.prefill_w == 2800.0


def test_every_measured_setup_has_a_power():
    """
    More when it works than when it rests.
    """
    for one in fitted():
        found = power_of(one.deployment, one.performance)
        assert 0.0 < found.idle_w < found.decode_w <= found.prefill_w


def test_a_performance_can_be_shown_as_json():
    """
    And read again.
    """
    one = fitted()[0].performance

    assert Performance(**one.as_dict()) == one
