"""Settings: each key is documented, bounded, refused when wrong, and reaches what it configures."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import stat
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, NamedTuple, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.errors import SettingsInvalid, SettingsUnreadable
from infra.pools.site import LocalSite
from infra.settings.settings import FileCatalogue, Settings, read_settings
from infra.settings.settings_docs import markdown
from learners.estimates.estimator import BlendOptions
from learners.estimates.learned import MemoryOptions
from learners.policies.policy import POLICIES
from serve.dispatch.judging.curve import fitted
from serve.routing.catalogue import Catalogue, Model, Pool
from streams.errors import OptionRefused
from streams.feedback.ticket import KEY_BYTES, Sealer

ROOT = Path(__file__).parents[2]
PAGE = markdown()
ONE_MODEL = '[[models]]\nname = "m"\n'
SECRET = "sk-do-not-show"


class Key(NamedTuple):
    """One key: where it is, and what is said of it."""

    section: str  # "" for the top of the file, with a dot for a section within a section
    name: str
    field: FieldInfo
    listed: bool  # in `[[models]]` or `[[pools]]`

    def __str__(self) -> str:
        return f"{self.section}.{self.name}".lstrip(".")

    @property
    def kind(self) -> object:
        """Its type, without None."""
        kind = self.field.annotation
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (k for k in get_args(kind) if k is not NoneType)
        return kind

    def limits(self, *kinds: type) -> list[float]:
        """The values of its bounds of these kinds."""
        names = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt", MinLen: "min_length", MaxLen: "max_length"}
        return [getattr(m, names[type(m)]) for m in self.field.metadata if isinstance(m, kinds)]


def keys() -> Iterator[Key]:
    """Every key there is."""
    yield from keys_in("", Settings, listed=False)


def keys_in(section: str, model: type[BaseModel], *, listed: bool) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        many = get_origin(field.annotation) is tuple
        inner = get_args(field.annotation)[0] if many else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_in(f"{section}.{name}".lstrip("."), inner, listed=many)
        else:
            yield Key(section, name, field, listed)


def within(settings: Settings, section: str) -> object:
    """A section, or the settings themselves."""
    return reduce(getattr, section.split("."), settings) if section else settings


KEYS = list(keys())
NUMBERS = [key for key in KEYS if key.kind in (int, float)]
every_key = pytest.mark.parametrize("key", KEYS, ids=str)
every_number = pytest.mark.parametrize("key", NUMBERS, ids=str)


@pytest.fixture(autouse=True)
def only_what_a_test_sets(monkeypatch):
    """No variable of whoever runs the tests."""
    for name in [name for name in os.environ if name.upper().startswith("FAIRLEAD__")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path) -> Callable[[str], Path]:
    """Write a settings file."""

    def write(text: str) -> Path:
        path = tmp_path / "fairlead.toml"
        path.write_text(text)
        return path

    return write


# What one of a list can't do without.
NEEDED = {
    "gpus": {"name": "l4", "usd_per_hour": 1.0},
    "models": {"name": "m"},
    "pools": {"name": "m", "model": "m"},
    "tokens": {"name": "t", "sha256": "0" * 64},
    "budgets": {"name": "b", "amount": 1.0, "value": "m"},
    "rules": {"name": "r"},
    "rates": {"tenant": "t", "requests_per_s": 1.0},
}


def toml(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def file_with(key: Key, value: object) -> str:
    """A settings file in which one key has a value, and what it can't do without."""
    line = f"{key.name} = {toml(value)}\n"
    if key.listed:
        needed = {name: f"{name} = {toml(of)}\n" for name, of in NEEDED[key.section].items()}
        needed.pop(key.name, None)
        first = ONE_MODEL if key.section in ("pools", "rules") else ""
        return f"{first}[[{key.section}]]\n{''.join(needed.values())}{line}"
    return line if not key.section else f"[{key.section}]\n{line}"


def refusal(path: Path) -> str:
    """What the error says of a file that is not valid."""
    with pytest.raises(SettingsInvalid) as refused:
        read_settings(path)
    assert refused.value.path == str(path)
    return str(refused.value)


# --- documentation ---------------------------------------------------------------------------------


def test_documentation_is_up_to_date():
    """
    docs/settings.md is what `fairlead settings` prints; after a change, run `make docs`.
    """
    assert (ROOT / "docs" / "settings.md").read_text() == markdown()


def test_command_prints_the_documentation():
    done = CliRunner().invoke(app, ["settings"])

    assert (done.exit_code, done.stdout) == (0, markdown())


@every_key
def test_key_has_its_row_with_meaning_default_and_bounds(key):
    """
    Nobody has to read the code to know what a key is for and how far it goes.
    """
    title = {"": "Top of the file"}.get(key.section, f"`[[{key.section}]]`")
    title = title if key.listed or not key.section else f"`[{key.section}]`"
    part = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    (row,) = [line for line in part.splitlines() if line.startswith(f"| `{key.name}` |")]

    assert key.field.description
    assert key.field.description[0].isupper() or ":" in key.field.description
    assert key.field.description.endswith(".")
    assert f"| {key.field.description} |" in row
    default, bounds = row.split(" | ")[2:4]
    bounds = re.sub("`.*`", "", bounds).replace("_", "")  # without what a name must look like
    shown = {float(number) for number in re.findall(r"[\d.]+", bounds)}
    assert shown == {float(limit) for limit in key.limits(Ge, Gt, Le, Lt, MinLen, MaxLen)}
    if key.kind in (int, float) and isinstance(key.field.default, int | float):
        assert float(default.strip("`")) == key.field.default
    if key.kind is str and isinstance(key.field.default, str):
        assert default == f'`"{key.field.default}"`'


