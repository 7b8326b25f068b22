"""One tiny base model for the whole suite, written by `tests.tiny_base` and prepared by the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.tiny_base import WORDS, write_tiny_gguf
from tests.trainer.llama_engine import Engine
from tests.trainer.small_runs import build_run, chat
from tuneway.rundir import RunDir, TokenExample

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads of the trainers started here do not spin
torch.set_num_threads(1)  # threads cost a model of this size more than they give


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="session")
def tiny_base(tiny_gguf: Path) -> Path:
    folder = tiny_gguf.parent / "bases" / "tiny-0123abcd"
    command = [sys.executable, "-m", "tuneway.trainer.prepare", str(tiny_gguf), str(folder), "--name", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["fraction"] == 1.0
    assert [line["fraction"] for line in lines] == sorted(line["fraction"] for line in lines)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_base / "tokenizer.json"))


@pytest.fixture(scope="session")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tiny_base / "model.gguf", tmp_path_factory.mktemp("e"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def chats(tokenizer: Tokenizer) -> list[TokenExample]:
    """Twelve chats with one system prompt; each asks for a word and is answered by another."""
    words = WORDS.split()
    return [chat(tokenizer, f"what is {words[i]}", f"{words[-i - 1]} {words[i + 3]}") for i in range(12)]


@pytest.fixture
def make_run(tmp_path: Path, tiny_base: Path, chats: list[TokenExample]) -> Callable[..., RunDir]:
    """Makes a run directory named by its first argument; keywords replace fields of the spec."""

    def make(name: str = "run", **changes: object) -> RunDir:
        return build_run(tmp_path / name, tiny_base, chats, changes)

    return make
