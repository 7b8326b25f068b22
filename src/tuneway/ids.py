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


def account_id() -> str:
    return "account_" + base62(16)


def import_id() -> str:
    return "import_" + base62(16)


def tuned_model(base: str, project: str, suffix: str | None) -> str:
    """`ft:{base}:{project}:{suffix}:{8}`; no part holds a colon, so the name can be taken apart again.

    Of a base that was tuned before, or that its vendor calls by a path, only the part that says what it is: slashes and
    colons would make the model's own URL another one.
    """
    base = (base.split(":")[1] if base.startswith("ft:") and base.count(":") else base).rpartition("/")[2]
    return f"ft:{base.replace(':', '-')}:{project}:{suffix or ''}:{base62(8)}"