def test_documentation_says_how_files_and_environment_combine():
    """
    The top of the page: what wins, what an unknown key does, what is read again.
    """
    top = " ".join(markdown().split("## Top")[0].split())

    for said in ("FAIRLEAD__LISTENER__PORT=9000", "win over the file", "Unknown keys are refused"):
        assert said in top
    assert "Models and pools are read again while the router runs" in top


def test_examples_in_the_documentation_work(monkeypatch):
    """
    The environment variables on the page do what it says.
    """
    found = re.findall(r"`(FAIRLEAD__\w+)=(.+?)`", markdown())
    assert len(found) == 2
    for name, value in found:
        monkeypatch.setenv(name, value.strip("'"))

    settings = read_settings(None)

    assert settings.listener.port == 9000
    assert [m.name for m in settings.models] == ["small"]


# --- bounds ----------------------------------------------------------------------------------------


@every_number
def test_number_is_bounded_on_both_sides(key):
    """
    A slip of the finger is refused at start, not found in production.
    """
    assert key.limits(Ge, Gt)
    assert key.limits(Le, Lt) or str(key) == "router.seed"  # any seed is as good as another


def beyond(key: Key) -> Iterator[tuple[float, float]]:
    """Values just outside its bounds, each with the bound it breaks."""
    for limit in key.limits(Ge, Le, Gt, Lt):
        below = bool(key.limits(Ge, Gt)) and limit == min(key.limits(Ge, Gt))
        if key.limits(Gt, Lt) and limit in key.limits(Gt, Lt):
            yield limit, limit
        elif key.kind is int:
            yield limit + (-1 if below else 1), limit
        else:
            yield math.nextafter(limit, -math.inf if below else math.inf), limit


@every_number
def test_number_just_beyond_a_bound_is_refused_with_key_value_and_limit(key, file):
    """
    For every bound of every key: the message names all three.
    """
    for value, limit in beyond(key):
        message = refusal(file(file_with(key, value)))

        assert re.search(rf"\b{key.section}\b.*\b{key.name} is ", message), message
        assert str(value) in message or f"{value:g}" in message or repr(float(value)) in message
        shown = f"{limit:.0f}" if float(limit).is_integer() else f"{limit:.12g}"
        assert re.search(rf"(greater|less) than( or equal to)? {shown}\b", message), message


@every_number
def test_number_right_at_a_bound_is_taken(key, file, monkeypatch):
    """
    The documented bound itself is within bounds, where it says ≥ or ≤.
    """
    for name in ("deployment", "dispatchers", "fleet", "catalogue"):  # other keys need not fit
        monkeypatch.setattr(Settings, name, lambda self: None)
    for limit in key.limits(Ge, Le):
        value = int(limit) if key.kind is int else float(limit)
        settings = read_settings(file(file_with(key, value)))

        holder = within(settings, key.section)
        assert getattr(holder[0] if key.listed else holder, key.name) == value


@pytest.mark.parametrize("key", [key for key in NUMBERS if key.kind is float], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_none_is_refused(key, value, file):
    """
    TOML can write nan and inf; nothing here can be either.
    """
    assert f"{key.name} is {value}" in refusal(file(file_with(key, value)))


@pytest.mark.parametrize("key", [key for key in KEYS if get_origin(key.kind) is Literal], ids=str)
def test_choice_that_is_none_is_refused_with_all_there_are(key, file):
    message = refusal(file(file_with(key, "none of these")))

    named = f"{key.section}.0.{key.name}" if key.listed else str(key)
    assert f"{named} is 'none of these'" in message
    for choice in get_args(key.kind):
        assert f"'{choice}'" in message


@pytest.mark.parametrize("key", [key for key in KEYS if key.limits(MinLen, MaxLen)], ids=str)
def test_text_of_a_wrong_length_is_refused(key, file):
    for limit in key.limits(MaxLen):
        assert f"at most {limit} char" in refusal(file(file_with(key, "x" * (limit + 1))))
    for limit in key.limits(MinLen):
        assert f"at least {limit} char" in refusal(file(file_with(key, "x" * (limit - 1))))


@every_key
def test_value_of_a_wrong_type_is_refused(key, file):
    """
    A list of a number and a list is no value of any key, and the message says which one has it.
    """
    message = refusal(file(file_with(key, [1, ["surprise"]])))

    assert re.search(rf"\b{key.name}(\.\d)? is ", message)


# --- files that are wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[routr]\nreplicas = 2", "routr is not a setting"),
        ("[router]\nreplcas = 2", "router.replcas is not a setting"),
        ("replicas = 2", "replicas is not a setting"),
        ("[router.listener]\nport = 1", "router.listener is not a setting"),
        (ONE_MODEL + "prize = 2", "models.0.prize is not a setting"),
        ("router = 2", "router is 2"),
        ("models = 3", "models is 3"),
        ('[models]\nname = "m"', "models is {'name': 'm'}"),
        ("[[models]]\nlatency_ms = 1", "models.0.name"),
        ("[router]\nreplicas = 2.5", "router.replicas is 2.5"),
        ('[router]\nreplicas = "many"', "router.replicas is 'many': it must be an integer"),
        ("[router]\nreplicas = true", "router.replicas is true: it must be an integer"),
        ("[learning]\npoll_s = true", "learning.poll_s is true: it must be a number"),
        ("[learning]\npoll_s = 2020-01-01", "learning.poll_s is 2020-01-01: it must be a number"),
        (f'[[models]]\nname = "{"n" * 10_000}"', "nnn …: "),
    ],
)
def test_misspelt_or_misplaced_key_is_refused(text, named, file):
    """
    It would otherwise be a default nobody chose.
    """
    assert named in refusal(file(text))


