"""The training loop: examples in, one `Step` of facts out per optimizer step. Writes nothing, knows no files or events.

The order of the examples is a function of the seed and the epoch, the learning rate one of the step: whoever holds the
adapter and the optimizer's moments after step N can go on at N + 1 and gets what an undisturbed run gets. Nothing here
draws random numbers while training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tuneway.rundir import TokenExample
from tuneway.trainer.batches import WIDER, micro_batches, total_weight, tree_batches
from tuneway.trainer.methods import Loss
from tuneway.trainer.model import Base, hidden_states, log_probabilities

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.0
MAX_GRADIENT_NORM = 1.0
VALIDATIONS = 10
"""How often, evenly spread over a job, one validation batch is looked at besides the full pass of every epoch."""


class CannotTrain(Exception):
    """Training cannot succeed with these data and settings, however often it is tried; the message is for the owner."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the result besides model and data. `learning_rate` is the peak; it falls linearly to 0.

    `token_budget` bounds the tree tokens whose activations are in memory at once, about 2.2 MB each for a model of 135M
    parameters (30 layers of width 576); the result does not depend on it but for rounding.
    """

    n_epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    token_budget: int = 768

    def steps_per_epoch(self, n_examples: int) -> int:
        """The last step of an epoch takes what is left."""
        return math.ceil(n_examples / self.batch_size)

    def total_steps(self, n_examples: int) -> int:
        return self.n_epochs * self.steps_per_epoch(n_examples)

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of `step` (the first is 1): the peak at first, a last small one, then it would be 0."""
        return self.learning_rate * (1 - (step - 1) / total_steps)


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean negative log-likelihood (nats) and share of tokens that were the likeliest, both over weighted tokens."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did. `valid` is None where nothing was validated, at an epoch's end the full pass."""

    step: int
    total_steps: int
    train: Measured
    valid: Measured | None
    full: Measured | None
    tokens: int
    """All tokens of the step's examples, shared or not, with loss or without."""
    epoch_ends: bool


def make_optimizer(adapter: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the adapter; the loop sets its learning rate."""
    return torch.optim.AdamW(adapter.values(), lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True)


def train(
    base: Base,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    examples: Sequence[TokenExample],
    valid_examples: Sequence[TokenExample],
    plan: Plan,
    done: int,
    stop: Callable[[], bool],
) -> Iterator[Step]:
    """Trains from step `done` + 1 to the end and yields every step; model and optimizer are then as after that step.

    Asks `stop` before every micro-batch: on True it returns, model and optimizer as after the last step it yielded.
    Raises CannotTrain when a loss is not a number.
    """
    total_steps = plan.total_steps(len(examples))
    steps_per_epoch = plan.steps_per_epoch(len(examples))
    for step in range(done + 1, total_steps + 1):
        epoch, place = divmod(step - 1, steps_per_epoch)
        order = epoch_order(len(examples), plan.seed, epoch)
        batch = [examples[i] for i in order[place * plan.batch_size : (place + 1) * plan.batch_size]]

        optimizer.zero_grad(set_to_none=True)
        measured = backward(base, loss, batch, plan.token_budget, stop)
        if measured is None:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        _refuse_nan("training loss", step, measured.loss, float(norm))
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, total_steps)
        optimizer.step()

        valid = full = None
        epoch_ends = place == steps_per_epoch - 1
        if valid_examples and epoch_ends:
            valid = full = evaluate(base, valid_examples, plan.token_budget)
        elif valid_examples and step % (every := max(1, total_steps // VALIDATIONS)) == 0:
            picked = rotating(len(valid_examples), plan.batch_size, step // every - 1)
            valid = evaluate(base, [valid_examples[i] for i in picked], plan.token_budget)
        if valid:
            _refuse_nan("validation loss", step, valid.loss)
        tokens = sum(len(example.tokens) for example in batch)
        yield Step(step, total_steps, measured, valid, full, tokens, epoch_ends)


def backward(
    base: Base, loss: Loss, examples: Sequence[TokenExample], token_budget: int, stop: Callable[[], bool]
) -> Measured | None:
    """Adds the gradient of the examples' loss to the parameters, micro-batch by micro-batch. None when told to stop."""
    weight = total_weight(examples)
    summed, right = 0.0, 0.0
    for batch in micro_batches(examples, token_budget):
        if stop():
            return None
        batch = batch.to(base.head.device)
        hidden = hidden_states(base, batch, recompute=len(batch.input_ids) > token_budget)
        logp, best = log_probabilities(base, hidden, batch)
        share = loss(logp, batch, weight)
        torch.autograd.backward(share)
        summed += share.item()
        right += (batch.weights @ best.float()).item()
    return Measured(summed, right / weight)


@torch.no_grad()
def evaluate(base: Base, examples: Sequence[TokenExample], token_budget: int) -> Measured:
    """Loss and accuracy without training. Examples without weight count for nothing."""
    summed, right = 0.0, 0.0
    for batch in tree_batches(examples, WIDER * token_budget):  # nothing is kept for a backward pass
        batch = batch.to(base.head.device)
        logp, best = log_probabilities(base, hidden_states(base, batch, recompute=False), batch)
        summed -= (batch.weights @ logp).item()
        right += (batch.weights @ best.float()).item()
    weight = total_weight(examples)
    return Measured(summed / weight, right / weight)


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The examples' order in an epoch (the first is 0): a function of its arguments only."""
    return [int(i) for i in np.random.default_rng((seed, epoch)).permutation(n)]


def rotating(n: int, size: int, turn: int) -> list[int]:
    """The validation examples of a turn (the first is 0): the next `size` of `n`, round and round."""
    size = min(n, size)
    return [(turn * size + i) % n for i in range(size)]


def _refuse_nan(what: str, step: int, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise CannotTrain(
            f"The {what} is not a number at step {step}: training diverged. Start a new job with a lower "
            "learning_rate_multiplier."
        )
