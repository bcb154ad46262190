"""What servers say of themselves is read, and what no server can mean does no harm."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from waiting import PATIENCE_S

from infra.errors import PageUnreadable
from infra.server_metrics.fetch import PAGE_BYTES_MAX, Page, Text
from infra.server_metrics.pages import KINDS, read_page
from infra.server_metrics.power import ExporterPower, NvmlPower, not_metered
from infra.server_metrics.server_meter import ServerMeter
from infra.server_metrics.since import since
from learners.servers.held import Stated
from load.bench.pools import pages as stand_ins
from streams.telemetry.histogram import LATENCY_MS
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.records import decode, encode
from streams.telemetry.window import Reporter

PAGES = Path(__file__).parents[1] / "data" / "metrics_pages"
LOOKED_MS = 1_790_000_000_000


def page(kind: str, **changed: tuple[str, str]) -> str:
    text = (PAGES / f"{kind}.txt").read_text()
    for old, new in changed.values():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "kind, running, waiting, kv_use, finished, prompts, outputs, cached",
    [
        ("vllm", 11, 3, 0.4375, 200, 120_000, 45_000, 30_000),
        ("sglang", 9, 2, 0.28, 160, 80_000, 25_000, 20_000),
        ("tgi", 16, 5, 0.0, 120, 30_000, 9_000, 0),
        ("llamacpp", 4, 1, 0.0, None, 5_700, 2_500, 700),
    ],
)
def test_the_page_of_each_kind_of_server_is_read(
    kind, running, waiting, kv_use, finished, prompts, outputs, cached
):
    """
    What was aborted was not answered, ranks of one engine count once, and what a kind does not
    count is not taken for nothing.
    """
    found = read_page(page(kind))

    assert (found.kind, found.running, found.waiting) == (kind, running, waiting)
    assert (found.kv_use, found.finished) == (kv_use, finished)
    assert (found.prompt_tokens, found.output_tokens, found.cached_tokens) == (
        prompts,
        outputs,
        cached,
    )


def test_pages_that_a_real_vllm_gave_are_read():
    """
    Recorded of vLLM 0.32 with four slots: twelve requests of 300 tokens at once, and when they were
    answered, after two of 100 tokens.
    """
    busy, after = read_page(page("vllm_0_32_busy")), read_page(page("vllm_0_32_after"))

    assert (busy.kind, busy.running, busy.waiting) == ("vllm", 4, 8)
    assert (after.running, after.waiting) == (0, 0)
    assert (busy.finished, after.finished) == (2, 14)
    assert after.output_tokens == 12 * 300 + 2 * 100
    assert (after.prompt_tokens, after.cached_tokens, after.preempted) == (3866, 512, 0)
    assert 0.0 < busy.kv_use < 0.01 and after.kv_use == 0.0
    assert (after.ttft[-1][1], after.tpot[-1][1]) == (14, 12 * 299 + 2 * 99)


@pytest.mark.parametrize("kind", [kind for kind, of in stand_ins.KINDS.items() if of])
def test_a_stand_in_has_the_page_of_the_server_that_it_stands_for(kind):
    doing = stand_ins.Doing(4, running=4, waiting=2)
    doing.note(0.3, prompt_tokens=10, output_tokens=8)

    found = read_page(stand_ins.KINDS[kind](doing))

    assert (found.kind, found.running, found.waiting) == (kind, 4, 2)
    assert (found.finished, found.output_tokens) == (None if kind == "llamacpp" else 1, 8)


@pytest.mark.parametrize(
    "text",
    ["", "<html>it works</html>", "vllm:num_requests_running{ 3", "\x00\xff" * 100,
     "vllm:num_requests_running NaN\n", "vllm:num_requests_running -3\n",
     "vllm:num_requests_running 1e12\n", "other_metric 3\n"],
    ids=["empty", "html", "torn", "bytes", "no number", "negative", "absurd", "another's"],
)  # fmt: skip
def test_what_is_no_page_of_a_server_is_unreadable(text):
    """
    It is known to be, so nothing of it becomes a figure.
    """
    with pytest.raises(PageUnreadable):
        read_page(text)


def test_two_looks_make_a_window():
    before = read_page(page("vllm"))
    later = read_page(
        page(
            "vllm",
            finished=('finished_reason="stop",model_name="Qwen/Qwen3-8B"} 180.0',
                      'finished_reason="stop",model_name="Qwen/Qwen3-8B"} 190.0'),
            tokens=('generation_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 45000.0',
                    'generation_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 47000.0'),
            first=('le="+Inf",engine="0",model_name="Qwen/Qwen3-8B"} 200.0',
                   'le="+Inf",engine="0",model_name="Qwen/Qwen3-8B"} 210.0'),
        )
    )  # fmt: skip

    new = since(before, later)

    assert (new.finished, new.output_tokens, new.prompt_tokens) == (10, 2000, 0)
    assert new.ttft_ms == {LATENCY_MS.index(5000.0): 10}  # beyond the last end that it has


@pytest.mark.parametrize("which", ["generation_tokens_total", "prompt_tokens_total"])
def test_counters_that_go_back_count_nothing_for_that_time(which):
    """
    The server was started again. What it has done since is small, and what it had done before is
    no burst.
    """
    before = read_page(page("vllm"))
    name = f'{which}{{engine="0",model_name="Qwen/Qwen3-8B"}}'
    value = "45000.0" if which.startswith("generation") else "120000.0"
    after = read_page(page("vllm", back=(f"vllm:{name} {value}", f"vllm:{name} 12.0")))

    new = since(before, after)

    assert new.finished is None
    assert (new.prompt_tokens, new.output_tokens, new.ttft_ms) == (0, 0, None)
    assert since(after, after).finished == 0  # and from then on it counts again


def test_every_kind_names_what_it_must():
    for kind in KINDS:
        assert kind.running and kind.waiting and kind.output_tokens, kind.name


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A page may take longer here: where others have the processors, a second is soon over."""
    monkeypatch.setattr("infra.server_metrics.fetch.FETCH_S_MAX", PATIENCE_S)


