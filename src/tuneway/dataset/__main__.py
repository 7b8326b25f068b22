"""`python -m tuneway.dataset`: checks files in a process of its own, so that a large one cannot slow the gateway.

Reads one line of JSON from standard input, and ends when that ends, as it does with the gateway:
    {"files": [{"path": …, "kind": "training" | "validation", "tokens": path | null}, …],
     "renderer": prepared base folder | null, "context_length": n,
     "method": "supervised" (default) | "dpo" | "reinforcement",
     "refused": names of the `features` that the job's provider does not take (default: none)}
and prints one line per file, in their order: Report.to_json(). Exit status 0 means that there are reports, whatever
they say of the data; 1 means that the check itself could not be done, and the last line on standard error says why.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from tuneway.dataset.check import check
from tuneway.dataset.features import Feature
from tuneway.dataset.template import Renderer
from tuneway.types import Method


def main() -> int:
    try:
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        renderer = None if request["renderer"] is None else Renderer(Path(request["renderer"]))
        method = Method(request.get("method", Method.SUPERVISED))
        refused = frozenset(map(Feature, request.get("refused", ())))
        for file in request["files"]:
            tokens = file.get("tokens")
            report = check(
                Path(file["path"]),
                kind=file["kind"],
                renderer=renderer,
                context_length=request["context_length"],
                tokens=None if tokens is None else Path(tokens),
                method=method,
                refused=refused,
            )
            print(json.dumps(report.to_json()), flush=True)  # noqa: T201
    except (OSError, ValueError) as error:
        print(f"tuneway.dataset: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