def test_all_problems_are_said_at_once(file):
    """
    Nobody likes to start a program five times.
    """
    message = refusal(file("x = 1\n[router]\nreplicas = 0\n[listener]\nport = 70000\nprot = 1"))

    for problem in ("x is not", "router.replicas is 0", "listener.port is 70000", "listener.prot"):
        assert problem in message


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"x = [", tomllib.TOMLDecodeError),
        (b"[router\n", tomllib.TOMLDecodeError),
        (b"a = 1\na = 2", tomllib.TOMLDecodeError),
        (b"# fine\n\xff\xfe", UnicodeDecodeError),
        (b"a = " + b"[" * 100_000, RecursionError),
    ],
)
def test_file_that_is_not_toml_is_unreadable(content, cause, tmp_path):
    """
    The error names the file, and passes on what the parser found.
    """
    path = tmp_path / "fairlead.toml"
    path.write_bytes(content)

    with pytest.raises(SettingsUnreadable) as refused:
        read_settings(path)

    assert type(refused.value.__cause__) is cause
    assert str(path) in str(refused.value)
    says = "too deep" if cause is RecursionError else str(refused.value.__cause__)
    assert says in str(refused.value)
    assert cause is not UnicodeDecodeError or "line 2 is not UTF-8" in str(refused.value)


def test_mark_that_windows_puts_before_a_file_is_skipped(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE_MODEL.encode())

    assert [model.name for model in read_settings(path).catalogue().models] == ["m"]


@pytest.mark.parametrize("text", ['state_dir = "a\\u0000b"', '[[models]]\nname = "\\u001b[31mred"'])
def test_text_that_nobody_could_read_is_refused(text, file):
    """
    It would be a path that there can't be, and colours on the terminals of operators.
    """
    with pytest.raises(SettingsUnreadable, match=r"(state_dir|models\.0\.name) has the control"):
        read_settings(file(text))


@pytest.mark.parametrize(("name", "why"), [("missing.toml", "no such file"), (".", "is a folder")])
def test_file_that_is_not_there_is_unreadable(name, why, tmp_path):
    with pytest.raises(SettingsUnreadable, match=why):
        read_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[encoder]\nkind = 'openai'", "encoder.dim is 0, but must be the length"),
        ("[encoder]\nkind = 'openai'\ndim = 8\nmodel = 'm'", "encoder.url is ''"),
        ("[encoder]\ndim = 8", "encoder.dim is 8, but must be 256 for wordllama"),
        ("[router]\npolicy = 'epsilon-greedy'\npolicy_strength = 1.5", "router.policy_strength is 1.5"),
        ("[listener]\ntls_key = 'key.pem'", "listener.tls_certificate and tls_key"),
        ("[learning]\ntrainers = 2", "learning.trainers is 2"),
        ("[log]\nkind = 'kafka'\n[learning]\ntrainers = 5", "at most the feedback's 4 partitions"),
        ("[log]\nkind = 'kafka'\n[log.security]\npassword = 'x'", "security is 'password'"),
        ("[dispatch]\nreplicas = 1\nport = 7480", "dispatch.http_port is (7480, 7480, 7491)"),
        ("[dispatch]\nreplicas = 1\nhttp_port = 7490", "must be different ones"),
        ("[dispatch]\napi_keys = ['']", "dispatch.api_keys is '(hidden)'"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_together_are_refused_when_read(text, says, file):
    """
    `fairlead settings --check` calls no file valid that `fairlead up` would not start with.
    """
    assert says in refusal(file(text))


def test_certificate_that_is_not_there_is_unreadable(file):
    with pytest.raises(SettingsUnreadable, match=r"nowhere\.pem"):
        read_settings(file("[listener]\ntls_certificate = 'nowhere.pem'\ntls_key = 'nowhere.pem'"))


# --- the environment -------------------------------------------------------------------------------


def test_environment_wins_key_by_key(file, monkeypatch):
    """
    A variable replaces its key and leaves the others of its section as the file has them.
    """
    path = file("state_dir = 'a'\n[router]\nreplicas = 5\nbatch_max = 7\n" + ONE_MODEL)
    monkeypatch.setenv("FAIRLEAD__ROUTER__REPLICAS", "6")
    monkeypatch.setenv("FAIRLEAD__STATE_DIR", "b")
    monkeypatch.setenv("fairlead__listener__port", "9000")
    monkeypatch.setenv("FAIRLEAD__LOG__SECURITY__SSL_CAFILE", "ca.pem")

    settings = read_settings(path)

    assert (settings.router.replicas, settings.router.batch_max) == (6, 7)
    assert (settings.state_dir, settings.listener.port) == (Path("b"), 9000)
    assert settings.log.security == {"ssl_cafile": "ca.pem"}
    assert [m.name for m in settings.models] == ["m"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FAIRLEAD__ROUTR__REPLICAS", "3", "FAIRLEAD__ROUTR__REPLICAS is set, but names no setting"),
        ("FAIRLEAD__PORT", "3", "FAIRLEAD__PORT is set, but names no setting"),
        ("FAIRLEAD__ROUTER__REPLICSA", "3", "router.replicsa is not a setting"),
        ("FAIRLEAD__ROUTER__REPLICAS", "three", "router.replicas is 'three'"),
        ("FAIRLEAD__ROUTER__REPLICAS", "0", "router.replicas is '0'"),
        ("FAIRLEAD__ROUTER", "5", "router is 5"),
        ("FAIRLEAD__MODELS", "not json", "models"),
        ("FAIRLEAD__PROMPT_TOKENS", "nan", "prompt_tokens is 'nan'"),
    ],
)  # fmt: skip
def test_variable_that_is_wrong_is_refused_like_a_key(name, value, says, monkeypatch):
    """
    A misspelt variable would be ignored as quietly as a misspelt key.
    """
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsInvalid) as refused:
        read_settings(None)

    assert says in str(refused.value)
    assert "environment" in str(refused.value)


