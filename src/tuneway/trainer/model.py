"""The base model, a Llama from a prepared base folder: tree batch → hidden states → log-probabilities.

The library's model class is kept. Logits (a vocabulary wide) exist only for the nodes that have labels, and only
`LOGIT_ROWS` of them at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

from tuneway.trainer.batches import TreeBatch

_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

LOGIT_ROWS = 256
"""Rows of logits at once: 50 MB each for logits, their exponentials and their gradient at 49152 entries."""


@dataclass(frozen=True, slots=True)
class Base:
    """`body` maps tokens to hidden states of width H; `head` [V, H] maps those to logits. `name` is the catalogue's."""

    name: str
    body: LlamaModel
    head: Tensor


def load_base(folder: Path, dtype: torch.dtype, device: torch.device) -> Base:
    """Loads a prepared base folder. Raises FileNotFoundError or ValueError where it is not one."""
    weights = {name: w.to(device, dtype) for name, w in load_file(folder / "model.safetensors").items()}
    config = LlamaConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        body = LlamaModel(config)
    head = weights.pop("lm_head.weight", weights["model.embed_tokens.weight"])
    body.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()}, assign=True)
    body.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # its buffers are computed, not loaded
    body.train()  # only so that gradient checkpointing can be switched on: nothing in the model depends on the mode
    return Base(json.loads((folder / "base.json").read_bytes())["name"], body, head.detach())


def hidden_states(base: Base, batch: TreeBatch, recompute: bool) -> Tensor:
    """[N, H]: the last hidden state of every node.

    With `recompute`, layers keep only their inputs and are computed again in the backward pass: less memory, the same
    numbers, a third more time.
    """
    for layer in base.body.layers:
        # The switch behind the library's own `…checkpointing_enable`, which is deprecated under one name and absent
        # under the other, depending on the version (5.3 … 5.23).
        setattr(layer, "gradient_checkpointing", recompute)  # noqa: B010 - its type says all attributes are modules
        setattr(layer, "_gradient_checkpointing_func", _recompute)  # noqa: B010
    # A 4-D mask goes to the attention as it is. Additive: made once here, not once per layer.
    mask = torch.zeros(batch.ancestor_mask.shape, dtype=base.head.dtype, device=base.head.device)
    mask = mask.masked_fill_(~batch.ancestor_mask, -torch.inf)[None, None]
    out = base.body(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=mask,
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def log_probabilities(base: Base, hidden: Tensor, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """([L] log-probability of every label, [L] bool: the label is the likeliest token), from hidden states [N, H]."""
    wanted = hidden.index_select(0, batch.nodes)
    found, right = [], []
    for start in range(0, len(wanted), LOGIT_ROWS):
        first, last = torch.searchsorted(batch.rows, torch.tensor([start, start + LOGIT_ROWS])).tolist()
        part = (
            wanted[start : start + LOGIT_ROWS],
            base.head,
            batch.rows[first:last] - start,
            batch.labels[first:last],
        )
        # All but a small batch computes its logits twice, so that only one part's exist at a time.
        small = len(wanted) <= LOGIT_ROWS or not torch.is_grad_enabled()
        logp, best = _log_probabilities(*part) if small else _recompute(_log_probabilities, *part)
        found.append(logp)
        right.append(best)
    return torch.cat(found), torch.cat(right)


def _log_probabilities(hidden: Tensor, head: Tensor, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`log_probabilities` of one part: hidden [u, H], rows and labels [l]."""
    logits = functional.linear(hidden, head).float()
    chosen = (hidden.index_select(0, rows) * head.index_select(0, labels)).sum(-1).float()
    return chosen - logits.logsumexp(-1).index_select(0, rows), logits.argmax(-1).index_select(0, rows) == labels
