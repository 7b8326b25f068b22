"""llama.cpp as an engine, in this process, by the `xllamacpp` wheel.

What was observed of llama.cpp (xllamacpp 2026.10.11549, November 2026) and decides the settings below:

* `lora: []` does not mean "none": the slot keeps what it had, at first every adapter at once. So all ids are sent, each
  with a scale.
* Its prompt cache in memory (`cache_ram_mib`) does not look at the adapter: after a prompt was computed with adapter A,
  the same prompt for B was answered from A's keys and values. It stays off; the reuse within a slot does look.
* With flash attention a prompt of more than some 60 tokens gives other logits than the same prompt taken from the cache
  or computed beside another stream (up to 0.3 apart). Without it all three are bit-equal for quantised bases (float32:
  to 1e-5), so that a seed means something. On two cores it makes answers 1.0 to 1.6 times as fast, the reading of a
  long prompt 0.7 to 1.0 times.
* It opens an HTTP listener whatever one does; it is put on a socket in a private folder, with a random key.
* A stop string that is found in part is held back, and so is a character that is not whole.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp  # type: ignore[import-untyped]  # a compiled module without stubs

from tuneway.errors import InternalError
from tuneway.inference.engine import Piece, Sampling, TokenLogprob, Tokens
from tuneway.inference.grammar import ending

PROMPT_CHUNK = 512
"""Prompt tokens computed at once: a new request holds up running streams, and a departed client its slot, this long."""
_WAITING_CHUNKS = 32
"""Pieces of an answer that may wait for a slow reader before generation does."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place for one stream in llama.cpp, and whose prompt it held last."""

    number: int
    cache_key: str | None = None
    adapter: str | None = None
    prompt: Sequence[int] = ()

    def reusable(self, cache_key: str, adapter: str | None, prompt: Sequence[int]) -> int:
        """How many tokens of `prompt` need not be computed again."""
        if (self.cache_key, self.adapter) != (cache_key, adapter):
            return 0
        pairs = enumerate(zip(self.prompt, prompt, strict=False))
        return next((at for at, (held, wanted) in pairs if held != wanted), min(len(self.prompt), len(prompt)))


class LlamaCpp:
    """`adapters` maps names to LoRA GGUF files. `folder` is private (0700); the listener's socket is made in it.

    Memory: about 150 MB, the model file, each adapter, and 16-bit keys and values for `parallel` full contexts.
    Raises RuntimeError when llama.cpp cannot load a file.
    """

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        tokens: Tokens,
        folder: Path,
        *,
        threads: int,
        context_length: int,
        parallel: int,
    ) -> None:
        self._ids = {name: number for number, name in enumerate(adapters)}
        self._tokens = tokens
        self._free = asyncio.Semaphore(parallel)
        # The idle ones, the longest idle first.
        self._slots = [_Slot(number) for number in range(parallel)]
        self._threads = ThreadPoolExecutor(parallel, "generate")
        self._server = xllamacpp.Server(
            _parameters(model, adapters.values(), folder, threads, context_length, parallel)
        )
        self.fingerprint = f"fp_llamacpp_{xllamacpp.__version__.replace('.', '_')}"

    async def generate(
        self, prompt: Sequence[int], adapter: str | None, max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Piece]:
        """See Engine. More than `parallel` callers wait their turn, first come first served."""
        await self._free.acquire()
        slot = self._slot(sampling.cache_key, adapter, prompt)
        body = self._body(prompt, adapter, max_tokens, sampling)
        body |= {"id_slot": slot.number, "cache_prompt": slot.cache_key == sampling.cache_key}
        answer = _Answer(asyncio.get_running_loop())
        try:
            call = answer.loop.run_in_executor(self._threads, answer.run, self._server, body)
        except BaseException:
            self._let_go(_Slot(slot.number))
            raise
        # The place is free when llama.cpp has let go, which after a departed client is a little later than here.
        used = _Slot(slot.number, sampling.cache_key, adapter, prompt)
        call.add_done_callback(lambda _: self._let_go(used))
        logprobs = _Logprobs(self._tokens)
        complete = False
        try:
            while (chunk := await answer.next()) is not None:
                piece = _piece(chunk, logprobs)
                complete = piece.finish_reason is not None
                yield piece
                if complete:
                    return
            await call  # raises what the call raised
            raise InternalError("The engine ended an answer without saying why.")
        finally:
            answer.leave()
            if complete:
                await asyncio.wait([call])  # who asks again at once finds what it said in an idle slot

    def _slot(self, cache_key: str, adapter: str | None, prompt: Sequence[int]) -> _Slot:
        """Of the idle slots the one that has most of the prompt, for this key and adapter, else the longest idle."""
        slot = max(self._slots, key=lambda idle: idle.reusable(cache_key, adapter, prompt))
        self._slots.remove(slot)
        return slot

    def _let_go(self, slot: _Slot) -> None:
        self._slots.append(slot)
        self._free.release()

    def _body(self, prompt: Sequence[int], adapter: str | None, max_tokens: int, sampling: Sampling) -> dict[str, Any]:
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        return {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "stream": True,
            "return_progress": True,
            "lora": [{"id": number, "scale": float(name == adapter)} for name, number in self._ids.items()],
            # Every sampler of llama.cpp that OpenAI's API does not have is off; the order is OpenAI's.
            "samplers": ["penalties", "temperature", "top_p"],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "repeat_last_n": len(prompt) + max_tokens,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
            "seed": seed % (2**32 - 1),  # 2**32 - 1 itself means "random" to llama.cpp
            "stop": list(sampling.stop),
            "n_probs": 0 if sampling.top_logprobs is None else max(1, sampling.top_logprobs),
            "timings_per_token": True,  # the counts, in every piece
        } | ({} if sampling.grammar is None else {"grammar": ending(sampling.grammar, self._tokens.eos_ids)})