# --- secrets ---------------------------------------------------------------------------------------

OPENAI = "[encoder]\nkind = 'openai'\ndim = 8\nmodel = 'm'\nurl = 'http://localhost/v1'\n"
KAFKA = "[log]\nkind = 'kafka'\n[log.security]\nsasl_plain_password = "


def test_secrets_are_in_no_representation(file, tmp_path):
    """
    What is logged or shown in a trace has no API key, no password of Kafka's, no key of TLS.
    """
    (tmp_path / "key.pem").write_text(SECRET)
    text = (
        f"state_dir = '{tmp_path}'\n{OPENAI}api_key = '{SECRET}'\n{KAFKA}'{SECRET}'\n"
        f"[listener]\ntls_certificate = '{tmp_path}/key.pem'\ntls_key = '{tmp_path}/key.pem'\n"
        f"[dispatch]\nreplicas = 1\napi_keys = ['{SECRET}']\n{ONE_MODEL}"
        f"[[pools]]\nname = 'p'\nmodel = 'm'\nbackend = 'openai'\nurls = ['http://h/v1']\n"
        f"api_key = '{SECRET}'\n"
    )
    settings = read_settings(file(text))
    site = LocalSite.of(settings, tmp_path / "fairlead.toml")

    assert settings.encoder.api_key == SECRET
    assert settings.deployment().encoder.api_key == SECRET
    assert settings.deployment().replica.listener.tls_key == SECRET.encode()
    assert site.kafka.security["sasl_plain_password"] == SECRET
    assert settings.dispatchers().replica.http.api_keys == (SECRET,)
    assert site.fleet.pools[0].server.api_key == SECRET
    parts = (settings.encoder, settings.deployment(), settings.kafka(), settings.dispatchers())
    for shown in (settings, *parts, settings.fleet(), *settings.pools, site):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)


@pytest.mark.parametrize(
    "text",
    [
        f"[encoder]\napi_keey = '{SECRET}'",
        f"[encoder]\napi_key = ['{SECRET}']",
        f"{OPENAI}api_key = '''{SECRET}\n'''",
        f"{KAFKA}['{SECRET}']",
        f"{KAFKA}{{ a = '{SECRET}' }}",
        f"[log]\nsecurity = '{SECRET}'",
        f"[log]\nsecurty = '{SECRET}'",
        f"[dispatch]\napi_keys = '{SECRET}'",
        f"[dispatch]\napi_keys = [['{SECRET}']]",
        f"[dispatch]\napi_keys = ['{SECRET}', '']",
        f"[dispatch]\napi_key = ['{SECRET}']",
        f"[[dispatch]]\napi_keys = ['{SECRET}']",
        f"[[encoder]]\napi_key = '{SECRET}'",
        f"[pools]\napi_key = '{SECRET}'",
        f"[[pools]]\napi_key = ['{SECRET}']",
        f"[[pools]]\napi_key = '{SECRET}'",  # its name is missing, and what is there is not shown
        f"[[pools]]\nname = 'p'\nmodel = 'm'\napi_keey = '{SECRET}'",
        f"{ONE_MODEL}{{pool}}urls = ['http://h/v1']\napi_key = '''{SECRET}\n'''",
        f"{ONE_MODEL}{{pool}}urls = ['http://me:{SECRET}@h/v1']",
    ],
)
def test_secrets_are_in_no_error(text, file):
    """
    Not when misspelt, of a wrong type, or with the line break of the file it came from.
    """
    text = text.replace("{pool}", "[[pools]]\nname = 'p'\nmodel = 'm'\nbackend = 'openai'\n")
    with pytest.raises(SettingsInvalid) as refused:
        read_settings(file(text))

    assert SECRET not in "".join(traceback.format_exception(refused.value))


