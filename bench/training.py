"""How much faster tree batches train than a plain padded loop: `python bench/training.py [CHATS.jsonl]`.

Both are measured in one process and by turns on the same batches, with the same model, adapter, precision and threads;
they compute the same loss and gradients (tests/trainer/test_batches.py), so steps per second compare as they stand.
Plain means: examples padded to the longest, logits for every token, as PEFT with a usual loop does. Prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from tuneway.dataset.template import Renderer
from tuneway.providers.local.catalogue import ENTRIES, Catalogue
from tuneway.rundir import TokenExample
from tuneway.settings import load
from tuneway.trainer.batches import micro_batches
from tuneway.trainer.loop import Plan, backward, epoch_order
from tuneway.trainer.lora import attach
from tuneway.trainer.methods import supervised
from tuneway.trainer.model import Base, load_base

TOKEN_BUDGET = Plan(1, 1, 0.0, 0).token_budget
SAMPLE = Path(__file__).parent.parent / "examples" / "support_train.jsonl"


def plain_step(base: Base, examples: Sequence[TokenExample]) -> float:
    """Loss and gradients of a padded batch; returns the mean loss."""
    longest = max(len(example.tokens) for example in examples)
    ids, attend = (torch.zeros(len(examples), longest, dtype=torch.int64) for _ in range(2))
    labels = torch.full((len(examples), longest), -100)
    for row, example in enumerate(examples):
        n = len(example.tokens)
        ids[row, :n] = torch.tensor(list(example.tokens))
        attend[row, :n] = 1
        learned = torch.tensor(list(example.weights), dtype=torch.bool)
        labels[row, :n] = torch.where(learned, ids[row, :n], -100)
    hidden = base.body(input_ids=ids, attention_mask=attend, use_cache=False).last_hidden_state
    logits = functional.linear(hidden, base.head)
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.autograd.backward(loss)
    return loss.item()


def tree_step(base: Base, examples: Sequence[TokenExample]) -> float:
    """The same by the trainer's own code."""
    measured = backward(base, supervised, examples, TOKEN_BUDGET, stop=lambda: False)
    return measured.loss if measured else 0.0


def tree_tokens(examples: Sequence[TokenExample]) -> int:
    """The nodes that the trainer computes for a batch."""
    return sum(len(tree.input_ids) for tree in micro_batches(examples, TOKEN_BUDGET))


def seconds(step: Callable[[Base, Sequence[TokenExample]], float], base: Base, batch: Sequence[TokenExample]) -> float:
    base.body.zero_grad(set_to_none=True)
    began = time.perf_counter()
    step(base, batch)
    return time.perf_counter() - began


async def cached_base() -> Path:
    """The default base model, fetched and prepared where that was not done yet."""

    async def report(message: str) -> None:
        sys.stderr.write(f"{message}\n")

    return await Catalogue(load(None, {}).cache, ENTRIES).ready(ENTRIES[0].name, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chats", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--base", type=Path, help="a prepared base folder; by default the one in the cache")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.base or asyncio.run(cached_base())

    renderer = Renderer(folder)
    chats = [json.loads(line) for line in arguments.chats.read_text(encoding="utf-8").splitlines()]
    examples = [renderer.example(chat["messages"]) for chat in chats]
    base = load_base(folder, torch.float32, torch.device("cpu"))
    attach(base.body, r=16, lora_alpha=32, seed=0)

    order, size = epoch_order(len(examples), 0, 0), arguments.batch_size
    batches = [[examples[i] for i in order[n * size : (n + 1) * size]] for n in range(arguments.batches)]
    difference = abs(plain_step(base, batches[0]) - tree_step(base, batches[0]))  # also warms both up
    timed = [(seconds(plain_step, base, batch), seconds(tree_step, base, batch)) for batch in batches]
    ratios = [plain / tree for plain, tree in timed]
    result = {
        "chats": arguments.chats.name,
        "speedup_median": round(statistics.median(ratios), 2),
        "speedup_min": round(min(ratios), 2),
        "plain_seconds_per_step": round(statistics.median(plain for plain, _ in timed), 3),
        "tree_seconds_per_step": round(statistics.median(tree for _, tree in timed), 3),
        "tokens_per_step": round(statistics.mean(sum(len(e.tokens) for e in batch) for batch in batches)),
        "tree_tokens_per_step": round(statistics.mean(map(tree_tokens, batches))),
        "loss_difference": difference,
        "threads": arguments.threads,
        "torch": torch.__version__,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
