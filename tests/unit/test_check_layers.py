from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_layers.py"

# A tree that keeps the law, in every way that is easily mistaken for breaking it.
LAWFUL = {
    "__init__.py": "__version__ = '1'",
    "types.py": "import enum",
    "errors.py": "",
    "ids.py": "import secrets",
    "rundir.py": "import fcntl, os.path",
    "settings.py": "import os\nfrom tuneway.errors import E\nos.environ.get('X')",
    "blobs.py": "from tuneway import errors, __version__",
    "outbound.py": "from tuneway import types",
    "store/__init__.py": "import sqlalchemy\nfrom tuneway.store import jobs",
    "store/jobs.py": "from . import schema\nfrom ..types import Job",
    "store/schema.py": "",
    "dataset/__init__.py": "",
    "dataset/template.py": "import jinja2\nfrom tuneway.rundir import TokenExample",
    "providers/__init__.py": "from tuneway.providers.fake import Fake",
    "providers/base.py": "from tuneway.types import Job",
    "providers/openai_compatible.py": "from tuneway.providers.base import Provider",
    "providers/fake.py": "from tuneway.providers.openai_compatible import Compatible",
    "providers/local/__init__.py": "from tuneway.providers.local.provider import Local",
    "providers/local/provider.py": "from tuneway import rundir\nfrom .. import base",
    "trainer/loop.py": "import torch\nfrom torch import nn\nfrom safetensors.torch import load_file",
    "trainer/__main__.py": "import os\nos.environ['OMP_NUM_THREADS'] = '2'\ndel os.environ['X']",
    "inference/server.py": "from starlette.routing import Route\nfrom tuneway.dataset.template import Renderer",
    "inference/adapter.py": "from safetensors.numpy import load_file\nimport torchless",
    "jobs.py": "from tuneway.store import Store\nfrom tuneway.providers.base import Provider",
    "worker.py": "from tuneway import jobs, ids",
    "proxy.py": "from starlette.responses import Response\nfrom tuneway.outbound import connect",
    "api/jobs.py": "import fastapi\nfrom tuneway.jobs import Jobs",
    "cli/__init__.py": "def serve():\n    from tuneway import app\n    environ = {}\n    return environ",
    "__main__.py": "from tuneway.cli import main",
    "app.py": "import uvicorn\nfrom tuneway.store import Store\nfrom tuneway.providers.local import Local",
}

