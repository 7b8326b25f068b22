"""A PEFT LoRA adapter as the GGUF file that llama.cpp loads. numpy only: no torch, nothing unpickled.

The two formats hold the same matrices, A as (r, in) and B as (out, r), under other names. One thing differs: GGUF
Llama models keep the rows of the query and key projections in another order (rotary pairs side by side instead of
half a head apart), so the rows of their B must be reordered too.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from safetensors.numpy import load_file

from tuneway.rundir import sync_folder

CACHED = "adapter.gguf"

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight")
# What would change the result and has no place in a LoRA GGUF, with the value that means "not used".
_REFUSED: dict[str, Any] = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "alpha_pattern": {},
    "layer_replication": None,
}


def adapter_gguf(adapter: Path, base: Path) -> Path:
    """The path of the PEFT folder `adapter` as a GGUF file for the prepared base in `base`; made when not there yet.

    The file lies beside the adapter and appears whole or not at all. Raises ValueError for an adapter that llama.cpp
    cannot express (DoRA, trained biases, modules other than the seven linear layers of a Llama block).
    """
    made = adapter / CACHED
    if made.exists():
        return made
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    for name, unused in _REFUSED.items():
        if config.get(name) not in (None, unused):
            raise ValueError(f"{adapter}: an adapter with {name} = {config[name]!r} cannot be served by llama.cpp")
    scale = config["lora_alpha"] * (config["r"] ** 0.5 if config.get("use_rslora") else 1.0)
    heads = _heads(base)
    # Two processes may convert the same adapter at once: each writes its own file, and either rename is right.
    beside = made.with_name(f"{CACHED}.{os.getpid()}.tmp")
    try:
        writer = GGUFWriter(beside, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", scale)  # llama.cpp applies alpha / r
        for key, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
            writer.add_tensor(*_convert(key, tensor, heads))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(made)
        sync_folder(adapter)
    finally:
        beside.unlink(missing_ok=True)
    return made


def _convert(key: str, tensor: npt.NDArray[Any], heads: dict[str, int]) -> tuple[str, npt.NDArray[np.float32]]:
    match = _KEY.fullmatch(key)
    if match is None or match[2] not in _NAMES:
        raise ValueError(f"llama.cpp cannot serve the adapter tensor {key}")
    layer, module, side = match.groups()
    tensor = tensor.astype(np.float32)
    if side == "B" and module in heads:
        tensor = _pair_rotary_rows(tensor, heads[module])
    return f"blk.{layer}.{_NAMES[module]}.weight.lora_{side.lower()}", np.ascontiguousarray(tensor)


def _pair_rotary_rows(rows: npt.NDArray[np.float32], n_head: int) -> npt.NDArray[np.float32]:
    """Per head, rows 0 … d/2-1, d/2 … d-1 become 0, d/2, 1, d/2+1, …; `rows` is (n_head * d, r)."""
    halves = rows.reshape(n_head, 2, rows.shape[0] // n_head // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _heads(base: Path) -> dict[str, int]:
    """The number of heads of each module whose rows carry rotary positions."""
    config = json.loads((base / "config.json").read_bytes())
    n_head = int(config["num_attention_heads"])
    return {"self_attn.q_proj": n_head, "self_attn.k_proj": int(config.get("num_key_value_heads") or n_head)}
