"""Thousands of generated requests, good and bad: no 5xx, nothing undocumented, and no bad body is accepted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.wire.conftest import SETTINGS, rows, running
from tests.wire.test_keys import make_key

CASES = 10_000 if os.environ.get("SOAK") else 1_000
EXAMPLES = 100 if os.environ.get("SOAK") else 2
"""Of each operation, in each way of generating them; the table of edge cases comes before these."""

CONFIG = """
[checks.positive_data_acceptance]
# What a schema cannot say (a file that is not there, two fields that do not go together) is a 4xx, conflicts a 400.
expected-statuses = ["2xx", 400, 401, 403, 404, 413, 415]
"""


def test_the_api_is_what_its_description_says(tmp_path: Path) -> None:
    key = make_key(tmp_path / "data", *(f"--scope={scope}" for scope in ("read", "tune", "chat", "admin")))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with running(tmp_path, SETTINGS + 'auth = "on"\n') as gateway:
        file = gateway.client_with(key).files.create(file=("a.jsonl", rows()), purpose="fine-tune")
        document = os.environ.get("OPENAPI") or f"{gateway.url}/openapi.json"
        base = ["--url", f"{gateway.url}/v1"] if os.environ.get("OPENAPI") else []
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml")]
        command += [
            "run",
            document,
            *base,
            "-H",
            f"Authorization: Bearer {key}",
            "--phases",
            "coverage,fuzzing,stateful",
        ]
        command += ["-n", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--warnings", "off"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
                "FILE": file.id,
            },
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        cases = re.search(r"(\d+) generated", done.stdout)
        assert cases is not None, done.stdout
        assert int(cases[1]) >= CASES
        assert "Traceback" not in gateway.log()
