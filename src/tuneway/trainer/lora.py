"""LoRA on linear layers, and its file: an adapter folder that opens in the `peft` package.

y = W x + s · B (A x), with W frozen, A [r, in] and B [out, r] trained, s = lora_alpha / r. B starts at zero: training
begins at the base model. A starts as PEFT's does, uniform in ±1/√in (Kaiming with a = √5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model.model."  # PEFT's wrapper, its tuner's model, and the causal model's `model`


class LoraLinear(nn.Module):
    """A frozen linear layer without bias, [out, in], and its low-rank path."""

    def __init__(self, weight: Tensor, r: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        bound = 1 / math.sqrt(in_features)
        # Drawn on the CPU, so that every device starts alike.
        a = torch.empty(r, in_features).uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.lora_A = nn.Parameter(a.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, device=weight.device))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        low = functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        return functional.linear(x, self.weight) + self.scale * low

    def merged(self) -> Tensor:
        """[out, in]: W + s · B A, the weight of the plain layer that computes the same."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


def attach(model: nn.Module, r: int, lora_alpha: int, seed: int) -> dict[str, nn.Parameter]:
    """Freezes `model` and gives every linear layer in `TARGET_MODULES` an adapter.

    Returns what is trained, by PEFT's names, in the model's order. Raises ValueError where nothing matched.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapter: dict[str, nn.Parameter] = {}
    found = [(name, layer) for name, layer in model.named_modules() if name.rpartition(".")[2] in TARGET_MODULES]
    for name, linear in found:
        if not isinstance(linear, nn.Linear) or linear.bias is not None:
            raise ValueError(f"{name} is not a linear layer without bias; this trainer knows Llama models only")
        parent, _, attribute = name.rpartition(".")
        layer = LoraLinear(linear.weight, r, lora_alpha / r, generator)
        setattr(model.get_submodule(parent), attribute, layer)
        adapter[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        adapter[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B
    if not adapter:
        raise ValueError(f"the model has none of the layers {', '.join(TARGET_MODULES)}; nothing can be trained")
    return adapter


def write_adapter(folder: Path, adapter: Mapping[str, Tensor], base: str, r: int, lora_alpha: int) -> None:
    """Writes PEFT's two files into `folder`. `base` is a name, not a path: it tells the reader where W came from."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": list(TARGET_MODULES),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
