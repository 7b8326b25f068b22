"""A tree batch gives the loss and the gradients of the plain computation, whatever the examples share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tuneway.rundir import TokenExample
from tuneway.trainer import model
from tuneway.trainer.batches import micro_batches, total_weight, tree_batches
from tuneway.trainer.loop import backward, evaluate
from tuneway.trainer.lora import attach
from tuneway.trainer.methods import supervised
from tuneway.trainer.model import Base, load_base


@st.composite
def batches(draw: st.DrawFn) -> list[TokenExample]:
    """Examples over few tokens, some of them grown from a prefix of another: duplicates and prefixes abound."""
    examples: list[TokenExample] = []
    for _ in range(draw(st.integers(1, 6))):
        stem: list[int] = []
        grown = draw(st.booleans())
        if examples and grown:
            other = list(draw(st.sampled_from(examples)).tokens)
            stem = other[: draw(st.integers(0, len(other)))]
        tokens = stem + draw(st.lists(st.integers(0, 3) | st.integers(4, 502), min_size=0 if stem else 1, max_size=12))
        weights = draw(st.lists(st.sampled_from([0, 0, 1]), min_size=len(tokens), max_size=len(tokens)))
        examples.append(TokenExample(tokens, weights))
    return examples


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    """The tiny model with an adapter that is not zero."""
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for parameter in attach(base.body, r=4, lora_alpha=8, seed=0).values():
        parameter.data.normal_(0, 0.2, generator=generator)
    return base


def plain(base: Base, examples: list[TokenExample]) -> Tensor:
    """The mean loss, computed as everybody does: a padded rectangle, logits everywhere, labels shifted by one."""
    longest = max(len(example.tokens) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    weights = torch.zeros(len(examples), longest)
    attend = torch.zeros(len(examples), longest, dtype=torch.int64)
    for row, example in enumerate(examples):
        n = len(example.tokens)
        ids[row, :n] = torch.tensor(list(example.tokens))
        weights[row, :n] = torch.tensor(list(example.weights), dtype=torch.float32)
        attend[row, :n] = 1
    hidden = base.body(input_ids=ids, attention_mask=attend, use_cache=False).last_hidden_state
    logits = functional.linear(hidden, base.head)
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weighted: Tensor = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
    return weighted


def gradients(base: Base) -> dict[str, Tensor]:
    found = {}
    for name, parameter in base.body.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
            parameter.grad = None
    return found


@settings(max_examples=60, deadline=None)
@given(examples=batches(), budget=st.sampled_from([1, 7, 20, 2048]), logit_rows=st.sampled_from([2, 256]))
def test_tree_equals_plain(base: Base, examples: list[TokenExample], budget: int, logit_rows: int) -> None:
    if total_weight(examples) == 0:
        assert list(tree_batches(examples, budget)) == []
        return
    expected = plain(base, examples)
    torch.autograd.backward(expected)
    plain_gradients = gradients(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "LOGIT_ROWS", logit_rows)
        measured = backward(base, supervised, examples, budget, stop=lambda: False)
        evaluated = evaluate(base, examples, budget)
    assert measured is not None
    assert measured.loss == pytest.approx(expected.item(), rel=1e-5)
    assert evaluated.loss == pytest.approx(expected.item(), rel=1e-5)
    assert evaluated.accuracy == measured.accuracy
    for name, gradient in gradients(base).items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@settings(max_examples=200, deadline=None)
@given(examples=batches())
def test_every_prefix_is_one_node(examples: list[TokenExample]) -> None:
    prefixes: set[tuple[int, ...]] = set()
    labelled: dict[tuple[int, ...], int] = {}
    for example in examples:
        tokens = tuple(example.tokens)
        predicted = [i for i in range(1, len(tokens)) if example.weights[i]]
        prefixes |= {tokens[: i + 1] for i in range(predicted[-1])} if predicted else set()
        for i in predicted:
            labelled[tokens[: i + 1]] = labelled.get(tokens[: i + 1], 0) + 1
    found = list(tree_batches(examples, 10**6))
    if not prefixes:
        assert found == []
        return
    (batch,) = found
    n = len(batch.input_ids)
    assert n == len(prefixes)
    spelled = [
        tuple(batch.input_ids[batch.ancestor_mask[i]].tolist()) for i in range(n)
    ]  # a node's ancestors and itself, in order
    assert set(spelled) == prefixes
    assert batch.position_ids.tolist() == [len(prefix) - 1 for prefix in spelled]
    places = batch.nodes[batch.rows].tolist()
    children = {
        (*spelled[node], label): weight
        for node, label, weight in zip(places, batch.labels.tolist(), batch.weights.tolist(), strict=True)
    }
    assert children == labelled


@settings(max_examples=100, deadline=None)
@given(examples=batches(), budget=st.integers(1, 40))
def test_budget_holds_but_for_single_examples(examples: list[TokenExample], budget: int) -> None:
    for batch in tree_batches(examples, budget):
        n = len(batch.input_ids)
        assert n <= budget or batch.position_ids.tolist() == list(range(n))


def test_a_long_shared_prompt_is_computed_twice_rather_than_often() -> None:
    prompt = list(range(90))
    shared = [TokenExample([*prompt, 200 + i, 300 + i], [0] * 91 + [1]) for i in range(20)]
    assert [len(batch.input_ids) for batch in micro_batches(shared, 100)] == [110]
    unlike = [TokenExample([i, *prompt, 300], [0] * 91 + [1]) for i in range(3)]
    assert [len(batch.input_ids) for batch in micro_batches(unlike, 100)] == [91, 91, 91]


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = list(range(100))
    examples = [TokenExample([*prompt, 200 + i, 300 + i], [0] * 101 + [1]) for i in range(8)]
    (batch,) = tree_batches(examples, 2048)
    assert len(batch.input_ids) == 100 + 8
