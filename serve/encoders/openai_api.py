"""A server that speaks OpenAI's embeddings API: vLLM, TEI, Ollama, a gateway, OpenAI itself.

    texts ─▶ POST {url}/embeddings {"model", "input"} ─▶ {"data": [{"index", "embedding"}, …]}

Nothing here retries, and no call outlasts a server's silence of `timeout_s`. Only
the caller knows how long its request may still wait and what it is worth without a vector.

Plain `http.client`: it follows no redirect, which would hand the key to another host, and reads no
proxy from the environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from serve.encoders.excerpt import excerpt
from serve.encoders.vectors import checked
from serve.errors import EncoderUnavailable

TEXTS_PER_CALL = 256  # OpenAI takes 2,048, but text-embeddings-inference refuses large batches
ANSWER_BYTES_PER_NUMBER = 64  # more than any server spends; an endless answer must not fill memory
COMPLAINT_CHARACTERS = 200  # of a server's error that go into ours
LOOK = "Check `url` and that the server runs there"


class OpenAiApi:
    """Texts to the vectors of `model` at a server."""

    blocking = True
    fingerprint = b""  # the weights are the server's; the model's name stands for them

    def __init__(
        self, *, url: str, model: str, api_key: str, timeout_s: float, projection: Projection
    ) -> None:
        self.dim = projection.dim
        # Without the host: moving the server does not change the vectors.
        self.name = f"openai:{model}-{self.dim}"
        self.projection = projection
        self._url = f"{url.rstrip('/')}/embeddings"
        self._model = model
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n texts. Raises EncoderUnavailable."""
        embeddings = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), TEXTS_PER_CALL):
            # OpenAI refuses an empty input; a space stands for it.
            call = [excerpt(text) or " " for text in texts[start : start + TEXTS_PER_CALL]]
            vectors = checked(self._vectors(call), len(call), self.dim, self.name)
            embeddings[start : start + len(call)] = vectors
        return embeddings

    def _vectors(self, texts: list[str]) -> list[Any]:
        answer = self._post(json.dumps({"model": self._model, "input": texts}).encode(), len(texts))
        try:
            rows = sorted(json.loads(answer)["data"], key=lambda row: row["index"])
            return [row["embedding"] for row in rows]
        except (ValueError, TypeError, LookupError) as error:
            problem = f"the answer of {self._url} is not an embeddings answer ({error!r})"
            raise EncoderUnavailable(self.name, problem, LOOK) from error

    def _post(self, body: bytes, n: int) -> bytes:
        bytes_max = (n * self.dim + 1024) * ANSWER_BYTES_PER_NUMBER
        try:
            with closing(self._connection()) as connection:
                connection.request("POST", urlsplit(self._url).path, body, self._headers)
                response = connection.getresponse()
                status, answer = response.status, response.read(bytes_max)
        except TimeoutError as error:
            problem = f"{self._url} was silent for {self._timeout_s} s"
            remedy = "Raise `timeout_s`, or check the server's load"
            raise EncoderUnavailable(self.name, problem, remedy) from error
        except (OSError, HTTPException) as error:
            raise EncoderUnavailable(
                self.name, f"{self._url} is not reachable ({error!r})", LOOK
            ) from error
        if status != 200:
            complaint = answer[:COMPLAINT_CHARACTERS].decode(errors="replace")
            raise EncoderUnavailable(
                self.name,
                f"{self._url} answered with status {status}: {complaint}",
                "Check the server's log, `model` and `api_key`",
            )
        return answer

    def _connection(self) -> HTTPConnection:
        url = urlsplit(self._url)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        return kind(url.netloc, timeout=self._timeout_s)