def _parameters(
    model: Path, adapters: Iterable[Path], folder: Path, threads: int, context_length: int, parallel: int
) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
    # One range per slot: in a shared one (`kv_unified`) two long answers fail together when it is full.
    parameters.n_ctx = context_length * parallel
    parameters.n_parallel = parallel
    parameters.kv_unified = False
    parameters.n_batch = parameters.n_ubatch = PROMPT_CHUNK
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 0  # errors only: above it, prompts may be logged
    parameters.hostnames = [str(folder / "llama.sock")]
    parameters.api_keys = [secrets.token_hex(32)]
    parameters.n_threads_http = 1
    parameters.ui = parameters.endpoint_slots = parameters.endpoint_props = parameters.endpoint_metrics = False
    return parameters


class _Answer:
    """Carries chunks from the thread that llama.cpp calls back on to the event loop, never more than a few at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._room = threading.Semaphore(_WAITING_CHUNKS)
        self._left = threading.Event()

    def run(self, server: xllamacpp.Server, body: dict[str, Any]) -> None:
        """In a thread, until the answer is complete or the reader left."""
        try:
            if not self._left.is_set():
                server.handle_completions(body, self._arrived)
        finally:
            self.loop.call_soon_threadsafe(self._chunks.put_nowait, None)

    def _arrived(self, chunk: dict[str, Any]) -> bool:
        self._room.acquire()
        if not self._left.is_set():
            self.loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        return self._left.is_set()  # True stops generation

    async def next(self) -> dict[str, Any] | None:
        chunk = await self._chunks.get()
        self._room.release()
        return chunk

    def leave(self) -> None:
        self._left.set()
        self._room.release()


def _piece(chunk: dict[str, Any], logprobs: _Logprobs) -> Piece:
    if "error" in chunk:
        raise InternalError(f"The engine failed: {chunk['error'].get('message', chunk['error'])}")
    choice = chunk["choices"][0]
    counts = chunk.get("timings") or {}
    found = choice.get("logprobs") or {}
    return Piece(
        choice["text"],
        tuple(logprobs.shown(choice["text"], found.get("content") or ())),
        choice["finish_reason"],
        counts.get("predicted_n", 0),
        counts.get("cache_n", 0),
    )


class _Logprobs:
    """Gives each log-probability with the text that it belongs to: llama.cpp sends it when its token is sampled, also
    when the text is held back or then cut off by a stop string.

    llama.cpp gives none for the first tokens of a character that takes several; the last of them stands for it.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._waiting: list[TokenLogprob] = []
        self._uncovered = 0
        """Characters of the text that was sent beyond the tokens that were."""

    def shown(self, text: str, entries: Iterable[Mapping[str, Any]]) -> Iterable[TokenLogprob]:
        for entry in entries:
            if entry["id"] not in self._tokens.eos_ids:
                top = tuple(self._one(other, other["token"]) for other in entry["top_logprobs"])
                self._waiting.append(self._one(entry, text, top))
        self._uncovered += len(text)
        while self._waiting and len(self._waiting[0].token) <= self._uncovered:
            self._uncovered -= len(self._waiting[0].token)
            yield self._waiting.pop(0)

    def _one(self, entry: Mapping[str, Any], otherwise: str, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        token = self._tokens.decode([entry["id"]])
        return TokenLogprob(otherwise if "\ufffd" in token else token, float(entry["logprob"]), top)
