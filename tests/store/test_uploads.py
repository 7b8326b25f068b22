"""Time runs out: uploads, files, and what is fetched; and what part of the bytes goes with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tuneway.blobs import Blobs, Receiving
from tuneway.errors import FileNotFound, InvalidRequest
from tuneway.files import Files
from tuneway.outbound import Outbound
from tuneway.store import Store
from tuneway.types import File, Origin, Upload, UploadStatus
from tuneway.uploads import LIFETIME_SECONDS, Uploads

P = "default"


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    blobs = Blobs(tmp_path / "blobs")
    blobs.open()
    return blobs


@pytest.fixture
def files(store: Store, blobs: Blobs) -> Files:
    return Files(store, blobs, Outbound(["127.0.0.1"]), max_bytes=1000)


@pytest.fixture
def uploads(store: Store, blobs: Blobs) -> Uploads:
    return Uploads(store, blobs, max_bytes=1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by the test."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


async def create(uploads: Uploads, size: int = 4, expires_after: int | None = None) -> Upload:
    return await uploads.create(
        P, filename="a.jsonl", purpose="user_data", bytes=size, mime_type="x", expires_after=expires_after
    )


async def add(uploads: Uploads, upload: Upload, data: bytes) -> str:
    part = await uploads.receive_part(P, upload.id)
    await part.write(data)
    return (await part.commit()).id


async def put(files: Files, data: bytes, purpose: str = "user_data", expires_after: int | None = None) -> File:
    incoming = files.receive()
    await incoming.write(data)
    return await incoming.commit(P, filename="a", purpose=purpose, expires_after=expires_after)


def test_an_upload_expires_after_an_hour(uploads: Uploads, files: Files, blobs: Blobs, clock: list[float]) -> None:
    async def run() -> None:
        upload = await create(uploads)
        late = await uploads.receive_part(P, upload.id)
        part = await add(uploads, upload, b"data")
        await late.write(b"x")
        clock[0] += LIFETIME_SECONDS - 1
        await files.sweep()
        await uploads.expire()
        assert len(list(blobs.all())) == 1
        clock[0] += 1
        for attempt in (
            uploads.receive_part(P, upload.id),
            uploads.complete(P, upload.id, part_ids=[part], md5=None),
            uploads.cancel(P, upload.id),
            uploads.cancel(P, upload.id, Origin(retry=1)),
            late.commit(),
        ):
            with pytest.raises(InvalidRequest, match="is expired"):
                await attempt
        assert len(list(blobs.all())) == 1
        await uploads.expire()
        assert list(blobs.all()) == []
        with pytest.raises(InvalidRequest, match="is expired"):
            await uploads.receive_part(P, upload.id)

    asyncio.run(run())


def test_a_part_that_is_being_sent_while_the_upload_ends_leaves_nothing(uploads: Uploads, blobs: Blobs) -> None:
    async def run() -> None:
        upload = await create(uploads)
        late = await uploads.receive_part(P, upload.id)
        await late.write(b"late")
        await uploads.cancel(P, upload.id)
        with pytest.raises(InvalidRequest, match="is cancelled"):
            await late.commit()
        await late.discard()
        assert list(blobs.all()) == []

    asyncio.run(run())


class Held:
    """Makes the copying of parts wait: `copying` is set when it begins, it goes on once `go_on` is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copying, self.go_on = asyncio.Event(), asyncio.Event()
        append = Receiving.append

        async def held(receiving: Receiving, path: Path) -> None:
            self.copying.set()
            await self.go_on.wait()
            await append(receiving, path)

        monkeypatch.setattr(Receiving, "append", held)


def test_a_complete_that_is_cut_off_leaves_the_upload_pending(
    uploads: Uploads, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        upload = await create(uploads)
        parts = [await add(uploads, upload, data) for data in (b"da", b"ta")]
        held = Held(monkeypatch)
        completing = asyncio.create_task(uploads.complete(P, upload.id, part_ids=parts, md5=None))
        await held.copying.wait()
        completing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await completing
        assert len(list(blobs.all())) == 2
        assert list((tmp_path / "blobs" / "incoming").iterdir()) == []
        held.go_on.set()
        _, file = await uploads.complete(P, upload.id, part_ids=parts, md5=None)
        assert blobs.path(file.sha256).read_bytes() == b"data"

    asyncio.run(run())


def test_an_upload_does_not_expire_while_it_is_put_together(
    uploads: Uploads, blobs: Blobs, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        upload = await create(uploads)
        parts = [await add(uploads, upload, data) for data in (b"da", b"ta")]
        held = Held(monkeypatch)
        completing = asyncio.create_task(uploads.complete(P, upload.id, part_ids=parts, md5=None))
        await held.copying.wait()
        clock[0] += LIFETIME_SECONDS
        expiring = asyncio.create_task(uploads.expire())
        done, _ = await asyncio.wait([expiring], timeout=0.1)
        assert not done
        held.go_on.set()
        completed, file = await completing
        await expiring
        assert (completed.status, file.bytes) == (UploadStatus.COMPLETED, 4)
        assert list(blobs.all()) == [file.sha256]

    asyncio.run(run())


def test_a_file_is_gone_the_second_it_expires(files: Files, uploads: Uploads, blobs: Blobs, clock: list[float]) -> None:
    async def run() -> None:
        sent = await put(files, b"sent", expires_after=3600)
        upload = await create(uploads, 4, expires_after=3600)
        part = await add(uploads, upload, b"data")
        _, made = await uploads.complete(P, upload.id, part_ids=[part], md5=None)
        batch, lasting = await put(files, b"batch", purpose="batch"), await put(files, b"lasting")
        assert (batch.expires_at, lasting.expires_at) == (int(clock[0]) + 30 * 24 * 3600, None)
        clock[0] += 3599
        assert await files.get(P, sent.id) == sent
        clock[0] += 1
        for gone in (sent, made):
            with pytest.raises(FileNotFound):
                await files.get(P, gone.id)
            with pytest.raises(FileNotFound):
                await files.delete(P, gone.id)
        page = await files.list(P, after=sent.id, limit=10, order="asc", purpose=None)
        assert page.data == (batch, lasting)
        await files.expire()
        assert set(blobs.all()) == {batch.sha256, lasting.sha256}

    asyncio.run(run())


def test_a_retry_after_a_quarter_of_an_hour_is_a_new_file(files: Files, clock: list[float]) -> None:
    async def again(purpose: str = "user_data") -> str:
        incoming = files.receive()
        await incoming.write(b"same")
        return (await incoming.commit(P, filename="a", purpose=purpose, origin=Origin(retry=1))).id

    async def run() -> None:
        first = (await put(files, b"same")).id
        assert await again() == first
        assert await again("evals") != first
        clock[0] += 901
        assert await again() != first

    asyncio.run(run())


def test_a_file_that_is_deleted_while_it_is_fetched_leaves_nothing(
    files: Files, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        asked = asyncio.Event()

        async def download(_: str, *, limit: int) -> AsyncIterator[bytes]:
            yield b"x" * limit
            asked.set()
            await asyncio.Event().wait()  # for ever, if nobody ends it

        monkeypatch.setattr(files._outbound, "download", download)
        file = await files.fetch(P, filename="a", purpose="user_data", url="http://127.0.0.1:9/x")
        await asked.wait()
        (fetching,) = files._imports.values()
        await files.delete(P, file.id)
        await asyncio.wait([fetching])
        assert list(blobs.all()) == []
        assert list((tmp_path / "blobs" / "incoming").iterdir()) == []

    asyncio.run(run())