# --- every key reaches what it configures ----------------------------------------------------------

# Under these settings every key has an effect.
BASE = """
state_dir = "{folder}/state"
[router]
policy_strength = 2.0
[listener]
tls_certificate = "{folder}/a.pem"
tls_key = "{folder}/a.pem"
[encoder]
kind = "openai"
dim = 8
model = "m"
url = "http://localhost/v1"
[learning]
trainers = 2
[log]
kind = "kafka"
[dispatch]
replicas = 1
[[gpus]]
name = "h100_sxm"
usd_per_hour = 2.0
[[gpus]]
name = "h200_sxm"
usd_per_hour = 3.0
[[models]]
name = "m"
parameters_1e9 = 32.0
active_parameters_1e9 = 16.0
kv_values_per_token = 100000
[[rates]]
tenant = "t"
requests_per_s = 2.0
burst = 5.0

[[budgets]]
name = "b"
scope = "tenant"
value = "m"
amount = 10.0
[[rules]]
name = "r"
[[tokens]]
name = "t"
sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[[pools]]
name = "p"
model = "m"
backend = "emulated"
gpu = "h100_sxm"
[[pools]]
name = "q"
model = "m"
backend = "openai"
urls = ["http://localhost/v1"]
"""
# Keys that only a server has which is called or started, not an emulated one.
OF_SERVERS = {
    "pools.urls", "pools.command", "pools.upstream_model", "pools.api_key", "pools.extra",
    "pools.priority", "pools.stream", "pools.requests_per_s", "pools.tokens_per_s",
    "pools.concurrency_max", "pools.drain_s", "pools.power_url",
}  # fmt: skip
BESIDE = {  # what has to be there for a key to have an effect
    "pools.load_s": {"residency": "cold"},
    "pools.command": {"urls": []},
}
OTHER = {  # where another value is not found by moving away from the default
    "snapshots": "{folder}/elsewhere",
    "state_dir": "{folder}/other",
    "listener.tls_certificate": "{folder}/b.pem",
    "listener.tls_key": "{folder}/b.pem",
    "listener.tls_client_ca": "{folder}/b.pem",
    "learning.landmarks": "{folder}/b.pem",
    "judge.calibration": "{folder}/judge.json",
    "arms.file": "{folder}/arms.jsonl",
    "change.policy": "{folder}/new.toml",
    "encoder.kind": "embeddings-only",
    "encoder.url": "http://elsewhere/v1",
    "encoder.dim": 9,
    "learning.trainers": 3,
    "log.kind": "sqlite",
    "log.security": {"ssl_cafile": "ca.pem"},
    "pools.model": "other",
    "models.name": "other",
    "models.cache_write_factor": 1.25,
    "models.shape": "Qwen3-32B",
    "models.precision": "bf16",
    "models.context_tokens_max": 1000.0,
    "gpus.name": "b200_sxm",
    "gpus.memory_gib": 70.0,
    "gpus.bandwidth_tb_per_s": 3.0,
    "gpus.bf16_tflops": 900.0,
    "gpus.fp8_tflops": 1900.0,
    "gpus.power_w": 500.0,
    "dispatch.port": 7500,
    "dispatch.http_port": 7501,
    "dispatch.api_keys": [SECRET],
    "pools.backend": "none",
    "pools.gpu": "h200_sxm",
    "pools.replicas_min": 1,
    "pools.urls": ["http://elsewhere/v1"],
    "pools.command": ["serve"],
    "pools.power_url": "http://elsewhere:9400/metrics",
    "pools.extra": {"top_k": 5, "nested": {"a": [1]}},
    "models.supports": ["tools", "text"],
    "budgets.scope": "model",
    "tokens.sha256": "b" * 64,
    "rules.when": {"task": "x"},
    **{f"rules.{key}": ["m"] for key in ("allow", "deny", "prefer", "allow_groups", "deny_groups")},
    "rules.pin": "m",
    "guard.model": "m",
    "judge.model": "m",
    "fuse.model": "m",
    "dispatch.escalate_to": "m",
    "rules.floor": "m",
    "rules.preference": {"quality": 2.0},
    "rules.extra": {"cache_salt": "none"},
    "tokens.scopes": ["admin"],
}
# Read where they are used, which a look at the sources confirms.
# By commands or the site, as fields of `SiteOptions`.
READ_ELSEWHERE = {
    "metrics.port": ".metrics_port",
    "metrics.host": ".metrics_host",
    "dashboard.baseline": "(SiteOptions).baseline",
    "feedback.silence_s": ".silence_s",
    "ray_address": ".ray_address",
}


