"""Uploads stream to the disk: constant memory, nothing left of what was refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from tests.acceptance.gateway import Gateway, upload

MEGABYTES = 512 if "SOAK" in os.environ else 100
GROWTH = 60 * 2**20
"""Bytes that the gateway may grow by, whatever the size: less than the file by far."""


def blobs(gateway: Gateway) -> set[Path]:
    return {path for path in (gateway.data / "blobs").rglob("*") if path.is_file()}


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "large.jsonl"
    with open(path, "wb") as file:
        for n in range(MEGABYTES):
            file.write(bytes([n % 251]) * 2**20)
    yield path
    path.unlink()


def test_a_large_file_streams_through_constant_memory(gateway: Gateway, large: Path) -> None:
    process = psutil.Process(gateway.pid)
    upload(gateway.client)
    before = process.memory_info().rss
    with open(large, "rb") as content:
        file = gateway.client.files.create(file=("large.jsonl", content), purpose="fine-tune")
    assert file.bytes == MEGABYTES * 2**20
    assert process.memory_info().rss - before < GROWTH

    digest = hashlib.sha256()
    with gateway.client.files.with_streaming_response.content(file.id) as response:
        for piece in response.iter_bytes(2**20):
            digest.update(piece)
    with open(large, "rb") as content:
        assert digest.hexdigest() == hashlib.file_digest(content, "sha256").hexdigest()
    assert process.memory_info().rss - before < GROWTH


def test_one_byte_too_many_leaves_nothing(site: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text("max_file_bytes = 1000\n")
    gateway = Gateway(site, tmp_path / "small", config).start()
    try:
        upload(gateway.client, b"x" * 1000)
        kept = blobs(gateway)
        with pytest.raises(openai.APIStatusError) as refused:
            upload(gateway.client, b"y" * 1001)
        assert refused.value.status_code == 413
        assert blobs(gateway) == kept
    finally:
        gateway.clean_up()


def test_equal_bytes_are_stored_once_and_go_with_their_last_file(gateway: Gateway) -> None:
    first, second = upload(gateway.client, b"same"), upload(gateway.client, b"same")
    assert len(blobs(gateway)) == 1
    gateway.client.files.delete(first)
    assert gateway.client.files.content(second).content == b"same"
    gateway.client.files.delete(second)
    assert blobs(gateway) == set()
