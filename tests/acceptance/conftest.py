from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.gateway import BASE, Gateway
from tests.tiny_base import write_tiny_gguf

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it: what is tested is what a user gets, not the checkout."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheel"), str(ROOT)], check=True
    )
    (wheel,) = (folder / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "packages"), str(wheel)], check=True)
    return folder / "packages"


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings with a tiny base model, prepared once for all gateways of the session."""
    folder = tmp_path_factory.mktemp("config")
    write_tiny_gguf(folder / "tiny.gguf")
    config = folder / "tuneway.toml"
    config.write_text(
        f'cache = "{folder}/cache"\nthreads = 1\n'
        f'[bases.{BASE}]\ngguf = "{folder}/tiny.gguf"\nlearning_rate = 0.01\n'
        f'[model_map]\n"gpt-4o-mini-2024-07-18" = "{BASE}"\n'
    )
    return config


@pytest.fixture
def make(site: Path, config: Path, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways with a data folder of their own, or a given one; nothing of them survives the test."""
    made: list[Gateway] = []

    def make(data: Path | None = None, config: Path = config) -> Gateway:
        made.append(Gateway(site, data or tmp_path / f"data{len(made)}", config))
        return made[-1]

    yield make
    for gateway in made:
        gateway.clean_up()


@pytest.fixture
def gateway(make: Callable[..., Gateway]) -> Gateway:
    return make().start()


@pytest.fixture(scope="session")
def shared(site: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the tests that leave it as they found it."""
    gateway = Gateway(site, tmp_path_factory.mktemp("shared"), config).start()
    yield gateway
    gateway.clean_up()
