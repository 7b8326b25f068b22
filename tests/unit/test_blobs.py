"""Bytes arrive whole, once, or not at all."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import threading
from pathlib import Path

import pytest

from tuneway.blobs import LARGE, Blobs
from tuneway.errors import OutOfSpace, PayloadTooLarge


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    blobs = Blobs(tmp_path / "blobs")
    blobs.open()
    return blobs


def left(blobs: Blobs) -> list[Path]:
    return [path for path in blobs._root.rglob("*") if path.is_file()]


async def receive(blobs: Blobs, *pieces: bytes) -> str:
    receiving = blobs.receive(limit=100)
    for piece in pieces:
        await receiving.write(piece)
    await receiving.sync()
    blobs.publish(receiving)
    return receiving.sha256


def test_bytes_are_found_under_their_hash_and_stored_once(blobs: Blobs) -> None:
    first = asyncio.run(receive(blobs, b"one ", b"two"))
    second = asyncio.run(receive(blobs, b"one two"))
    assert first == second == hashlib.sha256(b"one two").hexdigest()
    assert blobs.path(first).read_bytes() == b"one two"
    assert left(blobs) == [blobs.path(first)]
    assert list(blobs.all()) == [first]


def test_too_much_is_refused_and_nothing_is_left(blobs: Blobs) -> None:
    async def run() -> None:
        receiving = blobs.receive(limit=10)
        await receiving.write(b"0123456789")
        with pytest.raises(PayloadTooLarge):
            await receiving.write(b"x")
        await receiving.discard()
        await receiving.discard()

    asyncio.run(run())
    assert left(blobs) == []


def test_a_full_disk_is_told_as_such(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        receiving = blobs.receive(limit=10)

        def full(_: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(receiving, "_write", full)
        with pytest.raises(OutOfSpace):
            await receiving.write(b"x")
        await receiving.discard()

    asyncio.run(run())
    assert left(blobs) == []


def test_a_large_blob_is_gone_at_once_and_its_space_soon(blobs: Blobs) -> None:
    sha256 = asyncio.run(receive(blobs, b"large"))
    with open(blobs.path(sha256), "r+b") as file:
        file.truncate(LARGE + 1)
    for _ in range(2):
        blobs.remove(sha256)
        assert list(blobs.all()) == []
    for thread in threading.enumerate():
        if thread.name == "blob-remover":
            thread.join(10)
    assert left(blobs) == []


def test_what_a_crash_left_half_received_is_gone_after_a_start(blobs: Blobs) -> None:
    receiving = blobs.receive(limit=10)
    asyncio.run(receiving.write(b"half"))
    receiving._file.close()  # as the end of the process does
    removing = blobs._root / "incoming" / "removing"
    removing.mkdir()
    (removing / "large").write_bytes(b"half removed")
    assert len(left(blobs)) == 2
    Blobs(blobs._root).open()
    assert left(blobs) == []
