"""The real ASGI app behind a real server on loopback, with fake services."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.contract.fakes import FakeAccounts, FakeFiles, FakeJobs, FakeModels, NoKeys, services
from tests.contract.upstream import FakeUpstream
from tuneway import api
from tuneway.proxy import Proxy


@dataclass
class Gateway:
    port: int
    jobs: FakeJobs
    files: FakeFiles
    models: FakeModels
    client: openai.OpenAI
    http: httpx2.Client
    accounts: FakeAccounts = field(default_factory=FakeAccounts)
    is_ready: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Server(uvicorn.Server):
    """uvicorn in a thread; `up` is set when it listens. Every test puts an app of its own behind it."""

    app: ASGIApp

    def __init__(self) -> None:
        super().__init__(
            uvicorn.Config(self._answer, host="127.0.0.1", port=0, lifespan="off", interface="asgi3", log_config=None)
        )
        self.up = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.up.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.up.wait(10)
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def settings() -> api.ApiSettings:
    return api.ApiSettings(max_file_bytes=1024 * 1024, max_chat_bytes=2 * 1024 * 1024)


@pytest.fixture
def gateway(
    server: Server, client: openai.OpenAI, http: httpx2.Client, settings: api.ApiSettings, tmp_path: Path
) -> Gateway:
    gateway = Gateway(server.port, FakeJobs(), FakeFiles(folder=tmp_path), FakeModels(), client, http)
    server.app = api.build(
        services(
            jobs=gateway.jobs,
            files=gateway.files,
            models=gateway.models,
            accounts=gateway.accounts,
            ready=lambda: gateway.is_ready,
            keys=NoKeys(),
            chat=Proxy(gateway.models.route),
        ),
        settings,
    )
    return gateway


@pytest.fixture
def upstream(gateway: Gateway) -> Iterator[FakeUpstream]:
    """An upstream that every model name leads to."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: a socket's path has at most 107 bytes
        fake = FakeUpstream(Path(folder) / "engine")
        gateway.models.find = fake.route
        up, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=[fake.serve(up, stop)])
        thread.start()
        try:
            assert up.wait(10)
            yield fake
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()