# File, what is added to it, and the law that is named.
BROKEN = {
    "types import nothing of ours": ("types.py", "import tuneway.errors", "`types` imports `errors`"),
    "errors import nothing of ours": ("errors.py", "from tuneway import types", "`errors` imports `types`"),
    "ids import nothing of ours": ("ids.py", "from tuneway import types", "`ids` imports `types`"),
    "rundir, nothing of ours": ("rundir.py", "from tuneway import types", "`rundir` imports `types`"),
    "rundir, standard library only": ("rundir.py", "import numpy", "`rundir` imports `numpy`; it may import the stand"),
    "settings, store": ("settings.py", "from tuneway.store import Store", "`settings` imports `store`"),
    "blobs, store": ("blobs.py", "import tuneway.store.jobs", "`blobs` imports `store`"),
    "store, services": ("store/jobs.py", "from tuneway.jobs import Jobs", "`store` imports `jobs`"),
    "store, dataset": ("store/schema.py", "from tuneway import dataset", "`store` imports `dataset`"),
    "dataset, store": ("dataset/template.py", "from ..store import jobs", "`dataset` imports `store`"),
    "dataset, trainer": ("dataset/template.py", "from .. import trainer", "`dataset` imports `trainer`"),
    "outbound, api": ("outbound.py", "from tuneway.api import jobs", "`outbound` imports `api`"),
    "the seam, a provider": ("providers/base.py", "from . import fake", "`providers.base` imports `providers.fake`"),
    "a provider, store": ("providers/fake.py", "from tuneway.store import Store", "`providers.fake` imports `store`"),
    "a provider, services": ("providers/fake.py", "from tuneway import jobs", "`providers.fake` imports `jobs`"),
    "a provider, api": ("providers/fake.py", "import tuneway.api.jobs", "`providers.fake` imports `api`"),
    "a provider, the run directory": (
        "providers/fake.py",
        "from tuneway import rundir",
        "`providers.fake` imports `rundir`",
    ),
    "a provider, another": (
        "providers/fake.py",
        "from tuneway.providers.local import Local",
        "`providers.fake` imports `providers.local`",
    ),
    "local, a provider": (
        "providers/local/provider.py",
        "from tuneway.providers import fake",
        "`providers.local` imports `providers.fake`",
    ),
    "local, trainer": (
        "providers/local/provider.py",
        "from tuneway.trainer import loop",
        "`providers.local` imports `trainer`",
    ),
    "local, torch": (
        "providers/local/provider.py",
        "import torch",
        "`providers.local` imports `torch`, which belongs in `trainer`",
    ),
    "trainer, store": ("trainer/loop.py", "from tuneway.store import Store", "`trainer` imports `store`"),
    "trainer, settings": ("trainer/loop.py", "from tuneway import settings", "`trainer` imports `settings`"),
    "inference, providers": (
        "inference/server.py",
        "from tuneway.providers import base",
        "`inference` imports `providers.base`",
    ),
    "inference, trainer": ("inference/server.py", "from tuneway.trainer import loop", "`inference` imports `trainer`"),
    "inference, torch": (
        "inference/server.py",
        "from transformers import AutoModel",
        "`inference` imports `transformers`",
    ),
    "services, api": ("jobs.py", "from tuneway.api import jobs", "`jobs` imports `api`"),
    "services, a provider": ("jobs.py", "from tuneway.providers.fake import Fake", "`jobs` imports `providers.fake`"),
    "services, the web framework": (
        "worker.py",
        "from starlette.requests import Request",
        "`worker` imports `starlette`",
    ),
    "api, store": ("api/jobs.py", "from tuneway.store import Store", "`api` imports `store`"),
    "api, providers": ("api/jobs.py", "from tuneway.providers.base import Provider", "`api` imports `providers.base`"),
    "api, torch": ("api/jobs.py", "import torch.nn", "`api` imports `torch`"),
    "proxy, store": ("proxy.py", "from tuneway import store", "`proxy` imports `store`"),
    "cli, store": ("cli/__init__.py", "from tuneway import store", "`cli` imports `store`"),
    "cli, the web framework": ("cli/__init__.py", "import uvicorn", "`cli` imports `uvicorn`"),
    "peft": ("app.py", "import peft", "`app` imports `peft`"),
    "safetensors.torch": (
        "inference/adapter.py",
        "import safetensors.torch",
        "`inference` imports `safetensors.torch`",
    ),
    "safetensors.torch by from": (
        "inference/adapter.py",
        "from safetensors import torch",
        "`inference` imports `safetensors.torch`",
    ),
    "a second renderer": (
        "inference/server.py",
        "import jinja2",
        "`inference` imports `jinja2`, which belongs in `dataset`",
    ),
    "in a function": ("api/jobs.py", "def f():\n    from tuneway.store import Store", "`api` imports `store`"),
    "for types only": ("api/jobs.py", "if TYPE_CHECKING:\n    import tuneway.store", "`api` imports `store`"),
    "by import_module": ("api/jobs.py", "importlib.import_module('tuneway.store')", "`api` imports `store`"),
    "by __import__": ("api/jobs.py", "__import__('torch')", "`api` imports `torch`"),
    "os.environ": ("jobs.py", "import os\nos.environ['X']", "`jobs` reads the environment"),
    "os.environ, whole": ("app.py", "import os\nprint(dict(os.environ))", "`app` reads the environment"),
    "os.environ, renamed": ("jobs.py", "import os as system\nsystem.environ.get('X')", "`jobs` reads the environment"),
    "os.getenv": ("trainer/loop.py", "import os\nos.getenv('X')", "`trainer` reads the environment"),
    "from os": ("cli/__init__.py", "from os import environ", "`cli` reads the environment"),
    "a file without a row": ("drawer.py", "", "`drawer` has no row in the import law"),
}


def run(package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, package], capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, source in LAWFUL.items():
        file = tmp_path / "tuneway" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source + "\n")
    return tmp_path / "tuneway"


def test_a_lawful_tree_passes(package: Path) -> None:
    done = run(package)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "source", "law"), BROKEN.values(), ids=BROKEN)
def test_each_law_fails_when_it_is_broken(package: Path, name: str, source: str, law: str) -> None:
    file = package / name
    before = file.read_text() if file.exists() else ""
    file.write_text(before + source + "\n")
    line = len((before + source).splitlines()) or 1
    done = run(package)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{file}:{line}: {law}")
    assert len(done.stdout.splitlines()) == 1


def test_a_folder_without_python_is_not_lawful(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert "nothing was checked" in done.stderr


def test_the_project_keeps_its_law() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
