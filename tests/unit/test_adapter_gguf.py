"""An adapter through the real engine gives what W + s·B·A gives in float32."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny_base import vocabulary
from tests.tiny_prepared import ALPHA, RANK, prepare_tiny, write_adapter
from tuneway.dataset.template import Renderer
from tuneway.inference.adapter_gguf import adapter_gguf
from tuneway.inference.engine import Sampling
from tuneway.inference.llama import LlamaCpp

PROMPTS = [
    [{"role": "user", "content": "what is green"}],
    [{"role": "system", "content": "label the token"}, {"role": "user", "content": "hello world, one two three"}],
    [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "{json}"}],
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: a socket's path has at most 107 bytes
        yield Path(folder)


def reference(base: Path, adapter: Path | None, prompts: list[list[int]], scale: float) -> list[np.ndarray]:
    """Natural log-probabilities of the next token after each prompt, by transformers with merged weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name, parameter in model.named_parameters():
            stem = "base_model.model." + name.removesuffix(".weight")
            if stem + ".lora_A.weight" in tensors:
                change = tensors[stem + ".lora_B.weight"] @ tensors[stem + ".lora_A.weight"]
                parameter.data += scale * torch.from_numpy(change)
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    return [row.log_softmax(-1).numpy() for row in logits]


async def next_tokens(engine: LlamaCpp, prompt: list[int], adapter: str | None) -> dict[str, float]:
    """What the engine thinks of every next token: text → log-probability."""
    tokens = vocabulary()[0]
    # Half a character has no log-probability of its own, so a whole word is sampled; what is told of it is unbiased.
    sampling = Sampling(temperature=0, top_logprobs=len(tokens), logit_bias={tokens.index("assistant"): 100})
    async with aclosing(engine.generate(prompt, adapter, 1, sampling)) as pieces:
        (sampled,) = [token async for piece in pieces for token in piece.logprobs]
    return {token.token: token.logprob for token in sampled.top}


def test_engine_agrees_with_merged_weights(base: Path, tmp_path: Path, socket_folder: Path) -> None:
    adapters = {name: write_adapter(tmp_path / name, base, seed) for seed, name in enumerate(("first", "second"))}
    renderer = Renderer(base)
    engine = LlamaCpp(
        base / "model.gguf",
        {name: adapter_gguf(path, base) for name, path in adapters.items()},
        renderer,
        socket_folder,
        threads=1,
        context_length=256,
        parallel=1,
    )
    prompts = [renderer.prompt(messages) for messages in PROMPTS]
    ids = {token: at for at, token in enumerate(vocabulary()[0]) if token.isascii() and token.isalpha()}
    expected = {name: reference(base, path, prompts, ALPHA / RANK) for name, path in [(None, None), *adapters.items()]}

    async def compare() -> None:
        # The same prompt for all three in turn: keys and values of one must not serve another.
        for at, prompt in enumerate(prompts):
            for name, rows in expected.items():
                found = await next_tokens(engine, prompt, name)
                for token, number in ids.items():
                    assert math.isclose(found[token], rows[at][number], abs_tol=0.1), (name, token)

    asyncio.run(compare())
    assert len(ids) > 100
    apart = max(np.abs(a - b).max() for a, b in zip(expected["first"], expected["second"], strict=True))
    assert apart > 1  # the adapters differ by far more than the tolerance


def test_made_once_and_whole(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, 0)
    made = adapter_gguf(adapter, base)
    assert made == adapter / "adapter.gguf"
    (adapter / "adapter_model.safetensors").unlink()
    assert adapter_gguf(adapter, base) == made
    assert {path.name for path in adapter.iterdir()} == {"adapter.gguf", "adapter_config.json"}


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"alpha_pattern": {"q_proj": 4}}],
)
def test_what_llama_cpp_cannot_express_is_refused(base: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, 0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=next(iter(changes))):
        adapter_gguf(adapter, base)
    assert not (adapter / "adapter.gguf").exists()


def test_a_tensor_of_another_module_is_refused_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, 0)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((RANK, 64), np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="lm_head"):
        adapter_gguf(adapter, base)
    assert not list(adapter.glob("adapter.gguf*"))
