"""`python -m tuneway.trainer.prepare GGUF FOLDER --name NAME`: a GGUF file becomes a prepared base folder.

    model.gguf           the file itself, for the engine
    model.safetensors    its weights as float32 under Hugging Face's names, for the trainer
    config.json          LlamaConfig
    tokenizer.json       its vocabulary and merges, for the renderer
    template.jinja       its chat template
    base.json            {"name", "context_length", "architecture", "bos", "eos", "special", "prepared_by"}

The folder appears whole or not at all. Progress goes to standard output as JSON lines, {"message", "fraction"}; a file
that cannot be used ends with status 1 and one sentence on standard error. Knows numpy, not torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tuneway import __version__
from tuneway.rundir import sync_folder, write_json

Report = Callable[[str, float], None]
"""(what is being done, the fraction done from 0 to 1)."""


class UnusableFile(Exception):
    """The GGUF file cannot be tuned; the message says why."""


_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
"""Besides the file's own end token: what ends an answer wherever it is a special token."""

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def prepare(source: Path, folder: Path, name: str, report: Report) -> None:
    """Writes `folder` from the GGUF file `source`. A folder that is there already is left as it is.

    Raises UnusableFile for a file that is no GGUF, no Llama, or uses what this table of tokenizers does not know.
    """
    if (folder / "base.json").exists():
        return
    report("Reading the model file", 0.0)
    reader = _open(source)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config, tokenizer, template = _config(fields, reader), _tokenizer(fields), _template(fields)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        _link_or_copy(source, beside / "model.gguf")
        weights = {}
        for done, (key, weight) in enumerate(_weights(reader, config)):
            weights[key] = weight
            report("Converting the weights", 0.05 + 0.75 * done / len(reader.tensors))
        report("Writing the weights", 0.8)
        save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
        write_json(beside / "config.json", config)
        tokenizer.save(str(beside / "tokenizer.json"))
        (beside / "template.jinja").write_text(template, encoding="utf-8")
        write_json(beside / "base.json", _manifest(fields, name))
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(beside)
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / "base.json").exists():  # else another process was faster: its folder is as good
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    report("The base model is ready", 1.0)


def _open(source: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(source)
    except FileNotFoundError:
        raise UnusableFile(f"{source} does not exist") from None
    except (ValueError, IndexError, KeyError, OSError) as error:
        # What the reader raises for a foreign or cut file depends on where it stumbles.
        raise UnusableFile(f"{source.name} is not a whole GGUF file ({error}); fetch it again") from error


def _config(fields: Mapping[str, Any], reader: gguf.GGUFReader) -> dict[str, Any]:
    """Hugging Face's LlamaConfig."""
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise UnusableFile(f"the architecture is {architecture!r}; only Llama models can be tuned here")
    if fields.get("llama.rope.scaling.type", "none") != "none" or "llama.expert_count" in fields:
        raise UnusableFile("the model scales its positions or mixes experts; neither can be tuned here")
    names = {tensor.name for tensor in reader.tensors}
    try:
        heads = fields["llama.attention.head_count"]
        hidden = fields["llama.embedding_length"]
        theta = float(fields.get("llama.rope.freq_base", 10000.0))
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(fields["tokenizer.ggml.tokens"]),
            "hidden_size": hidden,
            "intermediate_size": fields["llama.feed_forward_length"],
            "num_hidden_layers": fields["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
            "head_dim": fields.get("llama.attention.key_length", hidden // heads),
            "max_position_embeddings": fields["llama.context_length"],
            # Stored as float32: the shortest decimal that rounds to it is the number that was meant.
            "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
            "rope_theta": theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
            "dtype": "float32",
        }
    except KeyError as error:
        raise UnusableFile(f"the file does not say {error}; it is not a complete Llama model") from error


def _weights(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face's name, float32 weight [out, in]) of every tensor."""
    heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        _, _, rest = tensor.name.partition(".")
        layer, _, kind = rest.partition(".")
        if tensor.name in _TENSORS:
            name = _TENSORS[tensor.name]
        elif tensor.name.startswith("blk.") and kind in _LAYER_TENSORS:
            name = f"model.layers.{layer}.{_LAYER_TENSORS[kind]}"
        else:
            raise UnusableFile(f"the model has a tensor {tensor.name!r}, which plain Llama models do not have")
        try:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise UnusableFile(f"tensors of type {tensor.tensor_type.name} cannot be converted: {error}") from error
        if kind in heads:
            weight = _unpermuted(weight, heads[kind])
        yield name, np.ascontiguousarray(weight)


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k back in Hugging Face's order.

    llama.cpp turns neighbouring pairs of a head's rows, Hugging Face the first half against the second; the converter
    to GGUF interleaves the halves, this parts them.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# -------------------------------------------------------------------------------------------------------- tokenizer


def _smollm() -> list[pre_tokenizers.PreTokenizer]:
    """Every digit by itself, then GPT-2's pattern."""
    return [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]


PRE_TOKENIZERS: Mapping[str, Callable[[], list[pre_tokenizers.PreTokenizer]]] = {"smollm": _smollm}
"""By `tokenizer.ggml.pre`. A row is added together with a fuzz test against the engine's own tokens."""


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    kind, pre = fields.get("tokenizer.ggml.model"), str(fields.get("tokenizer.ggml.pre"))
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnusableFile(f"the tokenizer is {kind!r} with pre-tokenizer {pre!r}; known are 'gpt2' with {known}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    steps = PRE_TOKENIZERS[pre]()
    missing = [character for character in pre_tokenizers.ByteLevel.alphabet() if character not in vocabulary]
    if missing:
        # A byte without a token is left out, and what stood on its two sides is never merged: as the engine does.
        pattern = "[" + "".join(f"\\x{{{ord(character):x}}}" for character in sorted(missing)) + "]"
        steps.append(pre_tokenizers.Split(Regex(pattern), "removed"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _special(fields)])
    return tokenizer


def _special(fields: Mapping[str, Any]) -> list[str]:
    kinds = fields["tokenizer.ggml.token_type"]
    tokens = fields["tokenizer.ggml.tokens"]
    return [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]


def _template(fields: Mapping[str, Any]) -> str:
    template = fields.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise UnusableFile("the file has no chat template; take an instruct model")
    return template


def _manifest(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    tokens, special = fields["tokenizer.ggml.tokens"], _special(fields)
    bos, eos = (fields.get(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos"))
    ends = [] if eos is None else [tokens[eos]]
    return {
        "name": name,
        "context_length": fields["llama.context_length"],
        "architecture": "llama",
        "bos": None if bos is None else tokens[bos],
        "eos": ends + [token for token in _END_TOKENS if token in special and token not in ends],
        "special": special,
        "prepared_by": __version__,
    }


# ------------------------------------------------------------------------------------------------------------- main


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _print(message: str, fraction: float) -> None:
    sys.stdout.write(json.dumps({"message": message, "fraction": round(fraction, 3)}) + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tuneway.trainer.prepare")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="the base model's name in the catalogue")
    arguments = parser.parse_args()
    try:
        prepare(arguments.gguf, arguments.folder, arguments.name, _print)
    except UnusableFile as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"the base model could not be written: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
