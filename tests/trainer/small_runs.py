"""Small chats and run directories over them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from tuneway.rundir import TRAIN_TOKENS, VALID_TOKENS, Control, RunDir, RunSpec, TokenExample, TokenWriter


def chat(tokenizer: Tokenizer, question: str, answer: str) -> TokenExample:
    prompt = "<|im_start|>system\nlabel the token<|im_end|>\n"
    prompt += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    asked = tokenizer.encode(prompt).ids
    answered = tokenizer.encode(f"{answer}<|im_end|>").ids
    end = tokenizer.encode("\n").ids
    weights = [0] * len(asked) + [1] * len(answered) + [0] * len(end)
    return TokenExample([*asked, *answered, *end], weights)


def build_run(path: Path, base: Path, chats: list[TokenExample], changes: dict[str, object]) -> RunDir:
    """A run directory over the chats, four of them as validation; `changes` replace fields of the spec."""
    run = RunDir(path)
    for where, examples in ((TRAIN_TOKENS, chats), (VALID_TOKENS, chats[:4])):
        writer = TokenWriter(run.path / where)
        for example in examples:
            writer.write(example)
        writer.close()
    fields: dict[str, object] = {
        **{"job": "ftjob-1", "base": str(base), "method": "supervised", "n_epochs": 8, "batch_size": 5},
        **{"learning_rate": 1e-2, "seed": 7, "r": 4, "lora_alpha": 8, "max_seq_length": 512, "threads": 1},
        **{"dtype": "float32", "versions": {}},
    }
    run.create(RunSpec(**(fields | changes)), Control("run", 1))  # type: ignore[arg-type] # a table of any fields
    return run
