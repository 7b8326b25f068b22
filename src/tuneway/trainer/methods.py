"""Training methods: from the log-probabilities of a micro-batch to its share of the step's loss.

A method is one function and one row of `METHODS`. The shares of a step's micro-batches add up to the step's loss, so
`total_weight` is that of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tuneway.trainer.batches import TreeBatch

Loss = Callable[[Tensor, TreeBatch, float], Tensor]
"""(log-probabilities [L], the micro-batch, the step's total weight) → a scalar."""


def supervised(log_probabilities: Tensor, batch: TreeBatch, total_weight: float) -> Tensor:
    """The mean negative log-likelihood of the weighted tokens: tokens count alike, examples by their length."""
    return -(batch.weights @ log_probabilities) / total_weight


METHODS: Mapping[str, Loss] = {"supervised": supervised}
