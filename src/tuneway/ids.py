"""Public ids, as OpenAI's clients know them: prefixes and lengths as seen on its wire."""

from __future__ import annotations

import secrets
import string

_BASE62 = string.ascii_letters + string.digits


def base62(length: int) -> str:
    """`length` random characters of [A-Za-z0-9]: 5.95 bits each, from the system's generator."""
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def job_id() -> str:
    return "ftjob-" + base62(24)


def file_id() -> str:
    return "file-" + base62(22)


def checkpoint_id() -> str:
    return "ftckpt_" + base62(24)


def effect_id() -> str:
    return "effect_" + base62(24)


def hex32(prefix: str) -> str:
    """`prefix` and 32 hexadecimal digits: the form of uploads (`upload_`), their parts (`part_`) and webhook events."""
    return prefix + secrets.token_hex(16)


def permission_id() -> str:
    return "cp_" + base62(24)


def key_id() -> str:
    return "key_" + base62(16)


def tuned_model(base: str, project: str, suffix: str | None) -> str:
    """`ft:{base}:{project}:{suffix}:{8}`; no part holds a colon, so the name can be taken apart again."""
    return f"ft:{base}:{project}:{suffix or ''}:{base62(8)}"
