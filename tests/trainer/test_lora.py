"""The adapter is LoRA as others know it: W + s·BA, frozen base, and files that open in `peft`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM

from tuneway.rundir import TokenExample
from tuneway.trainer.batches import tree_batches
from tuneway.trainer.lora import TARGET_MODULES, LoraLinear, attach, write_adapter
from tuneway.trainer.model import Base, hidden_states, load_base, log_probabilities


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return load_base(tiny_base, torch.float32, torch.device("cpu"))


def perturbed(base: Base, r: int = 4, lora_alpha: int = 12) -> dict[str, nn.Parameter]:
    adapter = attach(base.body, r, lora_alpha, seed=3)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.values():
        parameter.data.normal_(0, 0.2, generator=generator)
    return adapter


def test_starts_as_the_base_and_trains_only_the_adapter(base: Base, chats: list[TokenExample]) -> None:
    (batch,) = tree_batches(chats, 2048)
    before = hidden_states(base, batch, recompute=False)
    adapter = attach(base.body, 4, 8, seed=0)
    assert torch.equal(hidden_states(base, batch, recompute=False), before)
    trained = {id(parameter) for parameter in base.body.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in adapter.values()}
    assert len(adapter) == 2 * 2 * len(TARGET_MODULES)


def test_merged_is_w_plus_s_ba(base: Base) -> None:
    perturbed(base, r=4, lora_alpha=12)
    layer = base.body.get_submodule("layers.1.mlp.down_proj")
    assert isinstance(layer, LoraLinear)
    expected = layer.weight + 3.0 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.merged(), expected)
    x = torch.randn(5, 128)
    torch.testing.assert_close(layer(x), x @ expected.T, rtol=1e-4, atol=1e-5)


def test_same_seed_same_start(tiny_base: Path) -> None:
    starts = []
    for seed in (1, 1, 2):
        adapter = attach(load_base(tiny_base, torch.float32, torch.device("cpu")).body, 4, 8, seed)
        starts.append(torch.cat([parameter.detach().flatten() for parameter in adapter.values()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft 0.21
def test_opens_in_peft(base: Base, tiny_base: Path, tmp_path: Path, chats: list[TokenExample]) -> None:
    adapter = perturbed(base)
    write_adapter(tmp_path, adapter, "tiny", 4, 12)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_base), tmp_path)
    chat = chats[0]
    (batch,) = tree_batches([chat], 2048)
    with torch.no_grad():
        logits = theirs(torch.tensor([list(chat.tokens)])).logits[0]
        ours, _ = log_probabilities(base, hidden_states(base, batch, recompute=False), batch)
    expected = logits.log_softmax(-1)[batch.nodes[batch.rows], batch.labels]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
