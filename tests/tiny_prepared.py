"""The tiny Llama as a prepared base folder, and random PEFT adapters for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.tiny_base import write_tiny_gguf

RANK, ALPHA = 4, 8


def prepare_tiny(folder: Path) -> Path:
    """Prepares the tiny Llama by the real command; returns the base folder, which is made in `folder`."""
    write_tiny_gguf(folder / "tiny.gguf")
    base = folder / "tiny"
    command = [sys.executable, "-m", "tuneway.trainer.prepare", str(folder / "tiny.gguf"), str(base), "--name", "tiny"]
    subprocess.run(command, check=True, capture_output=True)
    return base


def write_adapter(folder: Path, base: Path, seed: int) -> Path:
    """A random adapter on all linear layers of `base`, strong enough to change what it says."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = rng.normal(0, columns**-0.5, (RANK, columns)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = rng.normal(0, 0.5, (rows, RANK)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "base_model_name_or_path": "tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