class Server:
    """Answers /metrics as a test says, and other paths as it says."""

    def __init__(self, answer, **others):
        self.answer, self.asked = answer, 0
        self.others, self.paths = {f"/{path}": of for path, of in others.items()}, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/metrics"
        return self

    async def __aexit__(self, *error):
        self.server.close()

    async def serve(self, reader, writer):
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.asked += 1
        self.paths.append(path)
        try:
            await self.others.get(path, self.answer)(writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def said(body: bytes, status: int = 200):
    async def answer(writer):
        writer.write(b"HTTP/1.1 %d -\r\nconnection: close\r\n\r\n" % status + body)

    return answer


async def silent(writer):
    await asyncio.sleep(30)


async def long(writer):
    writer.write(b"HTTP/1.1 200 -\r\nconnection: close\r\n\r\n")
    for _ in range(10):
        writer.write(b"vllm:num_requests_running 1\n" * 38_000)  # a megabyte
        await writer.drain()


def read(answer, monkeypatch=None):
    async def once():
        async with Server(answer) as server, aiohttp.ClientSession() as session:
            return await Page(session, server.url, lambda: 0.0).read()

    return asyncio.run(once())


def test_a_page_comes_within_its_time_and_size_or_not_at_all(monkeypatch):
    """
    10 MB are not read to their end, and a server that takes its time with it is not waited for.
    """
    with pytest.raises(PageUnreadable, match=f"longer than {PAGE_BYTES_MAX}"):
        read(long)
    monkeypatch.setattr("infra.server_metrics.fetch.FETCH_S_MAX", 0.05)
    with pytest.raises(PageUnreadable, match=r"within 0\.05 s"):
        read(silent)
    monkeypatch.setattr("infra.server_metrics.fetch.FETCH_S_MAX", PATIENCE_S)
    with pytest.raises(PageUnreadable, match="503"):
        read(said(b"busy", 503))
    assert read(said(page("sglang").encode())).kind == "sglang"


def read_often(server: Server, *pages: str) -> list[str]:
    """Versions, from one look to the next."""

    async def looks():
        async with server, aiohttp.ClientSession() as session:
            one, found = Page(session, server.url, lambda: 0.0), []
            for text in pages:
                server.answer = said(text.encode())
                found.append((await one.read()).version)
            return found

    return asyncio.run(looks())


def test_the_version_that_is_on_no_page_is_asked_for_when_a_server_was_started():
    """
    vLLM's page does not have it. It is asked for once, and again when counters begin anew.
    """
    busy, after, idle = (page(f"vllm_0_32_{which}") for which in ("busy", "after", "busy"))
    server = Server(None, version=said(b'{"version": "0.32.0"}'))

    assert read_often(server, busy, after, after, idle) == ["0.32.0"] * 4
    assert server.paths.count("/version") == 2


@pytest.mark.parametrize(
    "answer",
    [said(b"no", 404), said(b"{"), said(b"[1]"), said(b'{"version": 7}'), said(b"x" * 9999)],
)
def test_a_version_that_does_not_come_is_none(answer):
    """
    And the page counts all the same.
    """
    server = Server(None, version=answer)

    assert read_often(server, page("vllm_0_32_busy"), page("vllm_0_32_after")) == ["", ""]
    assert server.paths == ["/metrics", "/version", "/metrics"]


def test_a_page_that_is_not_there_is_asked_for_again_half_a_minute_later():
    async def three_times():
        at_s = [0.0]
        async with Server(said(b"", 404)) as server, aiohttp.ClientSession() as session:
            one = Page(session, server.url, lambda: at_s[0])
            for at_s[0] in (0.0, 1.0, 31.0):
                with pytest.raises(PageUnreadable):
                    await one.read()
            return server.asked

    assert asyncio.run(three_times()) == 2


NOTHING = Stated()


def records(*answers, runs=True, stated=NOTHING, power=lambda *of: not_metered, **others):
    """What a meter reports of a server that gives these answers, a second apart."""

    async def all_of_them():
        reporter, at_ms = Reporter("a" * 16, LOOKED_MS), [LOOKED_MS]
        server = Server(None, **others)
        async with server, aiohttp.ClientSession() as session:
            of_power = power(session, server)
            identity = ReplicaIdentity(pool="p", model="m", replica="host:1", gpu="l4")
            meter = ServerMeter(
                identity, stated, server.url, session, lambda: 0.0, runs=runs, power=of_power
            )
            found = []
            for server.answer in answers:
                at_ms[0] += 1000
                record = await meter.report(reporter, lambda: reporter.window(at_ms[0]), "ready")
                found.append(record)
            return found

    found = asyncio.run(all_of_them())
    for record in found:
        if record is not None:
            [(_, value)] = encode([record])
            decode(value)  # the trainer takes it
    return found


def test_a_meter_reports_what_the_page_says():
    power = Stated(idle_w=20.0, busy_w=70.0)
    first, second = records(said(page("vllm").encode()), said(page("vllm").encode()), stated=power)

    assert (first.by, first.running, first.queued, first.kv_use) == ("page", 11, 3, 0.4375)
    assert first.held == pytest.approx(14 * (1 - 2.718281828 ** (-0.2)), rel=1e-6)
    assert second.held > first.held
    assert (second.watts, second.joules, second.watts_from) == (70.0, 70.0, "figures")


def test_power_that_is_metered_beside_the_page_is_taken_as_metered():
    dcgm = 'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 61.5\nDCGM_FI_DEV_POWER_USAGE{gpu="1"} 40.5\n'
    [record] = records(said((page("tgi") + dcgm).encode()), stated=Stated(busy_w=70.0))

    assert (record.watts, record.watts_from) == (102.0, "measured")


DCGM = 'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 60\nDCGM_FI_DEV_POWER_USAGE{gpu="1"} 40\n'


@pytest.mark.parametrize(
    ("said_of_power", "expected"),
    [(DCGM, (100.0, "measured")), ("", (70.0, "figures")), ("{", (70.0, "figures"))],
)
def test_power_is_what_the_exporter_beside_a_server_says(said_of_power, expected):
    """
    Of as many GPUs as the server has, by the mean of those on the page; else by the GPU's figures.
    """

    def power(session, server):
        text = Text(session, server.url.replace("/metrics", "/dcgm"), lambda: 0.0)
        return ExporterPower(text, gpus=2)

    answer, others = said(page("tgi").encode()), {"dcgm": said(said_of_power.encode())}
    [record] = records(answer, stated=Stated(busy_w=70.0), power=power, **others)

    assert (record.watts, record.watts_from) == expected


class Nvml(SimpleNamespace):
    """NVIDIA's library, as far as it is asked: two GPUs, and one process on each."""

    NVMLError = OSError

    def __init__(self, *pids):
        super().__init__(pids=pids, nvmlInit=lambda: None)

    def nvmlDeviceGetCount(self):
        return len(self.pids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return [SimpleNamespace(pid=self.pids[device])]

    def nvmlDeviceGetPowerUsage(self, device):
        if self.pids[device] == 13:
            raise OSError("insufficient permissions")
        return 1000 * (100 + device)


@pytest.mark.parametrize(
    ("pids", "expected"),
    [
        ((7, 8), (201.0, "measured")),
        ((1, 8), (101.0, "measured")),
        ((1, 2), (70.0, "figures")),  # others' alone
        ((7, 13), (70.0, "figures")),
        (None, (70.0, "figures")),  # no driver
    ],
)
def test_power_is_what_nvml_says_of_the_gpus_that_the_servers_processes_run_on(
    pids, expected, monkeypatch
):
    """
    With a page or without one; nothing that the library does is felt by the server's records.
    """
    monkeypatch.setitem(sys.modules, "pynvml", None if pids is None else Nvml(*pids))

    def power(session, server):
        return NvmlPower(lambda pid: pid in (7, 8, 13))

    stated = Stated(busy_w=70.0)
    paged, alone = records(said(page("tgi").encode()), said(b"", 404), stated=stated, power=power)

    assert (paged.watts, paged.watts_from) == expected
    assert (alone.by, alone.watts) == ("callers", 0.0 if expected[1] == "figures" else expected[0])


def test_while_a_page_cannot_be_had_it_is_said_only_that_the_replica_is_there(monkeypatch):
    """
    Its callers say the rest. Of a server that runs elsewhere nothing is said at all. When the page
    is back, what happened meanwhile is counted.
    """
    good = said(page("vllm").encode())
    first, torn, back = records(good, said(b"vllm:num_requests_running{ 3"), good)

    assert (torn.by, torn.state, torn.held, torn.served) == ("callers", "ready", None, [])
    assert (first.by, back.by, back.running) == ("page", "page", 11)
    assert records(said(b"garbage"), runs=False) == [None]
