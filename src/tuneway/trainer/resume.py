"""Folders of tensors that appear whole or not at all: resume points and published adapters. Safetensors and JSON only.

A resume point holds what `loop.train` needs to go on and what the files written at the end need of the past:

    adapter.safetensors     A and B by PEFT's names
    optimizer.safetensors   AdamW's moments, `exp_avg.NAME` and `exp_avg_sq.NAME`, and torch's random state
    progress.json           {"step", "rows": the rows of result.csv so far}
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tuneway.rundir import STATE, STATE_KEPT, RunDir, step_name, sync_folder

_RANDOM = "random.torch"


@dataclass(slots=True)
class Past:
    """What the steps done so far left behind, besides the adapter."""

    step: int = 0
    rows: list[str] = field(default_factory=list)


def save_resume_point(
    run: RunDir, past: Past, adapter: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Writes `state/step-N` and drops all but the newest two."""
    moments = {_RANDOM: torch.get_rng_state()}
    for name, parameter in adapter.items():
        for kind in ("exp_avg", "exp_avg_sq"):
            moments[f"{kind}.{name}"] = optimizer.state[parameter][kind].cpu()

    def write(folder: Path) -> None:
        save_file({name: p.detach().cpu() for name, p in adapter.items()}, folder / "adapter.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "progress.json").write_text(json.dumps(asdict(past)), encoding="utf-8")

    write_folder(run.path / STATE / step_name(past.step), write)
    run.prune(STATE, STATE_KEPT)


def load_resume_point(
    run: RunDir,
    adapter: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    report: Callable[[int, str], None],
) -> Past:
    """Puts adapter, optimizer and random state to where the newest readable resume point left them; else a new start.

    A folder that cannot be read (a disk fault, a deletion that was cut short) is reported and passed over.
    """
    for step, folder in reversed(list(run.steps(STATE))):
        try:
            weights = load_file(folder / "adapter.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
            past = Past(**json.loads((folder / "progress.json").read_bytes()))
            if weights.keys() != adapter.keys():
                raise ValueError("its adapter has other layers")
        except (OSError, ValueError, SafetensorError) as error:
            report(step, f"The resume point of step {step} cannot be read ({error}); going on from an older one")
            continue
        _restore(adapter, optimizer, weights, moments, past.step)
        return past
    return Past()


@torch.no_grad()
def _restore(
    adapter: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    step: int,
) -> None:
    torch.set_rng_state(moments[_RANDOM])
    for name, parameter in adapter.items():
        parameter.copy_(weights[name])
        state = {kind: moments[f"{kind}.{name}"].to(parameter.device) for kind in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **state}


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a folder beside `path`, makes what it wrote durable, and renames it to `path`.

    A folder that is there already stays: it is whole, and someone may be reading it.
    """
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    write(beside)
    for file in beside.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(beside)
    beside.rename(path)
    sync_folder(path.parent)
