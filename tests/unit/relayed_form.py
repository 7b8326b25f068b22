"""A form as a relay's client sends it: piece by piece, its fields before and behind its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from starlette.requests import Request

from tuneway.api.multipart import StreamedForm

BOUNDARY = "----relayed"


def form(
    content: bytes,
    name: str = "train.jsonl",
    *,
    before: Mapping[str, str] = {"purpose": "fine-tune"},
    behind: Mapping[str, str] = {},
    broken_off: bool = False,
    piece: int = 1000,
) -> StreamedForm:
    """`broken_off`: its client leaves before the closing boundary."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    whole = _fields(before) + head.encode() + content + b"\r\n" + _fields(behind)
    if not broken_off:
        whole += f"--{BOUNDARY}--\r\n".encode()
    messages = _messages([whole[at : at + piece] for at in range(0, len(whole), piece)])

    async def receive() -> dict[str, Any]:
        return next(messages)

    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    return StreamedForm(Request({"type": "http", "method": "POST", "headers": headers}, receive))


def _fields(values: Mapping[str, str]) -> bytes:
    return "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in values.items()
    ).encode()


def _messages(pieces: list[bytes]) -> Iterator[dict[str, Any]]:
    for place, piece in enumerate(pieces, start=1):
        yield {"type": "http.request", "body": piece, "more_body": place < len(pieces)}
