"""The shapes of OpenAI's objects, out of what vendors answer; and of what is sent: ids in paths, forms.

Knows JSON and words, and asks nobody anything.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from tuneway.errors import InvalidRequest, ProviderError
from tuneway.providers.vendor import Json, hyperparameters_of, with_status
from tuneway.types import JobStatus


def shown_job(raw: Any, statuses: Mapping[str, JobStatus]) -> Json:
    """A job in the seam's form, whatever its vendor left out or put in; `statuses` are the vendor's words."""
    job = as_object(raw)
    method = job.get("method") or {"type": "supervised"}
    numbers = job.get("hyperparameters") or hyperparameters_of({"method": method})
    error = job.get("error") or None
    if error is not None and not isinstance(error, dict):
        error = {"code": "server_error", "message": str(error), "param": None}
    if error is not None and not error.get("message") and not error.get("code"):
        error = None  # OpenAI's healthy jobs have {} or an object of nulls
    times = {name: unix_seconds(job[name]) for name in _TIMES if name in job}
    shown: Json = {
        **job,
        "object": "fine_tuning.job",
        "error": error,
        "hyperparameters": numbers,
        "result_files": [str(file) for file in job.get("result_files") or []],
        **times,
    }
    for name in ("fine_tuned_model", "finished_at", "trained_tokens", "validation_file"):
        shown.setdefault(name, None)
    if "suffix" in job:  # OpenAI's own name for it is the longer one
        shown.setdefault("user_provided_suffix", job["suffix"])
    word = str(job.get("status"))
    return with_status(shown, statuses.get(word), word)


def shown_file(raw: Any) -> Json:
    """Without nulls where OpenAI's own description has none."""
    file = as_object(raw)
    shown = {name: value for name, value in file.items() if value is not None or name not in _NEVER_NULL}
    for name in ("created_at", "expires_at"):
        if name in shown:
            shown[name] = unix_seconds(shown[name])
    shown.setdefault("object", "file")
    return shown


_TIMES = ("created_at", "finished_at", "estimated_finish")
_NEVER_NULL = ("expires_at", "status_details")


def shown_event(raw: Any) -> Json:
    event = as_object(raw)
    if not event.get("id"):
        event = {**event, "id": "event-" + hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()[:24]}
    level = {"warning": "warn"}.get(str(event.get("level")), event.get("level"))
    shown = {**event, "object": "fine_tuning.job.event", "created_at": unix_seconds(event.get("created_at"))}
    data = event.get("data")
    return {
        **shown,
        "level": level,
        "type": event.get("type") or "message",
        "data": data if isinstance(data, dict) else {},
    }


def shown_checkpoint(raw: Any, job_id: str) -> Json:
    checkpoint = as_object(raw)
    metrics = {name: as_number(value) for name, value in (checkpoint.get("metrics") or {}).items() if value is not None}
    return {
        **checkpoint,
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix_seconds(checkpoint.get("created_at")),
        "fine_tuning_job_id": checkpoint.get("fine_tuning_job_id") or job_id,
        "metrics": metrics,
    }


def shown_model(raw: Any) -> Json:
    model = as_object(raw)
    created = unix_seconds(model.get("created", model.get("created_at")))
    return {**model, "object": "model", "created": created or 0, "owned_by": model.get("owned_by") or "system"}


def unix_seconds(value: Any) -> int | None:
    """Of seconds, milliseconds (some vendors) or ISO 8601."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value / 1000 if value > 1e11 else value)
    if isinstance(value, str) and value:
        try:
            return int(datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp())
        except ValueError:
            return None
    return None


def moment(value: Any) -> float:
    """For order: to the millisecond, where seconds alone would leave it open."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return float(unix_seconds(value) or 0)


def plain_csv(content: bytes) -> bytes:
    """OpenAI has served its result files in base64 (its own guide decodes them); Azure's are plain."""
    if b"," in content[:200]:
        return content
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return content


def segment(value: str) -> str:
    """One segment of a URL's path, however its text looks. Ids and models are callers' words."""
    if value in ("", ".", ".."):
        raise InvalidRequest(f"{value!r} is no id.")
    return quote(value, safe=":")


def unsupported(kind: str, param: str, value: str | None = None) -> InvalidRequest:
    what = f"'{param}'" if value is None else f"'{value}' as '{param}'"
    return InvalidRequest(
        f"The provider '{kind}' does not support {what}. Remove it, or choose another provider.",
        param=param,
        code="unsupported_parameter" if value is None else "unsupported_value",
    )


def form_around(filename: str, fields: Mapping[str, str], part: str = "file") -> tuple[str, bytes, bytes]:
    """The boundary of a form, and its bytes before and behind a file's."""
    boundary = f"tuneway-{secrets.token_hex(12)}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    plain = filename.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="{plain}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return boundary, "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()


async def framed(head: bytes, content: AsyncIterable[bytes], tail: bytes) -> AsyncIterator[bytes]:
    yield head
    async for piece in content:
        yield piece
    yield tail


def listed(raw: Any, show: Any) -> Json:
    """A list in OpenAI's form; some vendors answer a bare array."""
    found = {"data": raw} if isinstance(raw, list) else as_object(raw)
    data = [show(item) for item in found.get("data") or []]
    return {**found, "object": "list", "data": data, "has_more": bool(found.get("has_more"))}


def as_object(raw: Any) -> Json:
    """Raises ProviderError for what is no JSON object."""
    if not isinstance(raw, dict):
        raise ProviderError(502, "The provider answered with something else than a JSON object.")
    return raw


def as_number(value: Any) -> Any:
    """Azure writes metrics as strings."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
