"""Short-lived children of the gateway: one module each, run to its end, gone when the gateway is.

Each is in a session of its own, so that the terminal's Ctrl-C reaches the gateway alone, which then ends them in order.
Imports nothing from the folder that the gateway happens to be started in (`-P`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE

from tuneway.errors import UpstreamError


class Failed(Exception):
    """The child ended with another status than 0; the message is the last line that it wrote to standard error."""


async def run(module: str, *arguments: str, line: str = "") -> bytes:
    """What `python -m module` writes to standard output, given `line` on standard input, which stays open.

    A cancelled call kills the child and what it started. Raises Failed, and UpstreamError when somebody killed it.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, *arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        child.stdin.write(f"{line}\n".encode())
        out, err = await asyncio.gather(child.stdout.read(), child.stderr.read())
        status = await child.wait()
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        child.stdin.close()
    if status < 0:
        raise UpstreamError(f"`{module}` was ended by {signal.Signals(-status).name}.")
    if status:
        said = err.decode(errors="replace").strip().splitlines()
        raise Failed(said[-1] if said else f"exit status {status}")
    return out
