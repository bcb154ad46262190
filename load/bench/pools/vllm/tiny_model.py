"""Make a Llama of random weights that any CPU can run: `python tiny_model.py FOLDER`.

Run by the Python that vLLM is installed for. Only the configuration and a tokenizer by bytes are
written; `--load-format dummy` makes the weights. Its words are noise, all else of vLLM is real.

A token is a character that can be seen, or the end of a line: ASCII alone. Of noise among all bytes
half is no text, which an engine holds back until it is, often to the end of the answer: its first
token would then come when its last one does.
"""

from __future__ import annotations

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (  # type: ignore[import-not-found]  # in vLLM's environment
    LlamaConfig,
    PreTrainedTokenizerFast,
)

# As the pre-tokenizer writes bytes: those of ASCII as they are, space and newline as two others.
SEEN = {*map(chr, range(ord("!"), ord("~") + 1)), "Ġ", "Ċ"}
SPECIAL = ("<s>", "</s>", "<pad>")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def main(folder: str) -> None:
    """Write it."""
    words = [*sorted(SEEN.intersection(pre_tokenizers.ByteLevel.alphabet())), *SPECIAL]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    first, last, padding = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=last, pad_token=padding
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=vocabulary[first],
        eos_token_id=vocabulary[last],
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
