"""A prepared base folder says what its GGUF says: tokens, weights, manifest; a bad file is refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer

from tests.trainer.llama_engine import Engine
from tests.trainer.token_corpus import fuzz, with_special
from tuneway.rundir import TokenExample
from tuneway.trainer.batches import tree_batches
from tuneway.trainer.model import hidden_states, load_base, log_probabilities


def test_token_ids_are_the_engines(engine: Engine, tokenizer: Tokenizer) -> None:
    for text in [*fuzz(1500, seed=1), *with_special(fuzz(500, seed=2))]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == engine.tokens(text), repr(text)


def test_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    text = "naïve 日本語 😀 don't\n\n  3.14\t{}"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_log_probabilities_are_the_engines(engine: Engine, tiny_base: Path, chats: list[TokenExample]) -> None:
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    for chat in chats[:4]:
        asked = list(chat.tokens[: chat.weights.index(1)])
        likely = engine.next_log_probabilities(asked, 8)
        # One tree: the prompt once, with eight labelled children behind its last node.
        (batch,) = tree_batches([TokenExample([*asked, token], [0] * len(asked) + [1]) for token in likely], 512)
        assert len(batch.input_ids) == len(asked)
        with torch.no_grad():
            logp, _ = log_probabilities(base, hidden_states(base, batch, recompute=False), batch)
        ours = dict(zip(batch.labels.tolist(), logp.tolist(), strict=True))
        # The engine keeps keys and values as float16.
        assert ours == pytest.approx(likely, abs=0.01)


def test_manifest(tiny_base: Path, tiny_gguf: Path) -> None:
    manifest = json.loads((tiny_base / "base.json").read_bytes())
    assert manifest["name"] == "tiny"
    assert manifest["context_length"] == 2048
    assert manifest["bos"] == "<|im_start|>"
    assert manifest["eos"] == ["<|im_end|>", "<|endoftext|>"]
    assert manifest["special"] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tiny_base / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert "im_start" in (tiny_base / "template.jinja").read_text()
    assert [path.name for path in tiny_base.parent.iterdir()] == [tiny_base.name], "something was left beside it"


def test_no_torch() -> None:
    code = "import sys, tuneway.trainer.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _foreign(path: Path) -> None:
    path.write_bytes(b"this is not a model" * 100)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20000])


def _other_architecture(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _unknown_pre_tokenizer(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"smollm", b"klingo"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_foreign, "not a whole GGUF file"),
        (_cut, "not a whole GGUF file"),
        (Path.unlink, "does not exist"),
        (_other_architecture, "'mamba'"),
        (_unknown_pre_tokenizer, "'klingo'"),
    ],
)
def test_bad_file_is_refused(tiny_gguf: Path, tmp_path: Path, spoil: object, says: str) -> None:
    assert callable(spoil)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_gguf.read_bytes())
    spoil(bad)
    command = [sys.executable, "-m", "tuneway.trainer.prepare", str(bad), str(tmp_path / "out" / "b"), "--name", "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.glob("out/*")), "pathlib's star matches hidden names too"
