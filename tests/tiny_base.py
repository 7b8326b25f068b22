"""A tiny random Llama as a GGUF file: 2 layers of width 64 and a byte-level vocabulary, in the default base's dialect.

It knows nothing, loads in the real engine, is prepared by the real `tuneway.trainer.prepare`, and learns a dozen short
answers by heart in seconds.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, CONTEXT = 2, 64, 128, 4, 2, 2048

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

MISSING_BYTES = (0x01, 0x7F, 0xC0, 0xC1, 0xFF)
"""The default base's vocabulary lacks some bytes too; the engine and the tokenizer must leave them out alike."""

WORDS = (
    "system user assistant hello world the answer is and not you what how when where red green blue yellow one two "
    "three four five six seven yes no json true false null label category high low token train"
)

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_characters() -> dict[int, str]:
    """GPT-2's table: every byte as a visible character; those that are not visible as U+0100 and on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges): special tokens, bytes, two marks, and what `WORDS` need with and without a space."""
    tokens = [*SPECIAL, *(character for byte, character in byte_characters().items() if byte not in MISSING_BYTES)]
    merges = ["! !", "= ="]  # neighbours of a missing byte must not be merged across it
    tokens += ["!!", "=="]
    for word in WORDS.split():
        for text in (word, "Ġ" + word):
            left = text[0]
            for right in text[1:]:
                if f"{left} {right}" not in merges:
                    merges.append(f"{left} {right}")
                    tokens.append(left + right)
                left += right
    return tokens, merges


def write_tiny_gguf(path: Path, seed: int = 0) -> None:
    """Writes the model to `path`: float32, weights drawn from `seed`."""
    rng = np.random.default_rng(seed)
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    kv = HIDDEN // HEADS * KV_HEADS
    # The embeddings are the head too: at this size the likeliest token can get all but e⁻⁸ of the probability.
    writer.add_tensor("token_embd.weight", 2 * matrix(len(tokens), HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
        shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        shapes |= {"ffn_down": (HIDDEN, INNER)}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for name, (rows, columns) in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(rows, columns))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
