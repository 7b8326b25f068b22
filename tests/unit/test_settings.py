"""Where settings come from, in which order, and what a mistake in them gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneway.errors import StartError
from tuneway.settings import SETTINGS, load


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for row in SETTINGS:
        monkeypatch.delenv(row.environment, raising=False)


def test_a_flag_outweighs_the_environment_and_that_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "my.toml"
    config.write_text("port = 1\nthreads = 1\nrunning_jobs = 2\n")
    monkeypatch.setenv("TUNEWAY_PORT", "2")
    monkeypatch.setenv("TUNEWAY_THREADS", "2")
    settings = load(config, {"port": 3, "threads": None})
    assert (settings.port, settings.threads, settings.running_jobs) == (3, 2, 2)


def test_the_file_beside_is_read_and_need_not_be_there(tmp_path: Path) -> None:
    assert load(None, {}).port == 8400
    (tmp_path / "tuneway.toml").write_text("port = 5\n[model_map]\n'gpt-4o-mini' = 'smollm2-135m-instruct'\n")
    settings = load(None, {})
    assert settings.port == 5
    assert settings.model_map == {"gpt-4o-mini": "smollm2-135m-instruct"}


def test_a_base_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "tuneway.toml").write_text("[bases.mine]\ngguf = '/models/mine.gguf'\nlearning_rate = 0.0005\n")
    base = load(None, {}).bases["mine"]
    assert (base.gguf, base.learning_rate, base.r) == (Path("/models/mine.gguf"), 0.0005, 16)


def test_an_account_with_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-1")
    (tmp_path / "token").write_text("sk-2\n")
    rows = f"kind = 'openai'\napi_key = 'env:MY_KEY'\nother = 'file:{tmp_path}/token'\nrunning_jobs = 2\nauto = false\n"
    (tmp_path / "tuneway.toml").write_text(f"[providers.mine]\n{rows}")
    found = load(None, {}).providers["mine"]
    assert (found.account.name, found.account.kind, found.account.origin) == ("mine", "openai", "settings")
    assert found.account.options == {"running_jobs": "2", "auto": "no"}
    assert found.secrets == {"api_key": "sk-1", "other": "sk-2"}
    assert "sk-1" not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown settings: prot"),
        ("port = 'x'", "'port'.*not valid"),
        ("port = 65536", "from 0 to 65535"),
        ("port = ", "not valid TOML"),
        ("[bases.'a:b']\ngguf = 'x'", "no '/' and no ':'"),
        ("[bases.a]\npath = 'x'", "takes gguf"),
        ("log_level = 'loud'", "debug, info, warning or error"),
        ("[providers]\nopenai = 'sk-1'", "'openai' must be a table"),
        ("[providers.'a:b']\nkind = 'openai'", "'a:b' must be"),
        ("[providers.ft]\nkind = 'openai'", "'ft' must be"),
        ("[providers.openai]\napi_key = 'env:NOT_SET_HERE'", "openai.api_key .* NOT_SET_HERE, which is not set"),
        ("[providers.openai]\napi_key = 'file:/none'", "openai.api_key cannot be read from /none"),
        ("[providers.openai]\napi_key = 'file:/dev/null'", "openai.api_key .* /dev/null, which is empty"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tuneway.toml").write_text(text)
    with pytest.raises(StartError, match=words):
        load(None, {})


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWAY_PROT", "1")
    with pytest.raises(StartError, match="TUNEWAY_PROT"):
        load(None, {})


def test_a_config_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no settings file"):
        load(tmp_path / "none.toml", {})
