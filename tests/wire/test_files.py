"""`/v1/files` at the whole gateway: expiry, retries, imports, and forms that only an attacker sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.wire.conftest import SETTINGS, Gateway, rows

RETRY = {"x-stainless-retry-count": "1"}
SECRET = "sig=5f0c1d"


class Origin(ThreadingHTTPServer):
    """Where files are imported from. `/held/…` answers once `release` is set; `asked` counts the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.release = threading.Event()
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}?{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        origin = self.server
        assert isinstance(origin, Origin)
        origin.asked.append(self.path)
        if self.path.startswith("/held/"):
            origin.release.wait(30)
        if "none" in self.path:
            self.send_error(403)
            return
        content = rows() * (2000 if "large" in self.path else 1)
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # of a gateway that has had enough
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


def blobs(gateway: Gateway) -> set[Path]:
    return {path for path in (gateway.data / "data" / "blobs").rglob("*") if path.is_file()}


def asked(origin: Origin, path: str, **change: Any) -> dict[str, Any]:
    return {"purpose": "fine-tune", "filename": "a.jsonl", "content_url": origin.url(path)} | change


def settled(gateway: Gateway, file_id: str) -> dict[str, Any]:
    """The file once it is fetched or has failed."""
    gateway.client.files.wait_for_processing(file_id, poll_interval=0.02, max_wait_seconds=30)
    found: dict[str, Any] = gateway.http.get(f"/v1/files/{file_id}").json()
    return found


def test_expiry_is_told(gateway: Gateway) -> None:
    files = gateway.client.files
    asked_for = files.create(
        file=("a.jsonl", rows()), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert asked_for.expires_at == asked_for.created_at + 3600
    batch = files.create(file=("a.jsonl", rows()), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * 3600
    assert "expires_at" not in files.create(file=("a.jsonl", rows()), purpose="fine-tune").to_dict()
    assert [file.id for file in files.list(purpose="batch")] == [batch.id]
    assert list(files.list(purpose="anything")) == []


def test_a_retried_create_gives_the_first_file(gateway: Gateway) -> None:
    def create(name: str = "retried.jsonl", content: bytes = b"{}", **headers: str) -> str:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        return gateway.client.files.create(file=(name, content), purpose="fine-tune", extra_headers=extra).id

    first = create()
    assert create(x_stainless_retry_count="2") == first
    second = create()
    assert second != first
    assert create(x_stainless_retry_count="1") == second
    for name, content in (("other.jsonl", b"{}"), ("retried.jsonl", b"[]")):
        assert create(name, content, x_stainless_retry_count="1") not in (first, second)


def test_content_that_went_just_now_is_a_404(gateway: Gateway) -> None:
    before = blobs(gateway)
    file = gateway.client.files.create(file=("a.jsonl", b"unlike any other"), purpose="fine-tune")
    (blob,) = blobs(gateway) - before
    blob.unlink()
    with pytest.raises(openai.NotFoundError):
        gateway.client.files.content(file.id)


# ------------------------------------------------------------------------------------------------------------- imports


def test_an_import_in_azures_words(gateway: Gateway, origin: Origin) -> None:
    url = "/openai/files/import?api-version=2024-10-21"
    response = gateway.http.post(url, json=asked(origin, "/held/azure.jsonl"))
    assert response.status_code == 201, response.text
    made = response.json()
    assert response.headers["location"] == f"/openai/files/{made['id']}?api-version=2024-10-21"
    assert made == {
        "object": "file",
        "id": made["id"],
        "purpose": "fine-tune",
        "filename": "a.jsonl",
        "bytes": 0,
        "created_at": made["created_at"],
        "status": "pending",
    }
    azure = f"/openai/files/{made['id']}?api-version=2024-10-21"
    assert gateway.http.get(azure).json()["status"] == "pending"
    assert gateway.client.files.retrieve(made["id"]).status == "uploaded"
    with pytest.raises(openai.BadRequestError, match="still being processed"):
        gateway.client.files.content(made["id"])
    with pytest.raises(openai.BadRequestError, match="still being processed"):
        gateway.client.fine_tuning.jobs.create(model="fake-1", training_file=made["id"])
    again = gateway.http.post(url, json=asked(origin, "/held/azure.jsonl"), headers=RETRY)
    assert again.json()["id"] == made["id"]
    origin.release.set()
    assert settled(gateway, made["id"]) == made | {"status": "processed", "bytes": len(rows())}
    assert gateway.client.files.content(made["id"]).content == rows()
    assert len(origin.asked) == 1


@pytest.mark.parametrize(("path", "words"), [("/none", "status 403"), ("/large", "1048576 bytes")])
def test_an_import_that_fails_says_why_and_leaves_nothing(
    gateway: Gateway, origin: Origin, path: str, words: str
) -> None:
    before = blobs(gateway)
    made = gateway.http.post("/v1/tuneway/files/import", json=asked(origin, path))
    assert (made.status_code, made.json()["status"]) == (200, "uploaded")
    found = settled(gateway, made.json()["id"])
    assert (found["status"], found["bytes"]) == ("error", 0)
    assert words in found["status_details"]
    with pytest.raises(openai.BadRequestError, match=words):
        gateway.client.files.content(found["id"])
    assert blobs(gateway) == before
    gateway.client.files.delete(found["id"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"content_url": "http://192.0.2.1/a.jsonl?" + SECRET}, "content_url"),
        ({"content_url": "file:///etc/passwd"}, "content_url"),
        ({"content_url": ""}, "content_url"),
        ({"filename": "a.csv"}, "filename"),
        ({"filename": "a\n.jsonl"}, "filename"),
        ({"purpose": "assistants_output"}, "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after"),
    ],
    ids=str,
)
def test_a_wrong_import_is_refused_by_name(gateway: Gateway, origin: Origin, change: Any, param: str) -> None:
    response = gateway.http.post("/v1/tuneway/files/import", json=asked(origin, "/a.jsonl", **change))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert SECRET not in response.text
    assert origin.asked == []


def test_an_import_that_a_restart_cut_off(start: Callable[..., Gateway], origin: Origin) -> None:
    first = start(SETTINGS + 'log_level = "debug"\n')
    file_id = first.http.post("/v1/tuneway/files/import", json=asked(origin, "/held/a.jsonl")).json()["id"]
    first.process.kill()
    first.process.wait()
    second = start(SETTINGS + 'log_level = "debug"\n')
    found = second.http.get(f"/v1/files/{file_id}").json()
    assert (found["status"], found["status_details"]) == (
        "error",
        "The gateway stopped while it fetched this file. Import it again.",
    )
    failed = second.http.post("/v1/tuneway/files/import", json=asked(origin, "/none")).json()["id"]
    assert settled(second, failed)["status"] == "error"
    kept = [path for path in second.data.rglob("*") if path.is_file()]
    assert len(kept) > 3
    for path in kept:
        assert SECRET.encode() not in path.read_bytes(), path


# --------------------------------------------------------------------------------------------------------- odd forms

PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'


def file_part(disposition: bytes = b'name="file"; filename="a"', *headers: bytes, value: bytes = b"odd form") -> bytes:
    lines = [b"Content-Disposition: form-data; " + disposition, *headers]
    return b"--b\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + value + b"\r\n"


def send(gateway: Gateway, body: bytes, boundary: str = "b") -> httpx2.Response:
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return gateway.http.post("/v1/files", content=body, headers=kind)


@pytest.mark.parametrize(
    ("body", "boundary", "status"),
    [
        (PURPOSE + file_part() + PURPOSE + b"--b--", "b", 400),
        (PURPOSE + file_part() + file_part() + b"--b--", "b", 400),
        (PURPOSE + file_part(b'name="file"; name="purpose"; filename="a"') + b"--b--", "b", 400),
        (PURPOSE + file_part(b'name="file"; filename="a\0"') + b"--b--", "b", 400),
        (PURPOSE + file_part(b"name=\"file\"; filename*=UTF-8''a%0D%0Ab") + b"--b--", "b", 400),
        (PURPOSE + file_part(b'name="fi\0le"; filename="a"') + b"--b--", "b", 400),
        (PURPOSE + file_part(b'name="file"; filename="a"', *[b"x: y"] * 10_000) + b"--b--", "b", 400),
        (PURPOSE + file_part() + b"--b--" + b"x" * 100_000, "b", 413),
        (b"x" * 100_000 + b"\r\n" + PURPOSE + file_part() + b"--b--", "b", 400),
        (PURPOSE + file_part(), "b", 400),
        (PURPOSE + file_part().rstrip(), "b", 400),
        (PURPOSE + file_part() + b"--b--", "b" * 10_000, 400),
        (PURPOSE + file_part() + b"--b--", '"b', 400),
    ],
    ids=range(13),
)
def test_a_hostile_form_is_refused_and_leaves_nothing(
    gateway: Gateway, body: bytes, boundary: str, status: int
) -> None:
    before = blobs(gateway)
    response = send(gateway, body, boundary)
    assert response.status_code == status, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert blobs(gateway) == before


@pytest.mark.parametrize("name", ["你好.jsonl", "a;b=c.jsonl", "é\u202e.jsonl", "100%.jsonl"])
def test_any_name_round_trips(gateway: Gateway, name: str) -> None:
    created = gateway.client.files.create(file=(name, b"{}"), purpose="fine-tune")
    assert created.filename == name
    disposition = gateway.client.files.content(created.id).response.headers["content-disposition"]
    _, _, encoded = disposition.partition("filename*=UTF-8''")
    assert httpx2.URL(f"http://x/{encoded}").path == f"/{name}"


def test_a_quoted_boundary(gateway: Gateway) -> None:
    body = (PURPOSE + file_part() + b"--b--").replace(b"--b", b"--b c:(d)")
    assert send(gateway, body, '"b c:(d)"').status_code == 200


def test_the_openapi_document_names_what_a_form_takes(gateway: Gateway) -> None:
    document = json.loads(gateway.http.get("/openapi.json").text)
    part = document["paths"]["/v1/uploads/{upload_id}/parts"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert part["schema"]["required"] == ["data"]
    assert set(document["components"]["schemas"]["OpenAIFile"]["required"]) == {
        *("id", "object", "purpose", "filename", "bytes", "created_at", "status"),
    }