def other(key: Key, now: object) -> object:
    """Another valid value."""
    if str(key) in OTHER:
        return OTHER[str(key)]
    if key.kind is bool:
        return not now
    if get_origin(key.kind) is Literal:
        return next(choice for choice in get_args(key.kind) if choice != now)
    if key.kind in (int, float):
        middle = {None: 1, 0: 0.5}.get(now, now / 2 if isinstance(now, float) else None)
        value = key.kind(middle if middle is not None else now + 1)
        return value + 1 if value == now else value
    return f"{now}x"


def effects(settings: Settings, path: Path) -> object:
    """Everything that settings are turned into."""
    catalogue = settings.catalogue()
    site = LocalSite.of(settings, path)
    fleet, dispatchers = settings.fleet(), settings.dispatchers()
    assert site.fleet == fleet
    return (settings.deployment(), catalogue, site, fleet, dispatchers, settings.scaling())


@every_key
def test_key_reaches_what_it_configures(key, tmp_path):
    """
    Change it, and what is handed to the parts changes. So a key that is read and then forgotten
    fails here.
    """
    if str(key) in READ_ELSEWHERE:
        places = [ROOT / "fairlead", ROOT / "infra" / "dashboard", ROOT / "infra" / "pools"]
        uses = [p.read_text() for place in places for p in place.rglob("*.py")]
        assert any(READ_ELSEWHERE[str(key)] in text for text in uses)
        return
    path = tmp_path / "fairlead.toml"
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text(f"PEM {name}")
    (tmp_path / "judge.json").write_bytes(fitted([8] * 9, [0.4] * 9).to_bytes())
    (tmp_path / "new.toml").write_text('[router]\npolicy = "greedy"\n')
    (tmp_path / "arms.jsonl").write_text('{"id": "weather", "text": "forecast of rain"}\n')
    document = tomllib.loads(BASE.format(folder=tmp_path))
    if str(key) == "log.kind":
        document["learning"]["trainers"] = 1  # more need partitions
    path.touch()
    at = 1 if str(key) in OF_SERVERS else 0
    section = document
    for name in filter(None, key.section.split(".")):
        section = section.setdefault(name, {})
    if key.section.startswith("policies."):  # of the policy that is taken, and no short form of it
        document["router"] = {"policy": name.replace("_", "-")}
    holder = section[at] if key.listed else section
    holder |= BESIDE.get(str(key), {})
    if str(key) == "models.draining":
        document["models"].append({"name": "other"})  # which answers instead
    if str(key) == "pools.command":  # where there were URLs
        before = effects(Settings(**tomllib.loads(BASE.format(folder=tmp_path))), path)
    else:
        before = effects(Settings(**document), path)
    now = holder.get(key.name, key.field.default)

    value = other(key, now)
    value = value.format(folder=tmp_path) if isinstance(value, str) else value
    holder[key.name] = value
    if str(key) in ("pools.model", "models.name"):
        document["models"].append(
            document["models"][0] | {"name": "other" if key.section == "pools" else "m"}
        )
    if str(key) == "gpus.name":
        document["gpus"].append({"name": "h100_sxm", "usd_per_hour": 2.0})

    assert value != now
    assert effects(Settings(**document), path) != before


def test_memory_keys_are_those_the_documentation_names():
    """
    Changing what a snapshot was learned with means starting anew, so the page says which keys do.
    """
    said = Settings.model_fields["learning"].annotation.__doc__
    plain = Settings().deployment().replica.memory.described()
    learning = [key for key in KEYS if key.section == "learning" and key.kind in (int, float)]
    changed = {
        key.name
        for key in learning
        if key.name != "trainers"
        and Settings(learning={key.name: other(key, key.field.default)})
        .deployment()
        .replica.memory.described()
        != plain
    }

    assert changed == {"model_half_life_s", "pool_half_life_s", "history_rows_max", "neighbours"}
    assert all(name in said for name in ("half-lives", "`history_rows_max`", "`neighbours`"))


def test_trainer_and_replica_share_their_memory_and_feedback_options():
    """
    A replica that believed other feedback, or faded otherwise, would refuse the trainer's work.
    """
    options = Settings(
        learning={"model_half_life_s": 100.0}, feedback={"age_s_max": 100.0}
    ).deployment()

    assert options.trainer.memory == options.replica.memory
    assert options.trainer.feedback == options.replica.feedback
    assert options.encoder == options.replica.encoder


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        ("greedy", {}),
        ("epsilon-greedy", {"epsilon": 0.5}),
        ("linucb", {"alpha": 0.5}),
        ("thompson", {"scale": 0.5}),
        ("squarecb", {"gamma": 0.5}),
    ],
)
def test_policy_is_made_with_its_strength(policy, first):
    """
    0 is the policy's own default; anything else is its one number.
    """
    router = {"policy": policy}

    assert Settings(router=router).deployment().replica.policy == POLICIES[policy]()
    half = Settings(router=router | {"policy_strength": 0.5})
    assert half.deployment().replica.policy == POLICIES[policy](**first)


# --- the catalogue ---------------------------------------------------------------------------------

