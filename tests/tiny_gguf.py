"""Writes tiny GGUF language models that llama.cpp loads in milliseconds and whose every answer is known.

A model is a real `llama` transformer whose attention and feed-forward add nothing to the residual stream,
so what comes next depends on the last token alone: each word of its phrase is followed by the next one,
everything else by the first. A test can so tell which model answered, also at any temperature. Any UTF-8
prompt can be read, as the vocabulary has every byte.

Rules of this file: no random numbers; equal arguments give equal files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

PHRASE = "the quick brown fox jumps over a lazy dog"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HEAD_WIDTH = 64
CERTAINTY = 40.0  # how far the logit of the right word is above all others
SPACE = "\u2581"
UNKNOWN_ID, BEGIN_ID, END_ID = 0, 1, 2


def write_tiny_gguf(
    path: Path,
    phrase: str = PHRASE,
    *,
    stops: bool = True,
    size_bytes: int = 1_000_000,
    context_length: int = 32_768,
    chat_template: str | None = CHAT_TEMPLATE,
    name: str = "tiny",
    layers: int = 2,
) -> Path:
    """Write a model of about that size. It says `phrase` once, or with `stops=False` again and again."""
    words = phrase.split()
    if len(set(words)) != len(words):
        raise ValueError("the words of the phrase must differ: each one says which is next")
    vocabulary = _vocabulary(words)
    width = -(-(len(words) + 1) // (2 * HEAD_WIDTH)) * 2 * HEAD_WIDTH
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, name, width, layers, context_length)
    _add_vocabulary(writer, vocabulary)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    table, output = _chain(vocabulary, words, width, stops)
    writer.add_tensor("token_embd.weight", table)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    fixed_bytes = 2 * table.nbytes + layers * 6 * width * width
    inner = max(32, int((size_bytes - fixed_bytes) / (layers * 3 * width * 2)) // 32 * 32)
    writer.add_feed_forward_length(inner)
    for layer in range(layers):
        _add_layer(writer, layer, width, inner)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(words: list[str]) -> list[tuple[str, gguf.TokenType]]:
    special = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    single = [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    return special + single + [(text, gguf.TokenType.NORMAL) for text in [SPACE, *(SPACE + word for word in words)]]


def _describe(writer: Any, name: str, width: int, layers: int, context_length: int) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_head_count(width // HEAD_WIDTH)
    writer.add_head_count_kv(width // HEAD_WIDTH // 2)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: Any, vocabulary: list[tuple[str, gguf.TokenType]]) -> None:
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([int(kind) for _, kind in vocabulary])
    writer.add_unk_token_id(UNKNOWN_ID)
    writer.add_bos_token_id(BEGIN_ID)
    writer.add_eos_token_id(END_ID)


def _chain(
    vocabulary: list[tuple[str, gguf.TokenType]], words: list[str], width: int, stops: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings and the output matrix. Axis 0 means "none of the words", axis i + 1 the i-th word."""
    ids = {text: number for number, (text, _) in enumerate(vocabulary)}
    chain = [ids[SPACE + word] for word in words]
    table = np.zeros((len(vocabulary), width), np.float16)
    output = np.zeros_like(table)
    table[:, 0] = 1
    for axis, (current, following) in enumerate(
        zip(chain, [*chain[1:], END_ID if stops else chain[0]], strict=True), start=1
    ):
        table[current, 0] = 0
        table[current, axis] = 1
        output[following, axis] = CERTAINTY / width**0.5  # the norm before it scales a unit vector by sqrt(width)
    output[chain[0], 0] = CERTAINTY / width**0.5
    return table, output


def _add_layer(writer: Any, layer: int, width: int, inner: int) -> None:
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(width, np.float32))
    for part, shape in shapes.items():
        writer.add_tensor(f"blk.{layer}.{part}.weight", np.zeros(shape, np.float16))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model that llama.cpp can serve.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--phrase", default=PHRASE)
    parser.add_argument("--size-bytes", type=int, default=1_000_000)
    parser.add_argument("--endless", action="store_true", help="repeat the phrase instead of ending after it")
    given = parser.parse_args()
    print(write_tiny_gguf(given.path, given.phrase, size_bytes=given.size_bytes, stops=not given.endless))
