"""`/v1/files`: through the official SDK, and forms as no client of ours would send them."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx2
import openai
import pytest

from tests.contract.conftest import Gateway
from tests.contract.fakes import NOW

LINE = b'{"messages": []}\n'
BOUNDARY = b"boundary-7"


def part(name: str, value: bytes, *more: bytes, disposition: bytes | None = None) -> bytes:
    shown = disposition or b'form-data; name="%b"' % name.encode()
    headers = b"".join(line + b"\r\n" for line in (b"Content-Disposition: " + shown, *more))
    return b"--" + BOUNDARY + b"\r\n" + headers + b"\r\n" + value + b"\r\n"


def file_part(filename: bytes = b'filename="a.jsonl"', value: bytes = LINE) -> bytes:
    return part("file", value, disposition=b'form-data; name="file"; ' + filename)


PURPOSE = part("purpose", b"fine-tune")
END = b"--" + BOUNDARY + b"--\r\n"


def upload(gateway: Gateway, body: Any, kind: str = "multipart/form-data; boundary=boundary-7") -> httpx2.Response:
    return gateway.http.post(f"{gateway.url}/v1/files", content=body, headers={"content-type": kind})


def test_the_life_of_a_file(gateway: Gateway) -> None:
    files = gateway.client.files
    created = files.create(file=("train.jsonl", LINE * 9), purpose="fine-tune")
    assert created.to_dict() == {
        "object": "file",
        "id": created.id,
        "purpose": "fine-tune",
        "filename": "train.jsonl",
        "bytes": len(LINE) * 9,
        "created_at": NOW,
        "status": "processed",
    }
    assert files.wait_for_processing(created.id).status == "processed"
    assert files.retrieve(created.id) == created
    content = files.content(created.id)
    assert content.content == LINE * 9
    assert content.response.headers["content-type"] == "application/octet-stream"
    assert content.response.headers["content-length"] == str(len(LINE) * 9)
    deleted = files.delete(created.id)
    assert deleted.to_dict() == {"id": created.id, "object": "file", "deleted": True}
    for call in (files.retrieve, files.delete, files.content):
        with pytest.raises(openai.NotFoundError) as raised:
            call(created.id)
        assert raised.value.body == {
            "message": f"No such File object: {created.id}",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }


def test_a_file_that_expires(gateway: Gateway) -> None:
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    created = gateway.client.files.create(file=("a.jsonl", LINE), purpose="fine-tune", expires_after=expires)
    assert created.expires_at == NOW + 3600


def test_lists(gateway: Gateway) -> None:
    empty = gateway.http.get(f"{gateway.url}/v1/files").json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for number in range(7):
        purpose: Any = "fine-tune" if number % 2 else "batch"
        gateway.client.files.create(file=(f"{number}.jsonl", LINE), purpose=purpose)
    files = gateway.client.files
    assert [file.filename[0] for file in files.list(limit=2)] == list("6543210")
    assert [file.filename[0] for file in files.list(limit=2, order="asc")] == list("0123456")
    assert [file.filename[0] for file in files.list(purpose="fine-tune")] == list("531")
    page = files.list(limit=2).to_dict()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (page["data"][0]["id"], page["data"][1]["id"], True)  # type: ignore[index]
    for query, param in (("limit=-1", "limit"), ("limit=10001", "limit"), ("order=up", "order")):
        response = gateway.http.get(f"{gateway.url}/v1/files?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("accept", ["application/binary", "text/plain", "image/png"])
def test_content_is_never_406(gateway: Gateway, accept: str) -> None:
    created = gateway.client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    url = f"{gateway.url}/v1/files/{created.id}/content"
    assert gateway.http.get(url, headers={"accept": accept, "range": "bytes=5-2"}).content == LINE


@pytest.mark.parametrize(
    ("sent", "filename", "header"),
    [
        ('filename="你好.jsonl"', "你好.jsonl", "filename=\"__.jsonl\"; filename*=UTF-8''%E4%BD%A0%E5%A5%BD.jsonl"),
        (
            "filename=\"=?utf-8?B?x?=\"; filename*=UTF-8''%E4%BD%A0.jsonl",
            "你.jsonl",
            "filename=\"_.jsonl\"; filename*=UTF-8''%E4%BD%A0.jsonl",
        ),
        ("filename*=utf-8''a.jsonl; filename=b.jsonl", "a.jsonl", "filename=\"a.jsonl\"; filename*=UTF-8''a.jsonl"),
        ("filename=a.jsonl", "a.jsonl", "filename=\"a.jsonl\"; filename*=UTF-8''a.jsonl"),
        (r'filename="a\"b;c.jsonl"', 'a"b;c.jsonl', "filename=\"a_b;c.jsonl\"; filename*=UTF-8''a%22b%3Bc.jsonl"),
        ('filename="../x/a.jsonl"', "../x/a.jsonl", "filename=\".._x_a.jsonl\"; filename*=UTF-8''.._x_a.jsonl"),
        ('filename="A.JSONL"', "A.JSONL", "filename=\"A.JSONL\"; filename*=UTF-8''A.JSONL"),
    ],
)
def test_names_round_trip(gateway: Gateway, sent: str, filename: str, header: str) -> None:
    response = upload(gateway, PURPOSE + file_part(sent.encode()) + END)
    assert response.json()["filename"] == filename
    content = gateway.http.get(f"{gateway.url}/v1/files/{response.json()['id']}/content")
    assert content.headers["content-disposition"] == f"attachment; {header}"


def test_fields_in_any_order_and_a_quoted_boundary(gateway: Gateway) -> None:
    body = file_part() + PURPOSE + b"--" + BOUNDARY + b"--"
    assert upload(gateway, body, 'multipart/form-data; boundary="boundary-7"').status_code == 200


def test_any_bytes_in_chunks_of_any_size(gateway: Gateway) -> None:
    value = b"\r\n--boundary-\r\n--boundary-8\r\n\r\n\0" + bytes(range(256)) + b"\r"
    body = PURPOSE + file_part(value=value) + END
    for size in (1, 7, len(body)):
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        response = upload(gateway, pieces)
        assert response.status_code == 200, response.text
        assert (gateway.files.folder / response.json()["id"]).read_bytes() == value


def test_an_empty_file_is_a_file(gateway: Gateway) -> None:
    assert upload(gateway, PURPOSE + file_part(value=b"") + END).json()["bytes"] == 0


EXPIRES = part("expires_after[anchor]", b"created_at") + part("expires_after[seconds]", b"3600")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (PURPOSE + END, "file"),
        (file_part() + END, "purpose"),
        (PURPOSE + PURPOSE + file_part() + END, "purpose"),
        (PURPOSE + file_part() + file_part() + END, "file"),
        (PURPOSE + file_part() + part("metadata", b"x") + END, "metadata"),
        (PURPOSE + part("file", LINE) + END, "file"),
        (PURPOSE + file_part(b'filename=""') + END, "file"),
        (PURPOSE + file_part(b'filename="a\nb.jsonl"') + END, "file"),
        (PURPOSE + file_part(b'filename="a\0.jsonl"') + END, "file"),
        (PURPOSE + file_part(b"filename*=UTF-8''a%0d%0ab.jsonl") + END, "file"),
        (PURPOSE + file_part(b"filename*=UTF-8''%ff.jsonl") + END, "file"),
        (PURPOSE + file_part(b"filename*=latin-1''a.jsonl") + END, "file"),
        (PURPOSE + file_part(b'filename="\xff.jsonl"') + END, "file"),
        (PURPOSE + file_part(b'filename="' + b"a" * 256 + b'.jsonl"') + END, "file"),
        (PURPOSE + file_part(b'filename="a.txt"') + END, "file"),
        (part("purpose", b"\xff") + file_part() + END, "purpose"),
        (part("purpose", b"x" * 2000) + file_part() + END, "purpose"),
        (PURPOSE + part("expires_after[anchor]", b"created_at") + file_part() + END, "expires_after[seconds]"),
        (PURPOSE + part("expires_after[seconds]", b"3600") + file_part() + END, "expires_after[anchor]"),
        (PURPOSE + EXPIRES.replace(b"3600", b"3599") + file_part() + END, "expires_after[seconds]"),
        (PURPOSE + EXPIRES.replace(b"3600", b"2592001") + file_part() + END, "expires_after[seconds]"),
        (PURPOSE + EXPIRES.replace(b"3600", b"1e4") + file_part() + END, "expires_after[seconds]"),
        (PURPOSE + EXPIRES.replace(b"created_at", b"now") + file_part() + END, "expires_after[anchor]"),
        (PURPOSE + part("x", b"", disposition=b'attachment; name="file"') + END, None),
        (PURPOSE + part("x", b"", disposition=b"form-data") + END, None),
        (PURPOSE + part("purpose", b"", b"Content-Transfer-Encoding: base64") + END, None),
        (PURPOSE + file_part(), None),
        (PURPOSE + file_part()[:-4], None),
        (PURPOSE, None),
        (b"", None),
        (b"garbage", None),
        (b"--other\r\n\r\n--other--", None),
        (PURPOSE + b"--" + BOUNDARY + b"\r\nbad header\r\n\r\n" + END, None),
        (PURPOSE + b"--" + BOUNDARY + b"\r\nx: " + b"y" * 100_000 + b"\r\n\r\n" + END, None),
    ],
    ids=range(34),
)
def test_a_wrong_form_is_refused_and_leaves_nothing(gateway: Gateway, body: bytes, param: str | None) -> None:
    response = upload(gateway, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert gateway.files.done["commit"] == 0
    assert gateway.files.done["discard"] == gateway.files.done["receive"] == 1


def test_openais_words(gateway: Gateway) -> None:
    def message(body: bytes) -> str:
        said: str = upload(gateway, body).json()["error"]["message"]
        return said

    assert message(part("purpose", b"world_domination") + file_part() + END) == (
        "'world_domination' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals']"
        " - 'purpose'"
    )
    assert message(PURPOSE + file_part(b'filename="a.txt"') + END) == (
        "Invalid file format for Fine-Tuning API. Must be .jsonl"
    )
    assert message(PURPOSE + END) == "Missing required parameter: 'file'."


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        (f"multipart/form-data; boundary={'b' * 300}", 400),
        ("text/plain", 415),
        ("multipart/mixed; boundary=boundary-7", 415),
        ("", 415),
    ],
)
def test_a_body_that_is_no_form(gateway: Gateway, kind: str, status: int) -> None:
    response = upload(gateway, PURPOSE + file_part() + END, kind)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert gateway.files.done["commit"] == 0
    assert gateway.files.done["discard"] == gateway.files.done["receive"]


def test_a_file_beyond_the_limit(gateway: Gateway) -> None:
    largest = 1024 * 1024
    assert upload(gateway, PURPOSE + file_part(value=b"x" * largest) + END).status_code == 200
    body = PURPOSE + file_part(value=b"x" * (largest + 1)) + END
    for content in (body, iter([body])):
        response = upload(gateway, content)
        assert response.status_code == 413
        assert "max_file_bytes" in response.json()["error"]["message"]
    far_beyond = upload(gateway, PURPOSE + file_part(value=b"x" * 2 * largest) + END)
    assert far_beyond.status_code == 413
    endless = upload(gateway, iter([PURPOSE + file_part() + END] + [b"x" * 65536] * 20))
    assert endless.status_code == 413
    assert gateway.files.done["commit"] == 1
    assert gateway.files.done["discard"] == gateway.files.done["receive"] - 1


def test_a_full_disk(gateway: Gateway) -> None:
    gateway.files.space = 1000
    client = gateway.client.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as raised:
        client.files.create(file=("a.jsonl", LINE * 1000), purpose="fine-tune")
    assert (raised.value.status_code, raised.value.code) == (507, "out_of_space")
    # Once: the SDK was told that another try is of no use.
    assert gateway.files.done == {"receive": 1, "discard": 1}


def test_a_file_goes_on_in_small_pieces(gateway: Gateway) -> None:
    gateway.client.files.create(file=("a.jsonl", b"x" * 1000 * 1000), purpose="fine-tune")
    assert gateway.files.largest_write <= 512 * 1024


def test_a_client_that_leaves_leaves_nothing(gateway: Gateway) -> None:
    discarded = threading.Event()
    gateway.files.discarded = discarded.set
    body = PURPOSE + file_part(value=LINE * 1000)
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
            b"content-type: multipart/form-data; boundary=boundary-7\r\n\r\n" + body
        )
    assert discarded.wait(10)
    assert gateway.files.done["commit"] == 0
