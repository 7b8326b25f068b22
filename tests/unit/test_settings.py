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
