"""What is not HTTP, too large or too slow: one envelope, and the connection ends."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.wire.conftest import Gateway

PATIENCE = 30


def sent(gateway: Gateway, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back until the gateway closes the connection."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as connection:
        received = b""
        with suppress(BrokenPipeError, ConnectionResetError):  # it answers before it has read everything
            connection.sendall(data)
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"hello\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n", 400, id="NUL in a header"),
        pytest.param(b"GET /v1/m\xc3\xb6dels HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, id="a path that is not ASCII"),
        pytest.param(
            b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            id="two lengths",
        ),
        pytest.param(
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
            431,
            id="one large header",
        ),
        pytest.param(
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 40_000 + b"\r\n", 431, id="many headers"
        ),
        pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431, id="a large URL"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\nx: " + b"a" * 5_000_000, 431, id="a head without an end"),
    ],
)
def test_a_bad_head_gets_an_envelope_and_no_connection(gateway: Gateway, data: bytes, status: int) -> None:
    answered, headers, body = sent(gateway, data)
    assert answered == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")
    assert gateway.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("line", [b"x: " + b"a" * 2**20 + b"\r\n", b"a" * 2**20], ids=["lines", "one line"])
def test_trailers_are_bounded(gateway: Gateway, line: bytes) -> None:
    start = b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    start += b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    few, _, body = sent(gateway, start + b"x: y\r\nconnection: close\r\n\r\n" + b"\r\n" * 40)
    assert few == 400
    assert json.loads(body)["error"]["param"] == "model"
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as connection:
        connection.sendall(start)
        connection.sendall(b"x: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(line * 64)  # 64 MiB, far beyond what lies in buffers
    assert gateway.http.get("/healthz").status_code == 200


def test_a_second_request_on_a_connection_is_bounded_too(gateway: Gateway) -> None:
    first = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as connection:
        connection.sendall(first)
        answer = b""
        while b"ok" not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 100_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431")
