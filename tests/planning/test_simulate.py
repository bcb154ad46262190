"""A site's settings under a trace, in virtual time: repeatable, with events, and counted in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.planning.trace_options import Stretch, parts_of, trace_of
from infra.emulator.performance import WITHOUT_END, Performance
from infra.settings.settings import read_settings
from learners.estimates.learned import Learned
from learners.servers.service import bucket_of
from learners.servers.speed import Speed
from load.data import tables
from load.data.traces import Trace, azure
from load.errors import EventRefused, SnapshotMissing, TableRefused, TraceRefused
from load.planning.events import Events, read_events, surged
from load.planning.figures.summary import percentiles, summary
from load.planning.inflated import slower
from load.planning.questions import questions_of
from load.planning.simulating import Fixed, SimulateOptions, Watched, simulated
from load.planning.site import LearnedServers, site_of
from load.planning.snapshot import means_of, servers_of
from load.simulation.loop.mail import Mail
from load.simulation.loop.telemetry import VirtualTelemetry
from load.simulation.shocks import PoolBack, RegionBack
from load.traces.reading import TraceFile, read_trace
from streams.log.contract import TELEMETRY
from streams.log.memory_log import MemoryLog, Storage
from streams.telemetry.capacity import capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.pool_reports import FROM
from streams.telemetry.records import PoolState
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Saver, State

SETTINGS = """
[router]
replicas = 1
[preference]
cost = 20
[[gpus]]
name = "h100_sxm"
usd_per_hour = 2.0
available = 8
[[models]]
name = "llama-3.1-8b"
shape = "Llama-3.1-8B-Instruct"
usd_per_1m_input_tokens = 0.02
usd_per_1m_output_tokens = 0.05
[[models]]
name = "qwen3-32b"
usd_per_1m_input_tokens = 1
usd_per_1m_output_tokens = 4
output_tokens = 100
latency_ms = 2000
[[pools]]
name = "small-eu"
model = "llama-3.1-8b"
region = "eu"
backend = "emulated"
gpu = "h100_sxm"
replicas = 1
[[pools]]
name = "small-us"
model = "llama-3.1-8b"
region = "us"
backend = "openai"
command = ["vllm", "serve", "--port={port}"]
gpu = "h100_sxm"
replicas = 1
"""


@pytest.fixture(scope="module")
def settings_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "fairlead.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def site(settings_path):
    return site_of(read_settings(settings_path))


def file_of(trace: Trace) -> TraceFile:
    return TraceFile(trace=trace, format="plain", rows=len(trace))


TABLES = Path(tables.__file__).parent
MINUTE = file_of(azure().between(1500.0, end_s=1560.0))


CALM = Events()


def run(site, events=CALM, file=MINUTE, **options):
    questions = questions_of(site.catalogue, None, file)
    return simulated(site, file, questions, events, SimulateOptions(**options))


def test_a_real_pool_is_emulated_and_a_model_without_gpus_is_hosted(site):
    """
    And what was assumed is said.
    """
    assert [plan.name for plan in site.fleet.pools] == ["small-eu", "small-us", "qwen3-32b"]
    assert site.hosted == {"qwen3-32b"}
    assert any("small-us runs as" in text for text in site.assumed)
    assert any("qwen3-32b is hosted" in text for text in site.assumed)


def test_all_pools_are_slower_where_service_times_are_longer(site):
    """
    One's own GPUs, and hosted models that need not be as fast as they are stated to be.
    """
    of = zip(site.fleet.pools, slower(site, 1.5).fleet.pools, strict=True)
    for one, longer in ((a.engine.performance, b.engine.performance) for a, b in of):
        assert longer.fixed_s == 1.5 * one.fixed_s > 0.0
        assert longer.request_s == 1.5 * one.request_s


def test_a_pool_that_was_learned_of_is_as_fast_as_its_servers_were(settings_path, tmp_path):
    """
    Whatever its GPU is taken to do; of pools that are emulated anyway nothing is changed. It is given as
    many requests at once as dispatchers give it, or as are stated.
    """
    one = Performance.of_speed(
        Speed(first_s=0.5, first_s_per_prompt_token=1e-3, token_s=0.1, token_s_per_held=0.01,
              held=1.0, answers=100), 3,
    )  # fmt: skip
    learned = LearnedServers(performance=one, held_max=(3, 4, 5, 0))
    settings = read_settings(settings_path)
    site = site_of(settings, learned=dict.fromkeys(("small-us", "small-eu"), learned))
    eu, us = site.fleet.pools[:2]

    assert us.engine.performance == one != eu.engine.performance
    assert (us.machine.name, us.replicas) == ("h100_sxm", 1)
    assert (eu.held_max, us.held_max) == ((), (3, 4, 5, 0))
    path = tmp_path / "stated.toml"
    path.write_text(SETTINGS + "concurrency_max = 3\n")
    for stated in (
        site_of(read_settings(path), learned={"small-us": learned}),
        site_of(read_settings(path)),
    ):
        assert stated.fleet.pools[1].held_max == (3, 3, 3, 0)
    assert any("small-us is as fast as its servers were: 390 ms" in text for text in site.assumed)


def test_a_pool_that_was_slow_by_chance_is_simulated_so_by_the_seed(settings_path):
    """
    First tokens vary by what is drawn, and the same seed draws the same.
    """
    even = Performance.of_speed(
        Speed(first_s=0.5, first_s_per_prompt_token=0.0, token_s=1e-3, token_s_per_held=0.0,
              held=1.0, answers=100), 0,
    )  # fmt: skip
    varied = replace(even, slow=(0.5,) * 9 + (5.5,))
    settings = read_settings(settings_path)

    def first_s(performance):
        learned = {"small-us": LearnedServers(performance=performance)}
        found = run(site_of(settings, learned=learned), file=short).requests
        return found.ttft_s[np.isfinite(found.ttft_s)]

    short = file_of(azure().between(1500.0, end_s=1510.0))
    never, once, again = first_s(even), first_s(varied), first_s(varied)
    assert np.array_equal(once, again)
    assert never.max() < 2.5 < once.max()


def test_what_was_learned_is_read_from_the_newest_snapshot(settings_path, tmp_path):
    """
    Of how many it takes at once the limit is known only where it was seen: on a page by those that
    wait, and not by a throughput that is all that is asked for.
    """
    fleet = FleetState()
    row = (bucket_of(1), 10, 10, 1000, 100_000, 3_000_000, 300_000_000, 90, 1_800_000)
    waited = (bucket_of(8), 20_000_000, 160_000_000, 80_000_000, 40)
    level = (bucket_of(8), 80_000_000, 640_000_000, 0, 40)
    head = {"source": "b" * 16, "from_unix_ms": 1000, "to_unix_ms": 2000, "pool": "small-eu",
            "model": "m", "by": "page", "replica": "h:1", "sequence": 0}  # fmt: skip
    fleet.fold(
        PoolState(served=[(bucket_of(1), 20_000_000, 20_000_000, 0, 10), level], **head), 2000
    )
    assert capacities(fleet, 2.0)["small-eu"].of.service.full
    for pool, served in (("small-eu", []), ("small-us", [waited])):
        head = {"source": "a" * 16, "from_unix_ms": 1000, "to_unix_ms": 2000, "pool": pool,
                "model": "m", "by": "callers", "replica": f"h:1{FROM}{'a' * 16}"}  # fmt: skip
        alone = (bucket_of(1), 20_000_000, 20_000_000, 0, 10)
        fleet.fold(
            PoolState(sequence=len(served), served=[alone, *served], paced=[row], **head),
            2000,
        )
    settings, store = read_settings(settings_path), Store(Folder(str(tmp_path)))
    store.claim()
    state = State("hashing", Learned(settings.deployment().trainer.memory), fleet=fleet)
    Saver(store).save(state, 3000)

    found = servers_of(tmp_path, settings)

    us, eu = found["small-us"], found["small-eu"]
    assert us.performance.sequences_max == 4
    assert eu.performance.sequences_max == WITHOUT_END
    assert us.performance.fixed_s == pytest.approx(0.02)
    # Four, and what two a second do in none, a quarter, and half of two seconds, by criticality.
    assert us.held_max == (4, 5, 6, 0)

    head |= {"source": "b" * 16, "pool": "small-eu", "by": "page", "replica": "h:1"}
    for n in range(5):
        look = PoolState(sequence=1 + n, served=[level], running=3, queued=1, **head)
        fleet.fold(look, 2000)
    Saver(store).save(state, 4000)
    assert servers_of(tmp_path, settings)["small-eu"].performance.sequences_max == 3


def test_the_same_seed_gives_the_same_bits_and_every_request_is_counted(site):
    """
    Two runs alike to the last bit; another seed is another run.
    """
    one, same, other = run(site), run(site), run(site, seed=1)
    assert one.digest() == same.digest() != other.digest()
    found = summary(one, site, quality_known=True)
    assert sum(found[fate] for fate in ("finished", "refused", "lost", "unfinished")) == len(
        MINUTE.trace
    )
    assert sum(model["share"] for model in found["models"].values()) == pytest.approx(1.0)
    cost = found["cost"]
    assert cost["gpu_usd"] == pytest.approx(2 * 2.0 * one.end_s / 3600.0, rel=1e-3)
    per_1k = cost["usd_per_h"] / (3.6 * found["requests_per_s"])
    assert cost["usd_per_1k_requests"] == pytest.approx(per_1k, rel=1e-3)
    assert json.loads(json.dumps(found)) == found


def test_requests_that_never_finished_count_in_every_percentile():
    """
    Of ten requests two never finish: the median is known, the 90th percentile is not.
    """
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, np.nan, np.nan])
    assert percentiles(values, 10) == {"p50": 5.0, "p90": None, "p95": None, "p99": None}


EVENTS = """
[[events]]
at_s = 20
what = "region_lost"
region = "eu"
for_s = 20
[[events]]
at_s = 30
what = "price_changed"
gpu = "h100_sxm"
usd_per_hour = 4
[[events]]
at_s = 10
what = "model_drifted"
model = "llama-3.1-8b"
quality_times = 0.5
[[events]]
at_s = 0
what = "feedback_away"
for_s = 30
[[events]]
at_s = 30
what = "feedback_late"
for_s = 10
late_s = 20
[[events]]
at_s = 0
what = "telemetry_away"
for_s = 5
"""


def test_events_happen_at_their_times(site, tmp_path):
    """
    A region's replicas are gone for a while, a price doubles, a model answers half as well.
    """
    path = tmp_path / "events.toml"
    path.write_text(EVENTS)
    events = read_events(path, site)

    calm, struck = run(site), run(site, events)

    series = struck.replicas
    (eu,) = [column for column, name in enumerate(series.pools) if name == "small-eu"]
    at = {int(at_s): ready for at_s, ready in zip(series.at_s, series.ready[:, eu], strict=True)}
    assert (at[10], at[30]) == (1, 0)
    assert struck.gpu_cost_usd > calm.gpu_cost_usd
    assert struck.quality < calm.quality
    found = summary(struck, site, quality_known=True)
    drawn = found["series"]
    assert found["lost"] and drawn["in_flight"][-1] == found["unfinished"]
    billed = sum(drawn["usd_per_h"]) * drawn["step_s"] / 3600.0  # a step is the price at its end
    assert billed == pytest.approx(found["cost"]["usd"], rel=0.05)


def test_a_model_that_comes_later_is_not_there_before(site, tmp_path):
    """
    Its pool comes at its time, nobody asks it earlier, and routers begin without its outcomes.
    """
    path = tmp_path / "events.toml"
    path.write_text('[[events]]\nat_s = 30\nwhat = "model_added"\nmodel = "qwen3-32b"\n')
    events = read_events(path, site)

    found = run(site, events)

    series = found.replicas
    ready = series.ready[:, series.pools.index("qwen3-32b")]
    looked = (series.at_s > 0.0) & (series.at_s < 30.0)
    assert ready[looked].max() == 0 and ready[-1] == 1
    assert not (found.requests.model[found.traffic.at_s < 30.0] == 1).any()
    assert events.newcomers == ("qwen3-32b",)


@pytest.mark.parametrize("times", [5, 0])
def test_a_surge_multiplies_users_for_its_time(site, tmp_path, times):
    path = tmp_path / "events.toml"
    path.write_text(f'[[events]]\nat_s = 20\nwhat = "load"\ntimes = {times}\nfor_s = 20\n')
    events = read_events(path, site)
    found = surged(MINUTE.trace, events.surges, np.random.default_rng(0))
    before, after = (np.histogram(t.at_s, [0, 20, 40, 60])[0] for t in (MINUTE.trace, found))
    assert after.tolist() == [before[0], pytest.approx(times * before[1], rel=0.1), before[2]]


def test_a_trace_that_events_leave_nobody_of_is_refused(settings_path, tmp_path):
    """
    All of its answers were within no target, and of no quality.
    """
    path = tmp_path / "events.toml"
    path.write_text('[[events]]\nat_s = 0\nwhat = "load"\ntimes = 0\nfor_s = 99\n')
    options = ["--settings", str(settings_path), "--events", str(path), "--cold", "--to-s", "9"]
    done = CliRunner().invoke(app, ["simulate", "azure", *options])
    assert isinstance(done.exception, TraceRefused)
    assert "has no request left" in str(done.exception)


def test_what_two_events_have_lost_is_back_when_the_later_one_ends(site, tmp_path):
    """
    Also a model's pool that is lost before the model comes. Without an end nothing comes back.
    """
    lost = [(0, "region_lost", 'region = "eu"', 50), (10, "region_lost", 'region = "eu"', 5)]
    lost += [(60, "region_lost", 'region = "eu"', 5), (5, "pool_lost", 'pool = "qwen3-32b"', 10)]
    path = tmp_path / "events.toml"
    path.write_text(
        "\n".join(
            f'[[events]]\nat_s = {a}\nwhat = "{w}"\n{of}\nfor_s = {f}' for a, w, of, f in lost
        )
        + '\n[[events]]\nat_s = 30\nwhat = "model_added"\nmodel = "qwen3-32b"\n'
    )

    shocks = read_events(path, site).shocks

    back = [(s.at_s, s.what) for s in shocks if isinstance(s.what, RegionBack | PoolBack)]
    regions = [(at_s, RegionBack(region="eu")) for at_s in (50.0, 65.0)]
    assert back == [(30.0, PoolBack(pool="qwen3-32b")), *regions]


def test_a_shorter_event_within_a_longer_one_does_not_end_it():
    """
    What is sent meanwhile is lost to the end; of two delays the longer one holds.
    """
    mail, log = Mail(), MemoryLog(Storage(), lambda: 0)
    head = {"source": "a" * 16, "from_unix_ms": 1000, "to_unix_ms": 2000, "sequence": 0}
    record = PoolState(pool="small-eu", model="m", by="page", replica="h:1", **head)
    telemetry = VirtualTelemetry(log, np.random.default_rng(0))
    for until_s, late_s in ((50.0, 20.0), (30.0, 90.0), (20.0, 5.0)):
        mail.late(until_s=until_s, late_s=late_s)
        mail.away(until_s=until_s - 35.0)
        telemetry.silence(until_s=until_s)

    for at_s in (10.0, 29.0, 31.0, 49.0, 60.0):
        mail.send([(None, f"{at_s:g}".encode())], at_s)
        telemetry.send([record], at_s)

    when = {int(r): t for t in range(130) for _, r in mail.arrived(float(t))}
    assert when == {29: 119, 31: 51, 49: 69, 60: 60}
    assert log.end_offsets(TELEMETRY) == {0: 1}


REFUSED = [
    ('[[events]]\nat_s = 1\nwhat = "sunshine"', "event 1 is 'sunshine': known are pool_lost"),
    (
        '[[events]]\nat_s = 1\nwhat = "load"\ntimes = "5"\nfor_s = 1',
        "event 1 (load) has times = '5': a number from 0",
    ),
    ('[[events]]\nat_s = 1\nwhat = "pool_lost"', "lacks pool"),
    ('[[events]]\nat_s = 1\nwhat = "pool_lost"\npool = "x"', "names pool 'x': there are small-eu"),
    ('[[events]]\nat_s = -1\nwhat = "feedback_away"\nfor_s = 1', "at_s = -1: a number from 0 to"),
    ('[[events]]\nat_s = nan\nwhat = "feedback_away"\nfor_s = 1', "at_s = nan: a number from 0"),
    ('[[events]]\nat_s = 1\nwhat = ["load"]', "is ['load']: known are"),
    (
        '[[events]]\nat_s = 1\nwhat = "gpus_available"\ngpu = "l40s"\ngpus = 1.5',
        "gpus = 1.5: a whole number is due",
    ),
    ("events = [3]", "and nothing else"),
    ('[[events]]\nat_s = 1\nwhat = "load"\ntimes = 2\nfor_s = 1\nx = 1', "has x, which it does"),
    ("events = 3", "has to be a list of [[events]]"),
    ("[[events", "can't be read as TOML"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_an_event_that_cannot_happen_is_refused(site, tmp_path, text, said):
    path = tmp_path / "events.toml"
    path.write_text(text)
    with pytest.raises(EventRefused) as refused:
        read_events(path, site)
    assert said in str(refused.value)


def test_a_trace_is_joined_with_an_outcome_table(site):
    """
    `outcome_row` says which row a request asks about; a row that is not there is refused.
    """
    table = tables.bundled("llmrouter_dc")
    n = len(MINUTE.trace)
    joined = replace(MINUTE, outcome_rows=np.arange(n))
    catalogue = site.catalogue
    with pytest.raises(TableRefused, match=r"is missing for llama-3.1-8b, qwen3-32b"):
        questions_of(catalogue, TABLES / "llmrouter_dc.parquet", joined)
    questions = questions_of(catalogue, TABLES / "fleet_outcomes.parquet", joined)
    assert questions.said
    assert len(questions.asked) == 3000 < len(table)
    assert questions.known is not None and len(questions.known) == 3000 - n


def test_a_stretch_of_a_trace_asks_about_the_rows_that_it_says(tmp_path):
    """
    Who cuts a trace keeps what its requests are about; who has more users in it can't.
    """
    path = tmp_path / "trace.csv"
    rows = "".join(f"{second},5,6,{10 + second}\n" for second in range(8))
    path.write_text("arrival_s,input_tokens,output_tokens,outcome_row\n" + rows)
    cut = Stretch(rate=1.0, length=2.0, from_s=2.0, to_s=5.0, seed=0)

    whole, parts = trace_of(str(path), cut), list(parts_of(str(path), cut))

    assert whole.outcome_rows.tolist() == [12, 13, 14] == parts[0].outcome_rows.tolist()
    assert whole.trace.prompt_tokens.tolist() == [10, 10, 10]
    assert trace_of(str(path), replace(cut, rate=2.0)).outcome_rows is None


def test_a_table_of_texts_is_encoded(site, tmp_path):
    """
    Whoever has prompts and no embeddings gets those of the site's encoder; those that are there stay.
    What answers cost the site's prices say: a table need not.
    """
    n, names = 120, site.catalogue.names
    columns = {"prompt": [f"question {i}" for i in range(n)]}
    columns |= {f"quality:{name}": [0.5] * n for name in names}
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table(columns), path)

    def encode(texts):
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    asked = questions_of(site.catalogue, path, MINUTE, encode).asked
    assert sorted(set(asked.embeddings[:, 0].tolist())) == [10.0, 11.0, 12.0]
    with pytest.raises(TableRefused, match="`embedding`: is missing"):
        questions_of(site.catalogue, path, MINUTE)
    pq.write_table(pa.table(columns | {"embedding": [[3.0, 4.0]] * n}), path)
    assert (questions_of(site.catalogue, path, MINUTE, encode).asked.embeddings[:, 1] == 4.0).all()


def test_without_a_table_quality_is_not_known(settings_path, tmp_path):
    """
    Models nobody has outcomes of are simulated, but no quality is invented.
    """
    path = tmp_path / "fairlead.toml"
    path.write_text(settings_path.read_text().replace('"qwen3-32b"', '"our-own"'))
    done = CliRunner().invoke(
        app,
        ["simulate", "azure", "--settings", str(path), "--from-s", "10", "--to-s", "20", "--json"],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["quality"] is None
    assert found["models"]["our-own"]["quality"] is None


def test_a_folder_without_snapshots_is_refused(site, tmp_path):
    with pytest.raises(SnapshotMissing, match="has no snapshots"):
        means_of(tmp_path, site.catalogue, site.settings)


def test_prompts_of_a_trace_may_come_from_parquet(tmp_path, site):
    path = tmp_path / "mine.parquet"
    pq.write_table(
        pa.table({"arrival_s": [0.0, 1.0], "input_tokens": [10, 20], "output_tokens": [5, 6]}),
        path,
    )
    found = run(site, file=read_trace(str(path)))
    assert len(found.traffic) == 2


def test_an_event_after_the_last_request_is_told(site, tmp_path):
    """
    Nobody would see what it does: the time is likely a mistake.
    """
    path = tmp_path / "events.toml"
    one = '[[events]]\nwhat = "telemetry_away"\nfor_s = 1\nat_s = '
    path.write_text(f"{one}59\n{one}5000\n")

    said = read_events(path, site).late(60.0)

    assert said == ["event 2 (telemetry_away) is at 5,000 s, after the last request"]


def test_who_waits_hears_every_two_seconds_how_far_it_is():
    """
    Half a second each step: every fourth says something, and of a short simulation none.
    """
    said, clock = [], iter(np.arange(0.0, 100.0, 0.5))
    scaler = Watched(Fixed({}, 1), 100.0, said.append, lambda: next(clock))
    for at_s in np.arange(7.0, 7.0 + 110.0, 10.0):
        scaler.step(SimpleNamespace(at_s=at_s, routers=1))
    assert said == ["30 % simulated", "70 % simulated"]
