"""The composition root: the only place that builds store, providers, services, worker and the ASGI app.

`serve` runs one gateway process until it is told to stop.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import uvicorn
import uvloop

from tuneway import __version__, api
from tuneway.accounts import Accounts
from tuneway.api import keys as key_routes
from tuneway.api.protocol import Protocol
from tuneway.blobs import Blobs
from tuneway.completions import Completions
from tuneway.errors import StartError
from tuneway.files import Files
from tuneway.graders import Graders
from tuneway.imports import Imports
from tuneway.jobs import Jobs
from tuneway.keys import OPERATOR, Keys
from tuneway.models import Models
from tuneway.outbound import Outbound
from tuneway.permissions import Permissions
from tuneway.providers.base import Provider
from tuneway.providers.fake import Fake
from tuneway.providers.local import Local
from tuneway.providers.local.catalogue import ENTRIES, Catalogue, Entry, OnDisk
from tuneway.providers.local.engines import Engines
from tuneway.providers.local.executor import Executor
from tuneway.providers.local.provider import available_threads
from tuneway.providers.registry import HOSTS, KINDS
from tuneway.proxy import Proxy
from tuneway.relay import Relay
from tuneway.settings import Settings
from tuneway.store import Store
from tuneway.uploads import Uploads
from tuneway.vault import Vault
from tuneway.webhooks import Webhooks
from tuneway.worker import Worker

log = logging.getLogger("tuneway")

FAKE_JOBS = 16
SHUTDOWN_SECONDS = 10
"""How long open responses may take once the gateway was told to stop."""


class Gateway:
    """Everything of one gateway, built but not started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.data / "tuneway.db")
        self.blobs = Blobs(settings.data / "blobs")
        self.vault = Vault(settings.data / "vault.key")
        self.providers = _providers(settings)
        slots = {"local": settings.running_jobs, "fake": FAKE_JOBS}
        self.worker = Worker(self.store, self.blobs, self.providers, slots)
        self.outbound = Outbound(settings.outbound_hosts)
        # Webhooks and imports never reach the vendors' hosts, unless the operator allows it; providers do.
        to_providers = Outbound([*HOSTS, *settings.outbound_hosts])
        self.accounts = Accounts(
            self.store, self.vault, KINDS, to_providers.exchange, providers=self.providers, slots=slots
        )
        self.accounts.configure(list(settings.providers.values()))
        _put_first(self.providers, settings.default_provider)
        self.files = Files(self.store, self.blobs, self.outbound, max_bytes=settings.max_file_bytes)
        self.uploads = Uploads(self.store, self.blobs, max_bytes=settings.max_upload_bytes)
        self.models = Models(self.store, self.providers, settings.model_map)
        self.completions = Completions(self.store, self.files)
        self.proxy = Proxy(self.models.route, self.completions.record, to_providers)
        self.relay = Relay(KINDS, to_providers.exchange, allowed=settings.relay)
        self.jobs = Jobs(
            self.store, self.models, self.providers, wake=self.worker.wake, interrupt=self.worker.interrupt
        )
        self.keys = Keys(self.store, self.vault, required=settings.auth)
        self.webhooks = Webhooks(self.store, self.vault, self.outbound)
        self.imports = Imports(self.store, self.blobs, self.accounts)
        self.ready = False
        self.app = api.build(
            api.Services(
                jobs=self.jobs,
                files=self.files,
                uploads=self.uploads,
                models=self.models,
                chat=self.proxy,
                completions=self.completions,
                keys=self.keys,
                permissions=Permissions(self.store),
                webhooks=self.webhooks,
                graders=Graders(self.proxy.complete, python_graders=settings.python_graders),
                accounts=self.accounts,
                imports=self.imports,
                ready=lambda: self.ready,
                relay=self.relay,
            ),
            api.ApiSettings(
                auth=settings.auth,
                allowed_hosts=settings.allowed_hosts,
                max_file_bytes=settings.max_file_bytes,
                version=__version__,
            ),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the store and runs the worker; on the way out running jobs leave resume points and engines end."""
        self.blobs.open()
        await asyncio.to_thread(self.store.open)
        self.vault.open(create=not await self.keys.depend_on_vault())
        await self.accounts.open()
        await self.files.sweep()
        await self.imports.open()
        running = (self.worker.run(), self.webhooks.run(), self._expire_files())
        tasks = [asyncio.create_task(task) for task in running]
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.imports.close()
            await self.files.close()
            for provider in self.providers.values():
                await provider.close()
            self.store.close()

    async def _expire_files(self) -> None:
        while True:
            try:
                await self.files.expire()
                await self.uploads.expire()
            except Exception:
                log.exception("expired files and uploads could not be deleted; trying again")
            await asyncio.sleep(60)


def _providers(settings: Settings) -> dict[str, Provider]:
    """Those that need no account, by name."""
    for name in ("local", "fake"):
        if name in settings.providers:
            raise StartError(f"The setting 'providers' is not valid: the name {name!r} is taken.")
    return {"local": _local(settings), "fake": Fake(settings.data / "fake")}


def _put_first(providers: dict[str, Provider], name: str) -> None:
    """Its bases are meant where two providers have one of a name. Raises StartError."""
    if name not in providers:
        raise StartError(f"There is no provider {name!r}; known are {', '.join(providers)}.")
    others = {other: providers.pop(other) for other in list(providers) if other != name}
    providers.update(others)


def _local(settings: Settings) -> Local:
    own = [
        Entry(
            name=name,
            description=base.description or f"A base model of this gateway's operator: {base.gguf.name}",
            created=0,
            sources=(OnDisk(base.gguf),),
            gguf_sha256=None,
            learning_rate=base.learning_rate,
            r=base.r,
            lora_alpha=base.lora_alpha,
        )
        for name, base in settings.bases.items()
    ]
    threads = settings.threads or available_threads()
    return Local(
        settings.data,
        Catalogue(settings.cache, [*ENTRIES, *own]),
        Executor(),
        Engines(
            logs=settings.data / "logs",
            threads=threads,
            parallel=settings.engine_parallel,
            idle_seconds=settings.engine_idle_seconds,
        ),
        threads=threads,
    )


class OfflineKeys:
    """The routes of `/v1/tuneway/keys`, without the web, for the operator."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return asyncio.run(key_routes.create(self._keys, OPERATOR, asked)).model_dump(mode="json")

    def every(self) -> dict[str, Any]:
        return asyncio.run(key_routes.every(self._keys, OPERATOR)).model_dump(mode="json")

    def revoke(self, key_id: str) -> dict[str, Any]:
        return asyncio.run(key_routes.revoke(self._keys, OPERATOR, key_id)).model_dump(mode="json")


@contextmanager
def offline_keys(data: Path) -> Iterator[OfflineKeys | None]:
    """The keys of the gateway whose data folder this is, without the gateway; None while it runs.

    The folder is made where there is none yet, so that the first key can come before the first start.
    """
    _private(data)
    try:
        lock = _own(data)
    except StartError:
        yield None
        return
    store, vault = Store(data / "tuneway.db"), Vault(data / "vault.key")
    try:
        store.open()
        keys = Keys(store, vault, required=True)
        vault.open(create=not asyncio.run(keys.depend_on_vault()))
        yield OfflineKeys(keys)
    finally:
        store.close()
        lock.close()


def serve(settings: Settings, on_ready: Callable[[str], None]) -> int:
    """Runs a gateway until SIGINT or SIGTERM; returns the exit status. `on_ready` gets its URL.

    Raises StartError: an address that is not loopback, a port in use, or a data folder that another gateway owns.
    """
    if not settings.auth:
        _only_loopback(settings.host)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    _private(settings.data)
    lock = _own(settings.data)
    try:
        with (
            _listening(settings.host, settings.port) as listener,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_serve(Gateway(settings), listener, on_ready))
    finally:
        lock.close()
    return 0


async def _serve(gateway: Gateway, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    config = uvicorn.Config(
        gateway.app,
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    server = _Server(config, started=lambda: on_ready(url), stopping=gateway.jobs.stop)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.handle_exit, name, None)
    async with gateway.running():
        await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to us and says when it has started and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started
        self._tell_stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._tell_stopping()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _only_loopback(host: str) -> None:
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise StartError(
            f"Refusing to listen on {host} without keys: everyone who reaches that address could use this gateway. "
            "Set `auth` to on (--set auth=on) and make keys by `tuneway keys create`, or listen on 127.0.0.1."
        )


def _private(data: Path) -> None:
    os.umask(0o077)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.chmod(0o700)


def _own(data: Path) -> IO[str]:
    """The lock of the data folder; two gateways on one folder would train every job twice."""
    lock = open(data / "lock", "a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise StartError(
            f"Another gateway{f' (process {owner})' if owner else ''} is using the data folder {data}. "
            "Stop it, or start this one with another --data."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise StartError(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from error