POOL = "[[pools]]\nname = '{}'\nmodel = '{}'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ONE_MODEL * 2, "models.name is 'm', but must be unique"),
        (ONE_MODEL + POOL.format("p", "m") * 2, "pools.name is 'p', but must be unique"),
        (ONE_MODEL + POOL.format("p", "x"), "pools.p.model is 'x', but must be one of m"),
        (
            ONE_MODEL + "[[models]]\nname = 'other'\n" + POOL.format("m", "other"),
            "pools.name is 'm', but must be unique",  # the pool that "m" gets by itself
        ),
        ("".join(f"[[models]]\nname = 'm{i}'\n" for i in range(256)), "256 models"),
    ],
)
def test_catalogue_that_does_not_add_up_is_refused(text, says, file):
    assert says in refusal(file(text))


def test_catalogue_by_itself_makes_up_no_pool():
    """
    Where models and pools come from elsewhere, a model that nothing serves is a mistake.
    """
    with pytest.raises(OptionRefused, match="pools of model m is 'none'"):
        Catalogue([Model(name="m")], [])
    with pytest.raises(OptionRefused, match="at least one model"):
        Catalogue([], [])


def test_model_without_a_pool_gets_one_of_its_own_name(file):
    text = ONE_MODEL + "[[models]]\nname = 'n'\nquality = 0.5\n" + POOL.format("p", "n")

    catalogue = read_settings(file(text)).catalogue()

    assert catalogue.pools == (Pool(name="p", model="n"), Pool(name="m", model="m"))
    assert [math.isnan(model.quality) for model in catalogue.models] == [True, False]


def test_models_reach_the_catalogue_with_every_figure(file):
    text = "prompt_tokens = 40\n" + ONE_MODEL + "usd_per_call = 0.5\nquality = 0.9\n"

    catalogue = read_settings(file(text)).catalogue()

    model = Model(name="m", usd_per_call=0.5, quality=0.9, context_tokens_max=1e9)
    assert catalogue.models == (model,)
    assert catalogue.prompt_tokens == 40


def test_router_without_models_is_refused_but_other_uses_are_not(file):
    """
    `fairlead settings` needs none; a running router can't do without.
    """
    path = file("")

    assert read_settings(path).models == ()
    with pytest.raises(SettingsInvalid, match="at least one model"):
        FileCatalogue(path, path.with_name("edits.jsonl")).read()


def test_catalogue_is_read_again_when_the_file_changes_and_only_then(file):
    path = file(ONE_MODEL)
    source = FileCatalogue(path, path.with_name("edits.jsonl"))
    first = source.read()
    assert source.read() is first

    file(ONE_MODEL + "[[models]]\nname = 'new'\n")

    assert source.read().names == ("m", "new")


def test_change_that_keeps_the_length_is_seen_too(file):
    """
    0.1 to 0.2 is as long as before.
    """
    path = file(ONE_MODEL + "quality = 0.1\n")
    source = FileCatalogue(path, path.with_name("edits.jsonl"))
    source.read()
    later = path.stat().st_mtime_ns + 1
    file(ONE_MODEL + "quality = 0.2\n")
    os.utime(path, ns=(later, later))

    assert source.read().models[0].quality == 0.2


def test_broken_file_raises_at_every_look_until_it_is_mended(file):
    """
    Whoever looks decides what to do meanwhile; nothing half-read is ever handed out.
    """
    path = file(ONE_MODEL)
    source = FileCatalogue(path, path.with_name("edits.jsonl"))
    source.read()
    for broken in ("[[models]", "", ONE_MODEL + "[router]\nreplicas = 0", ONE_MODEL * 2):
        file(broken)
        for _ in range(2):
            with pytest.raises((SettingsInvalid, SettingsUnreadable)):
                source.read()
    path.unlink()
    with pytest.raises(SettingsUnreadable):
        source.read()

    file(ONE_MODEL)

    assert source.read().names == ("m",)


def test_example_is_valid_and_complete(tmp_path):
    """
    What `fairlead up` starts with where nothing is set: models, pools, and all options.
    """
    settings = read_settings(ROOT / "infra" / "example.toml")

    assert len(settings.catalogue()) == 4
    assert settings.deployment().replicas == 2
    done = CliRunner().invoke(app, ["settings", "--check", str(ROOT / "infra" / "example.toml")])
    assert done.exit_code == 0
    assert "is valid" in done.stdout


def test_example_of_a_fleet_is_valid_and_says_which_speeds_are_derived():
    """
    Measurements are only of some GPUs; what was derived for the others is marked.
    """
    path = ROOT / "infra" / "example-fleet.toml"
    settings = read_settings(path)
    fleet = settings.fleet()

    done = CliRunner().invoke(app, ["settings", "--check", str(path)])
    assert done.exit_code == 0
    assert settings.dispatchers().replicas > 0
    assert {gpu.name for gpu in fleet.gpus} == {
        "l4", "l40s", "a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm"
    }  # fmt: skip
    assert {plan.gpu.name for plan in fleet.pools} == {gpu.name for gpu in fleet.gpus}
    assert len({plan.model for plan in fleet.pools}) == 4
    unmeasured = {"l4", "l40s", "a100_sxm"}
    assert {p.name for p in fleet.pools if p.gpu.name in unmeasured} <= {
        p.name for p in fleet.pools if p.derived
    }
    assert not all(plan.derived for plan in fleet.pools)
    assert any(plan.load_s for plan in fleet.pools)


