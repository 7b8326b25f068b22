"""`/v1/uploads`: files in parts, as the official SDK sends them and as no client should."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.wire.conftest import Gateway

RETRY = {"x-stainless-retry-count": "1"}
CONTENT = b"".join(b'{"line": %d}\n' % number for number in range(1000))
PIECES = [CONTENT[at : at + 1500] for at in range(0, len(CONTENT), 1500)]
ASKED: dict[str, Any] = {
    "filename": "a.jsonl",
    "purpose": "fine-tune",
    "bytes": len(CONTENT),
    "mime_type": "text/jsonl",
}


def blobs(gateway: Gateway) -> set[Path]:
    return {path for path in (gateway.data / "data" / "blobs").rglob("*") if path.is_file()}


def announced(gateway: Gateway, content: bytes = CONTENT, filename: str = "a.jsonl") -> str:
    return gateway.client.uploads.create(**ASKED | {"bytes": len(content), "filename": filename}).id


def add(gateway: Gateway, upload: str, data: bytes) -> str:
    return gateway.client.uploads.parts.create(upload, data=data).id


def refused(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_life_of_an_upload(gateway: Gateway) -> None:
    before, uploads = blobs(gateway), gateway.client.uploads
    created = uploads.create(**ASKED, expires_after={"anchor": "created_at", "seconds": 7200})
    assert created.to_dict() == {
        "id": created.id,
        "object": "upload",
        "bytes": len(CONTENT),
        "created_at": created.created_at,
        "expires_at": created.created_at + 3600,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "pending",
    }
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda piece: add(gateway, created.id, piece), reversed(PIECES)))
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest().upper()
    done = uploads.complete(created.id, part_ids=backwards[::-1], md5=md5)
    assert (done.status, done.id, done.file is not None) == ("completed", created.id, True)
    assert done.file is not None
    assert done.file == gateway.client.files.retrieve(done.file.id)
    assert (done.file.filename, done.file.bytes, done.file.purpose) == ("a.jsonl", len(CONTENT), "fine-tune")
    assert done.file.expires_at == done.file.created_at + 7200
    assert gateway.client.files.content(done.file.id).content == CONTENT
    assert len(blobs(gateway) - before) == 1
    gateway.client.files.delete(done.file.id)
    assert blobs(gateway) == before


def test_the_sdks_own_chunks(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "你好.jsonl"
    path.write_bytes(CONTENT)
    done = gateway.client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=1000
    )
    assert done.file is not None
    assert done.file.filename == "你好.jsonl"
    assert gateway.client.files.content(done.file.id).content == CONTENT


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": -1}, "bytes"),
        ({"bytes": 8 * 2**30 + 1}, "bytes"),
        ({"bytes": 10**30}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"filename": "a.txt"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\r\nb.jsonl"}, "filename"),
        ({"filename": "a" * 250 + ".jsonl"}, "filename"),
        ({"mime_type": ""}, "mime_type"),
        ({"expires_after": None}, "expires_after"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"metadata": {}}, "metadata"),
    ],
    ids=str,
)
def test_a_wrong_create_is_refused_by_name(gateway: Gateway, change: dict[str, Any], param: str) -> None:
    assert refused(gateway.http.post("/v1/uploads", json=ASKED | change))["param"] == param


@pytest.mark.parametrize("name", ASKED)
def test_a_create_needs_every_field(gateway: Gateway, name: str) -> None:
    body = {key: value for key, value in ASKED.items() if key != name}
    assert refused(gateway.http.post("/v1/uploads", json=body))["param"] == name


def test_a_wrong_complete_is_refused_and_the_upload_stays_pending(gateway: Gateway) -> None:
    start, upload, other = blobs(gateway), announced(gateway), announced(gateway)
    parts = [add(gateway, upload, piece) for piece in PIECES]
    foreign = add(gateway, other, PIECES[0])
    before = blobs(gateway)
    wrong_md5 = hashlib.md5(usedforsecurity=False).hexdigest()
    for body, param in [
        ({"part_ids": []}, "part_ids"),
        ({}, "part_ids"),
        ({"part_ids": parts[1:]}, "part_ids"),
        ({"part_ids": [*parts, parts[0]]}, "part_ids"),
        ({"part_ids": [foreign, *parts[1:]]}, "part_ids.0"),
        ({"part_ids": [parts[0]] * len(parts)}, "part_ids"),
        ({"part_ids": [*parts, 7]}, f"part_ids.{len(parts)}"),
        ({"part_ids": parts, "md5": wrong_md5}, "md5"),
        ({"part_ids": parts, "md5": "x"}, "md5"),
        ({"part_ids": parts, "md5": None}, "md5"),
        ({"part_ids": parts, "filename": "b.jsonl"}, "filename"),
    ]:
        assert refused(gateway.http.post(f"/v1/uploads/{upload}/complete", json=body))["param"] == param, body
        assert blobs(gateway) == before
    done = gateway.client.uploads.complete(upload, part_ids=parts)
    assert done.file is not None
    assert gateway.client.files.content(done.file.id).content == CONTENT
    # The first part's bytes are still those of the other upload's part.
    assert len(blobs(gateway) & (before - start)) == 1
    gateway.client.uploads.cancel(other)
    assert not blobs(gateway) & (before - start)


def test_parts_that_are_not_named_are_dropped(gateway: Gateway) -> None:
    before, upload = blobs(gateway), announced(gateway, b"abcd")
    first, second = (add(gateway, upload, piece) for piece in (b"ab", b"cd"))
    assert refused(gateway.http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [first]}))
    done = gateway.client.uploads.complete(upload, part_ids=[second, first])
    assert done.file is not None
    assert gateway.client.files.content(done.file.id).content == b"cdab"
    assert len(blobs(gateway) - before) == 1


def test_a_wrong_part_is_refused_and_leaves_nothing(gateway: Gateway) -> None:
    upload = announced(gateway, b"x" * 1000)
    add(gateway, upload, b"x" * 400)
    before, url = blobs(gateway), f"/v1/uploads/{upload}/parts"

    def send(**form: Any) -> httpx2.Response:
        return gateway.http.post(url, **form)

    assert refused(send(files={"data": ("p", b"")}))["param"] == "data"
    assert refused(send(files={"data": ("p", b"y" * 601)}))["param"] == "data"
    assert refused(send(files={"data": ("p", b"y" * 70_000)}))["param"] == "data"
    assert refused(send(files={"data": ("p", b"y"), "file": ("p", b"y")}))["param"] == "file"
    assert refused(send(files=[("data", ("p", b"y")), ("data", ("p", b"y"))]))["param"] == "data"
    assert refused(send(json={"data": "y"}), 415)
    assert refused(send(files={"data": ("p", b"y" * (64 * 2**20 + 2**17))}), 413)["param"] == "data"
    assert refused(gateway.http.post("/v1/uploads/upload_0/parts", files={"data": ("p", b"y")}), 404)
    assert blobs(gateway) == before
    nameless = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + b"y" * 600 + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert refused(send(content=nameless[:-6], headers=kind))["param"] is None
    assert blobs(gateway) == before
    assert send(content=nameless, headers=kind).json()["upload_id"] == upload


def test_a_cancelled_upload_takes_and_keeps_nothing(gateway: Gateway) -> None:
    before, upload = blobs(gateway), announced(gateway)
    part = add(gateway, upload, PIECES[0])
    cancelled = gateway.client.uploads.cancel(upload)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert blobs(gateway) == before
    http = gateway.http
    for path, form in (
        ("parts", {"files": {"data": ("p", b"y")}}),
        ("complete", {"json": {"part_ids": [part]}}),
        ("cancel", {}),
        ("cancel", {"json": {}}),
    ):
        assert "is cancelled" in refused(http.post(f"/v1/uploads/{upload}/{path}", **form))["message"]
    assert http.post(f"/v1/uploads/{upload}/cancel", headers=RETRY).json()["status"] == "cancelled"
    assert refused(http.post("/v1/uploads/upload_0/cancel"), 404)["message"] == "No such Upload object: upload_0"


def test_retries_give_the_first_answer(gateway: Gateway) -> None:
    http, asked = gateway.http, ASKED | {"filename": "retried.jsonl"}
    first = http.post("/v1/uploads", json=asked).json()
    assert http.post("/v1/uploads", json=asked, headers=RETRY).json() == first
    assert http.post("/v1/uploads", json=asked).json()["id"] != first["id"]
    assert http.post("/v1/uploads", json=asked | {"bytes": 7}, headers=RETRY).json()["id"] != first["id"]
    parts = f"/v1/uploads/{first['id']}/parts"
    part = http.post(parts, files={"data": ("p", CONTENT)}).json()
    assert http.post(parts, files={"data": ("p", CONTENT)}, headers=RETRY).json() == part
    complete = f"/v1/uploads/{first['id']}/complete"
    done = http.post(complete, json={"part_ids": [part["id"]]}).json()
    assert done["status"] == "completed"
    assert http.post(complete, json={"part_ids": [part["id"]]}, headers=RETRY).json() == done
    assert "is completed" in refused(http.post(complete, json={"part_ids": [part["id"]]}))["message"]
    assert refused(http.post(complete, json={"part_ids": ["part_0"]}, headers=RETRY))
    gateway.client.files.delete(done["file"]["id"])
    assert "was deleted" in refused(http.post(complete, json={"part_ids": [part["id"]]}, headers=RETRY))["message"]


def test_of_two_completes_and_a_cancel_at_once_one_wins(gateway: Gateway) -> None:
    upload = announced(gateway)
    part_ids = [add(gateway, upload, piece) for piece in PIECES]
    url = f"/v1/uploads/{upload}"
    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(
                lambda body: gateway.http.post(url + ("/complete" if body else "/cancel"), json=body),
                [{"part_ids": part_ids}, {"part_ids": part_ids}, {}],
            )
        )
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400]


def test_a_killed_gateway_goes_on_with_the_upload(start: Callable[..., Gateway]) -> None:
    first = start()
    upload = announced(first)
    parts = [add(first, upload, piece) for piece in PIECES[:-1]]
    kept = blobs(first)
    first.process.kill()
    first.process.wait()
    for name in ("incoming/half", f"ab/ab{'0' * 62}"):  # of a complete that was cut off, before and behind its rename
        stray = first.data / "data" / "blobs" / name
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"x")
    second = start()
    assert blobs(second) == kept
    parts.append(add(second, upload, PIECES[-1]))
    done = second.client.uploads.complete(upload, part_ids=parts)
    assert done.file is not None
    assert second.client.files.content(done.file.id).content == CONTENT
    with pytest.raises(openai.BadRequestError):
        second.client.uploads.cancel(upload)
    assert len(blobs(second)) == 1


def test_a_file_may_hold_the_same_part_twice(gateway: Gateway) -> None:
    """A retried part is known by its bytes: of two equal ones the second may have got the id of the first."""
    half = CONTENT[: len(CONTENT) // 2]
    made = gateway.client.uploads.create(
        filename="a.jsonl", purpose="fine-tune", bytes=2 * len(half), mime_type="text/jsonl"
    )
    first = add(gateway, made.id, half)
    done = gateway.client.uploads.complete(made.id, part_ids=[first, first])
    assert done.file is not None
    assert gateway.client.files.content(done.file.id).content == half * 2
