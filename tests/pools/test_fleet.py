"""A fleet as settings describe it: what fits is planned, what can't work is refused when read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from infra.capacity.fleet import Fleet, PoolPlan
from infra.emulator import catalogue as known
from infra.settings.fleet_plans import fleet_of
from infra.settings.settings import Settings, read_settings
from streams.errors import OptionRefused

ROOT = Path(__file__).parents[2]
GPU = {"name": "h100_sxm", "usd_per_hour": 2.0}
MODEL = {"name": "m", "shape": "Llama-3.1-8B-Instruct", "precision": "bf16"}
EMULATED = {"name": "p", "model": "m", "backend": "emulated", "gpu": "h100_sxm"}
CALLED = {"name": "p", "model": "m", "backend": "openai", "urls": ["http://h/v1"]}
STARTED = {"name": "p", "model": "m", "backend": "openai", "command": ["serve"]}


def fleet(*pools: dict, gpu: dict | None = None, model: dict | None = None) -> Fleet:
    gpus, models = [GPU | (gpu or {})], [MODEL | (model or {})]
    return Settings(gpus=gpus, models=models, pools=list(pools)).fleet()


def plan(pool: dict, **changed: object) -> PoolPlan:
    (found,) = fleet(pool | changed).pools
    return found


# --- what is planned -------------------------------------------------------------------------------


def test_known_gpu_has_the_figures_of_its_data_sheet():
    (gpu,) = fleet().gpus
    sheet = known.GPUS["h100_sxm"]

    assert all(getattr(gpu, name) == getattr(sheet, name) for name in known.Gpu.__slots__)
    assert (gpu.usd_per_hour, gpu.available, gpu.startup_s) == (2.0, 8, 120.0)


def test_stated_figures_win_over_the_data_sheet():
    """
    In the units that their names say.
    """
    stated = {"memory_gib": 96, "bandwidth_tb_per_s": 4.0, "bf16_tflops": 900, "fp8_tflops": 1800}
    (gpu,) = fleet(gpu=stated | {"power_w": 500}).gpus

    assert gpu.memory_bytes == 96 * 2**30
    assert gpu.bandwidth_bytes_per_s == 4e12
    assert (gpu.bf16_flops, gpu.fp8_flops, gpu.power_w) == (9e14, 1.8e15, 500)


def test_emulated_pool_behaves_like_its_model_on_its_gpu():
    """
    Measured where somebody measured it; a changed GPU is not the measured one.
    """
    measured = plan(EMULATED)
    (changed,) = fleet(EMULATED, gpu={"bandwidth_tb_per_s": 3.0}).pools
    (resized,) = fleet(
        EMULATED, model={"shape": "", "parameters_1e9": 8.0, "kv_values_per_token": 65536}
    ).pools

    assert not measured.derived
    assert changed.derived
    assert resized.derived
    assert measured.emulation.performance.fixed_s > 0
    assert measured.emulation.power.prefill_w <= 700
    assert measured.emulation.context_tokens_max == 131_072


def test_a_real_server_on_a_stated_gpu_draws_power_whatever_is_known_of_its_model():
    """
    What a model makes of its GPU where its shape is stated; else what such a GPU draws.
    """
    shaped, where = plan(STARTED, gpu="h100_sxm"), {"gpu": "h100_sxm"}
    (plain,) = fleet(STARTED | where, model={"shape": "", "tensor_parallel": 2}).pools

    assert shaped.power is not None and shaped.stated.busy_w <= 700
    assert 0.0 < plain.stated.idle_w < plain.stated.busy_w <= 2 * 700
    assert plain.watts == plain.stated.busy_w
    assert plan(CALLED).power is None


def test_context_is_what_model_settings_and_memory_allow():
    small = {"memory_gib": 24}
    (by_memory,) = fleet(EMULATED, gpu=small).pools
    (by_settings,) = fleet(EMULATED, model={"context_tokens_max": 1000}).pools

    room = by_memory.emulation.performance.kv_tokens_max
    assert by_memory.emulation.context_tokens_max == room < 131_072
    assert by_settings.emulation.context_tokens_max == 1000


def test_router_sends_no_prompt_that_a_pool_of_the_model_has_no_room_for():
    """
    The catalogue's limit is that of the model's smallest pool.
    """
    settings = Settings(
        gpus=[GPU, {"name": "l4", "usd_per_hour": 1.0}],
        models=[MODEL, {"name": "other"}],
        pools=[EMULATED, EMULATED | {"name": "small", "gpu": "l4"}],
    )

    limits = {m.name: m.context_tokens_max for m in settings.catalogue().models}

    small = settings.fleet().pools[1].emulation.context_tokens_max
    assert small < 131_072
    assert limits == {"m": small, "other": 1e9}


def test_router_knows_how_many_replicas_a_pool_begins_with():
    settings = Settings(gpus=[GPU], models=[MODEL], pools=[EMULATED | {"replicas": 0}])

    assert [pool.replicas for pool in settings.catalogue().pools] == [0]


def test_residency_says_whether_a_new_replica_loads_its_model():
    assert plan(EMULATED, load_s=30).load_s == 0
    assert plan(EMULATED, load_s=30, residency="cold").load_s == 30


def test_replica_takes_its_gpus_as_logical_resources():
    """
    And a program that uses real ones gets them as devices; an emulated one needs none.
    """
    (emulated,) = fleet(EMULATED, model={"tensor_parallel": 4}).pools
    (started,) = fleet(STARTED | {"gpu": "h100_sxm"}, model={"tensor_parallel": 4}).pools

    assert emulated.resources() == started.resources() == {"gpu_h100_sxm": 4.0}
    assert (emulated.device_gpus, started.device_gpus) == (0, 4)
    assert plan(STARTED).resources() == {}
    assert plan(STARTED).device_gpus == 0


def test_one_machine_passes_for_all_gpus_there_are():
    """
    Devices only for those that programs run on.
    """
    assert fleet(EMULATED).resources() == {"gpu_h100_sxm": 8.0}
    assert fleet(STARTED | {"gpu": "h100_sxm"}).resources() == {"gpu_h100_sxm": 8.0, "GPU": 8.0}


def test_only_pools_that_run_here_are_deployed():
    assert plan(EMULATED).deployed
    assert plan(STARTED).deployed
    assert not plan(CALLED).deployed
    assert not plan({"name": "p", "model": "m"}).deployed


def test_fleet_travels_to_other_processes():
    described = read_settings(ROOT / "infra" / "example-fleet.toml").fleet()

    assert pickle.loads(pickle.dumps(described)) == described


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gpu": "h1000"}, "pools.p.gpu is 'h1000', but must be one of h100_sxm"),
        ({"gpu": ""}, "pools.p.gpu is 'missing'"),
        ({"name": "a/b"}, "pools.name is 'a/b', but must be letters"),
        ({"name": "a#b"}, "pools.name is 'a#b', but must be letters"),
        ({"model": "x"}, "pools.p.model is 'x', but must be one of m"),
        ({"urls": ["http://h/v1"]}, "pools.p.backend is 'emulated', but must be openai"),
        ({"command": ["serve"]}, "pools.p.backend is 'emulated', but must be openai"),
        ({"backend": "none", "command": ["serve"]}, "pools.p.backend is 'none'"),
        ({"priority": True}, "pools.p.backend is 'emulated', but must be openai where priority"),
        (
            {"stream": False},
            "pools.p.backend is 'emulated', but must be openai where stream = false",
        ),
        ({"replicas": 9, "replicas_max": 8}, r"pools.p.replicas is 9, but must be 0 to 8 "),
        ({"replicas": 1, "replicas_min": 2}, r"pools.p.replicas is 1, but must be 2 to 8 "),
        ({"replicas": 10, "replicas_max": 20}, "available is 8, but must be at least the 10 "),
    ],
)
def test_emulated_pool_that_cannot_work_is_refused(changed, says):
    """
    Found when the file is read, not by Ray waiting for ever.
    """
    with pytest.raises(OptionRefused, match=says):
        plan(EMULATED, **changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"command": ["serve"]}, "pools.p.urls and command is 'both given'"),
        ({"urls": []}, "pools.p.urls and command is 'both missing'"),
        ({"urls": ["h:8000"]}, "pools.p.urls is 'something else', but must be http"),
        ({"urls": ["http://h/v1", "ftp://h/v1"]}, "pools.p.urls is 'something else'"),
        ({"urls": ["http://me:secret@h/v1"]}, "pools.p.urls is 'something else'"),
        ({"api_key": "two\nlines"}, "pools.p.api_key is '<hidden>', but must be printable"),
        ({"gpu": "h1000"}, "pools.p.gpu is 'h1000'"),
        ({"extra": {"stream": False}}, "pools.p.extra.stream is False, but must be left out"),
    ],
)
def test_called_pool_that_cannot_work_is_refused(changed, says):
    with pytest.raises(OptionRefused, match=says) as refused:
        plan(CALLED, **changed)

    assert "secret" not in str(refused.value)
    assert "lines" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"shape": "gpt-7"}, "models.m.shape is 'gpt-7', but must be one of DeepSeek"),
        ({"shape": ""}, "models.m is 'without its size', but must be given `shape`"),
        ({"shape": "", "parameters_1e9": 7.0}, "models.m is 'without its size'"),
        (
            {"shape": "Llama-3.1-70B", "precision": "bf16"},
            "models.m.tensor_parallel is 1, but must be more: on so many h100_sxm its weights",
        ),
        (
            {
                "shape": "",
                "parameters_1e9": 7,
                "active_parameters_1e9": 8,
                "kv_values_per_token": 9,
            },
            "models.m.active_parameters_1e9 is 8.0, but must be at most the 7.0",
        ),
    ],
)
def test_model_that_cannot_be_emulated_there_is_refused(model, says):
    with pytest.raises(OptionRefused, match=says):
        fleet(EMULATED, model=model)


def test_pool_that_is_only_called_may_have_any_name():
    assert plan(CALLED, name="zone a / #3").name == "zone a / #3"


def test_model_that_is_only_called_needs_no_size():
    assert fleet(CALLED, model={"shape": ""}).pools[0].emulation is None


def test_unknown_gpu_needs_all_its_figures():
    with pytest.raises(
        OptionRefused, match=r"gpus\.a10 is 'without power_w', but must be one of a100"
    ):
        fleet(
            gpu={
                "name": "a10", "memory_gib": 24, "bandwidth_tb_per_s": 0.6,
                "bf16_tflops": 125, "fp8_tflops": 125,
            }
        )  # fmt: skip


def test_gpus_are_counted_over_all_pools_and_all_their_gpus():
    """
    Two pools of four replicas on two GPUs each need sixteen.
    """
    pools = [EMULATED | {"name": name, "replicas": 4} for name in "ab"]

    with pytest.raises(
        OptionRefused, match=r"gpus\.h100_sxm.available is 15, but must be at least"
    ):
        fleet(*pools, gpu={"available": 15}, model={"tensor_parallel": 2})
    assert fleet(*pools, gpu={"available": 16}, model={"tensor_parallel": 2})
    assert fleet(CALLED | {"gpu": "h100_sxm", "replicas": 8}, gpu={"available": 1})


@pytest.mark.parametrize("kind", ["gpus", "models", "pools"])
def test_names_are_unique(kind):
    described = {"gpus": [GPU], "models": [MODEL], "pools": [EMULATED]}
    described[kind] *= 2
    settings = Settings(**described)

    with pytest.raises(OptionRefused, match=rf"{kind}.name is .*, but must be unique"):
        fleet_of(settings.gpus, settings.models, settings.pools, settings.target())