# --- the site --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_trainer_indexes_what_routers_search_and_no_snapshot_depends_on_it(file, share):
    """
    Both follow one setting, which can be changed without starting anew.
    """
    stated = read_settings(file(f"[learning]\nneighbours_share = {share}\n" + ONE_MODEL))
    memory = stated.options(MemoryOptions)

    assert memory.history.neighbours_share == stated.options(BlendOptions).neighbours_share == share
    assert memory.described() == read_settings(file(ONE_MODEL)).options(MemoryOptions).described()


@pytest.fixture
def site(file, tmp_path) -> LocalSite:
    path = file(f"state_dir = '{tmp_path}/state'\n" + ONE_MODEL)
    return LocalSite.of(read_settings(path), path)


def test_ticket_key_is_its_owners_alone(site, tmp_path):
    """
    Mode 0600, whatever the umask; nothing else is left in the folder.
    """
    key = site.state_dir / "ticket.keys"

    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = os.umask(0)
    try:
        again = LocalSite.of(Settings(state_dir=tmp_path / "open"), tmp_path / "x.toml")
    finally:
        os.umask(before)
    assert stat.S_IMODE((again.state_dir / "ticket.keys").stat().st_mode) == 0o600
    assert [p.name for p in again.state_dir.iterdir()] == ["ticket.keys"]


def test_ticket_key_is_made_once(site, tmp_path):
    """
    Restarting keeps it, so that tickets of yesterday open; another site has another one.
    """
    (key,) = site.ticket_keys()
    again = LocalSite.of(Settings(state_dir=site.state_dir), site.settings)
    elsewhere = LocalSite.of(Settings(state_dir=tmp_path / "elsewhere"), site.settings)

    assert len(key) == KEY_BYTES
    assert again.ticket_keys() == [key]
    assert elsewhere.ticket_keys() != [key]


def test_sites_opened_at_once_agree_on_the_key(tmp_path):
    """
    Whoever comes first makes it, and nobody sees half of it.
    """
    settings, together = Settings(state_dir=tmp_path / "state"), threading.Barrier(8)
    found: list[list[bytes]] = []

    def open_it() -> None:
        together.wait()
        found.append(LocalSite.of(settings, tmp_path / "x.toml").ticket_keys())

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len({tuple(keys) for keys in found}) == 1
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["ticket.keys"]


def test_keys_are_read_newest_first(site):
    """
    A key written in front seals from then on; those behind it still open.
    """
    path = site.state_dir / "ticket.keys"
    (old,) = site.ticket_keys()
    new = bytes(range(32))
    path.write_text(new.hex() + "\n" + path.read_text())

    assert site.ticket_keys() == [new, old]
    Sealer(site.ticket_keys())


@pytest.mark.parametrize("content", ["", "\n", "zz" * 32, "ab" * 31, "ab" * 32 + "\nab", "\x00"])
def test_key_file_that_is_not_valid_is_said_without_showing_it(site, content):
    """
    Emptied or cut short by hand, it stops the start with what it should have looked like.
    """
    (site.state_dir / "ticket.keys").write_text(content)

    with pytest.raises(SettingsInvalid, match="64 hexadecimal digits") as refused:
        site.ticket_keys()

    assert "ticket.keys" in str(refused.value)
    assert not content.strip("\n\x00") or content.split()[0] not in str(refused.value)


def test_key_file_that_is_gone_is_unreadable(site):
    (site.state_dir / "ticket.keys").unlink()

    with pytest.raises(SettingsUnreadable, match=r"ticket\.keys"):
        site.ticket_keys()


def test_site_is_the_same_from_any_folder(tmp_path, monkeypatch):
    """
    It travels to processes with other working folders, so its paths are absolute.
    """
    monkeypatch.chdir(tmp_path)
    Path("fairlead.toml").write_text(ONE_MODEL)
    settings = Settings(state_dir="state", snapshots="shared/snapshots")
    site = LocalSite.of(settings, Path("fairlead.toml"))
    keys = site.ticket_keys()
    site.log().append("topic", [(None, b"here")])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")

    travelled = pickle.loads(pickle.dumps(site))

    assert travelled.ticket_keys() == keys
    assert travelled.log().end_offsets("topic") == {0: 1}
    assert travelled.catalogue().read().names == ("m",)
    assert travelled.snapshots == str(tmp_path / "shared" / "snapshots")
    assert travelled.store().versions() == []
    assert [p.name for p in Path().iterdir()] == []


def test_snapshots_go_where_the_settings_say(tmp_path):
    """
    By default into the state folder; a URI is left as it is.
    """
    plain = LocalSite.of(Settings(state_dir=tmp_path / "a"), tmp_path / "x")
    uri = Settings(state_dir=tmp_path / "b", snapshots="s3://bucket/prefix")

    assert plain.snapshots == str(tmp_path / "a" / "snapshots")
    assert LocalSite.of(uri, tmp_path / "x").snapshots == "s3://bucket/prefix"


def test_neither_key_nor_secret_is_in_a_sites_representation(site):
    (key,) = site.ticket_keys()

    assert key.hex() not in repr(site)
