"""The loop learns, looks only at weighted tokens, and is a function of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tuneway.rundir import TokenExample
from tuneway.trainer.loop import CannotTrain, Plan, Step, epoch_order, make_optimizer, rotating, train
from tuneway.trainer.lora import attach
from tuneway.trainer.methods import supervised
from tuneway.trainer.model import load_base

PLAN = Plan(n_epochs=2, batch_size=5, learning_rate=1e-2, seed=3)


def run(
    folder: Path, examples: Sequence[TokenExample], valid: Sequence[TokenExample] = (), plan: Plan = PLAN
) -> tuple[list[Step], Tensor]:
    """All steps, and the adapter as one vector."""
    base = load_base(folder, torch.float32, torch.device("cpu"))
    adapter = attach(base.body, 8, 16, plan.seed)
    steps = list(train(base, make_optimizer(adapter), supervised, examples, valid, plan, 0, lambda: False))
    return steps, torch.cat([parameter.detach().flatten() for parameter in adapter.values()])


def test_learns_twelve_examples_by_heart(tiny_base: Path, chats: list[TokenExample]) -> None:
    steps, _ = run(tiny_base, chats, chats, dataclasses.replace(PLAN, n_epochs=60))
    assert steps[0].train.loss > 3
    assert steps[-1].full is not None
    assert steps[-1].full.loss < 0.05
    assert steps[-1].full.accuracy == 1.0


def test_tokens_without_weight_teach_nothing(tiny_base: Path, chats: list[TokenExample]) -> None:
    # What follows the last weighted token is context to nothing; what it says must not matter.
    changed = [TokenExample([*chat.tokens[:-1], 42], chat.weights) for chat in chats]
    assert [chat.tokens[-1] for chat in chats] != [42] * len(chats)
    assert torch.equal(run(tiny_base, chats)[1], run(tiny_base, changed)[1])
    counted = [TokenExample(chat.tokens, [*chat.weights[:-1], 1]) for chat in chats]
    assert not torch.equal(run(tiny_base, chats)[1], run(tiny_base, counted)[1])


def test_validation_changes_nothing(tiny_base: Path, chats: list[TokenExample]) -> None:
    without, adapter = run(tiny_base, chats)
    validated, same_adapter = run(tiny_base, chats, chats[:3])
    assert torch.equal(adapter, same_adapter)
    assert [step.train for step in without] == [step.train for step in validated]
    assert all(step.valid is None for step in without)
    assert [step.full is not None for step in validated] == [False, False, True] * 2
    assert validated[-1].valid == validated[-1].full


def test_the_micro_batch_split_changes_only_rounding(tiny_base: Path, chats: list[TokenExample]) -> None:
    whole, _ = run(tiny_base, chats)
    split, _ = run(tiny_base, chats, plan=dataclasses.replace(PLAN, token_budget=30))
    assert [step.train.loss for step in split] == pytest.approx([step.train.loss for step in whole], rel=1e-3)


def test_a_loss_that_is_not_a_number_ends_training(tiny_base: Path, chats: list[TokenExample]) -> None:
    with pytest.raises(CannotTrain, match="diverged"):
        run(tiny_base, chats, plan=dataclasses.replace(PLAN, learning_rate=1e30))


def test_learning_rate_falls_linearly_to_zero() -> None:
    plan = Plan(n_epochs=1, batch_size=1, learning_rate=1.0, seed=0)
    assert [plan.rate(step, 4) for step in (1, 2, 3, 4, 5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(epoch_order(10, 1, 0)) == list(range(10))
    assert epoch_order(10, 1, 0) == epoch_order(10, 1, 0)
    assert len({tuple(epoch_order(10, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_rotation_reaches_every_validation_example() -> None:
    assert [rotating(5, 2, turn) for turn in range(3)] == [[0, 1], [2, 3], [4, 0]]
    assert rotating(3, 8, 1) == [0, 1, 2]
