"""A prepared base folder with a tokeniser of a few merges: all that a renderer reads, and no model."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<filename>"]
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The newline that ends an opening merges with what follows it, and `<|` and `im` with their neighbours: a tokeniser
# that is given the whole text would not cut where an answer begins. Ċ and Ġ are the byte-level newline and space.
MERGES = [("Ċ", "Ċ"), ("Ċ", "Ġ"), ("<", "|"), ("i", "m"), ("<|", "im"), ("a", "b"), ("h", "i")]


def write_base(folder: Path, template: str = CHATML, context_length: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    symbols = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES]
    tokenizer = Tokenizer(models.BPE({symbol: at for at, symbol in enumerate(symbols)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    manifest = {
        "name": "tiny",
        "context_length": context_length,
        "architecture": "llama",
        "bos": None,
        "eos": ["<|im_end|>", "<|endoftext|>"],
        "special": SPECIAL,
        "prepared_by": "test",
    }
    (folder / "base.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
