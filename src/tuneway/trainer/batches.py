"""Examples → tree batches: every distinct prefix of a batch's token sequences is computed once. Pure; knows no model.

Put the batch's sequences in a trie. A node stands for one prefix; it attends to its ancestors only and its position is
its depth, so its hidden state is what the plain computation gives to that prefix, in every example that has it. Chats
with one system prompt, the two answers of a preference pair, the samples of one prompt: all share. Sequences that share
nothing lie side by side without padding (packing is a forest).

    tokens                      nodes, in depth-first order       labelled children
    S u1 a1 b1                  S(0) u1(1) a1(2) u2(3) a2(4)      u1 → a1, a1 → b1, u2 → a2, a2 → b2
    S u2 a2 b2

The trie is never built. In lexicographic order, a sequence shares with those before it exactly what it shares with its
neighbour, so one walk over the sorted sequences numbers the nodes depth-first in O(tokens). Depth-first numbers make
each subtree an interval, and the ancestor mask a comparison of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tuneway.rundir import TokenExample

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """What one forward pass needs. N nodes, U of them with labelled children, L labelled children.

    A node may have several labelled children (one prefix, several next tokens), so labels are listed apart from the
    nodes: child `l` is predicted from the logits of node `nodes[rows[l]]`. Equal children of one node are one entry
    whose weight is the sum. The first token of a sequence is predicted by nothing, whatever its weight.
    """

    input_ids: Tensor
    """[N] int64, depth-first."""
    position_ids: Tensor
    """[N] int64, the depth of each node; a root has 0."""
    ancestor_mask: Tensor
    """[N, N] bool, True where the row may attend to the column: the node itself and those above it."""
    nodes: Tensor
    """[U] int64, ascending: the nodes whose logits are needed."""
    rows: Tensor
    """[L] int64, ascending: indices into `nodes`."""
    labels: Tensor
    """[L] int64."""
    weights: Tensor
    """[L] float32, above 0."""

    def to(self, device: torch.device) -> TreeBatch:
        """The same batch on `device`."""
        return TreeBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class _Sequence:
    """An example cut behind its last prediction: what follows has no influence on the loss."""

    tokens: Ids
    inputs: Ids
    targets: Ids
    """Indices into `tokens` that are predicted, each at least 1."""
    weights: np.ndarray[tuple[int], np.dtype[np.float64]]


WIDER = 4
"""How many times the token budget a tree may have where sharing makes up for computing its activations twice."""

RECOMPUTED = 4 / 3
"""What a token costs whose activations are computed twice: forward, forward, backward instead of forward, backward."""


def total_weight(examples: Sequence[TokenExample]) -> float:
    """What the loss of these examples is divided by: the weights of all tokens that are predicted."""
    return float(sum(sum(example.weights[1:]) for example in examples))


def micro_batches(examples: Sequence[TokenExample], token_budget: int) -> list[TreeBatch]:
    """The cheaper of two ways to train on the examples with the activations of `token_budget` nodes in memory.

    Either trees of that size, or wider ones whose activations are computed again in the backward pass: a long shared
    prompt that leaves room for few answers is better computed twice than once per few answers.
    """
    narrow = list(tree_batches(examples, token_budget))
    wide = list(tree_batches(examples, WIDER * token_budget)) if len(narrow) > 1 else narrow
    return min(narrow, wide, key=lambda batches: _cost(batches, token_budget))


def _cost(batches: Sequence[TreeBatch], token_budget: int) -> float:
    sizes = [len(batch.input_ids) for batch in batches]
    return sum(size * (RECOMPUTED if size > token_budget else 1) for size in sizes)


def tree_batches(examples: Sequence[TokenExample], token_budget: int) -> Iterator[TreeBatch]:
    """The examples as micro-batches of at most `token_budget` nodes; a longer example is a micro-batch of its own.

    Examples without a predicted token are left out. The sums over all micro-batches are those over all examples.
    """
    found = [_trimmed(example) for example in examples]
    # Big-endian bytes sort as the numbers do.
    ordered = sorted((s for s in found if s is not None), key=lambda s: s.inputs.astype(">u4").tobytes())
    group: list[_Sequence] = []
    size = 0
    for sequence in ordered:
        added = len(sequence.inputs) - (_shared(group[-1].inputs, sequence.inputs) if group else 0)
        if group and size + added > token_budget:
            yield _tree(group)
            group, size, added = [], 0, len(sequence.inputs)
        group.append(sequence)
        size += added
    if group:
        yield _tree(group)


def _trimmed(example: TokenExample) -> _Sequence | None:
    tokens = np.asarray(example.tokens, dtype=np.int64)
    weights = np.frombuffer(bytes(example.weights), dtype=np.uint8)
    targets = np.flatnonzero(weights[1:]) + 1
    if not len(targets):
        return None
    return _Sequence(tokens, tokens[: targets[-1]], targets, weights[targets].astype(np.float64))


def _shared(a: Ids, b: Ids) -> int:
    """The length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _tree(group: Sequence[_Sequence]) -> TreeBatch:
    """One tree batch of sequences in lexicographic order of their inputs."""
    ids: list[Ids] = []
    depths: list[Ids] = []
    closed: list[tuple[Ids, int]] = []
    children: list[Ids] = []
    weights = []
    path: Ids = np.empty(0, np.int64)  # the nodes of the sequence before, by depth
    before: Ids = path
    n = 0
    for sequence in group:
        shared = _shared(before, sequence.inputs)
        new = len(sequence.inputs) - shared
        closed.append((path[shared:], n))
        ids.append(sequence.inputs[shared:])
        depths.append(np.arange(shared, len(sequence.inputs)))
        path = np.concatenate([path[:shared], np.arange(n, n + new)])
        children.append(path[sequence.targets - 1] << 32 | sequence.tokens[sequence.targets])
        weights.append(sequence.weights)
        before, n = sequence.inputs, n + new
    # One entry per (node, label), ordered by node: the pair is packed into one number.
    pairs, entry = np.unique(np.concatenate(children), return_inverse=True)
    nodes, rows = np.unique(pairs >> 32, return_inverse=True)
    return TreeBatch(
        input_ids=torch.from_numpy(np.concatenate(ids)),
        position_ids=torch.from_numpy(np.concatenate(depths)),
        ancestor_mask=_ancestor_mask([*closed, (path, n)], n),
        nodes=torch.from_numpy(nodes),
        rows=torch.from_numpy(rows),
        labels=torch.from_numpy(pairs & 0xFFFFFFFF),
        weights=torch.from_numpy(np.bincount(entry, np.concatenate(weights)).astype(np.float32)),
    )


def _ancestor_mask(closed: Sequence[tuple[Ids, int]], n: int) -> Tensor:
    """[n, n] bool from the nodes whose subtrees end before a number: node k is above i where k ≤ i < end(k)."""
    end = np.empty(n, np.int64)
    for nodes, at in closed:
        end[nodes] = at
    i = np.arange(n)
    return torch.from_numpy((i[None, :] <= i[:, None]) & (i[:, None] < end[None, :]))
